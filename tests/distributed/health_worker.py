"""One process of a run that meets with an accident: the command `train`, with data that do what the test says.

Usage: health_worker.py ACCIDENT ARGUMENTS...; an accident is `kind:rank:step`, or `none`.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from wam_video.cli import train
from wam_video.cli.command import run
from wam_video.tensors import Batch
from wam_video.training import feed


class AccidentFeed(feed.ShardFeed):
    """Shards until the accident happens to one process, with the batch of one step (from 0)."""

    def batches(self, batch_size: int, start_index: int, rank: int, num_processes: int) -> Iterator[Batch]:
        first = start_index // (batch_size * num_processes)
        for step, batch in enumerate(super().batches(batch_size, start_index, rank, num_processes), first):
            yield happen(batch) if [rank, step] == PLACE else batch


def happen(batch: Batch) -> Batch:
    """Let the accident happen."""
    if KIND == "nan":
        return replace(batch, actions=torch.full_like(batch.actions, float("nan")))
    if KIND == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    if KIND == "kill" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    if KIND == "late":
        time.sleep(50)
    if KIND == "hang":
        time.sleep(600)
    return batch


if __name__ == "__main__":
    torch.set_num_threads(1)
    KIND, *rest = sys.argv[1].split(":")
    PLACE = [int(number) for number in rest]
    feed.ShardFeed = AccidentFeed  # type: ignore[misc]
    sys.exit(run(train.main, sys.argv[2:]))
