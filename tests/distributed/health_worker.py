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

    kind, place = "none", (-1, -1)

    def batches(self, batch_size: int, start_index: int, rank: int, num_processes: int) -> Iterator[Batch]:
        first = start_index // (batch_size * num_processes)
        for step, batch in enumerate(super().batches(batch_size, start_index, rank, num_processes), first):
            yield happen(batch, self.kind) if (rank, step) == self.place else batch


def happen(batch: Batch, kind: str) -> Batch:
    """Let the accident happen."""
    if kind == "nan":
        return replace(batch, actions=torch.full_like(batch.actions, float("nan")))
    if kind == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    if kind == "kill" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "late":
        time.sleep(50)
    if kind == "hang":
        time.sleep(600)
    return batch


def main(accident: str, arguments: list[str]) -> int:
    """Be the command with an accident; return its exit code."""
    torch.set_num_threads(1)
    AccidentFeed.kind, *place = accident.split(":")
    AccidentFeed.place = tuple(map(int, place))
    feed.ShardFeed = AccidentFeed  # type: ignore[misc]
    return run(train.main, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
