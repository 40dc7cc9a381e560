"""The health of a run: steps that must not count, losses that jump, processes that are lost.

Whether a step counts is decided where all processes meet anyway: a micro-batch whose loss is not finite gets a gradient that is
not finite (`poison`), the engines add gradients up over the processes, and none applies an update whose norm is not finite. So
they agree without another exchange, whatever carries the run, and a step that is to be skipped for another reason, a jump of
its loss, is skipped the same way.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from wam_video.errors import first_line
from wam_video.log import get_logger
from wam_video.training.health_config import HealthConfig
from wam_video.training.metrics import drop_later

_LOG = get_logger(__name__)

_MAD_TO_SIGMA = 1.4826
"""Of a normal distribution: its standard deviation over its median absolute deviation."""


def poison(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the loss unchanged to the bit; one that is not finite gets a gradient of NaN."""
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, float("nan"))


class SpikeDetector:
    """Says which losses of a step lie far above those of the steps before it; a pure function of what it was shown.

    Args:
        config: Threshold and window.
        history: The last losses by name, to go on with; kept up to date in place.
    """

    def __init__(self, config: HealthConfig, history: dict[str, list[float]] | None = None) -> None:
        self._threshold, self._window = config.spike_threshold, config.spike_window
        self.history: dict[str, list[float]] = {} if history is None else history

    def judge(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Take in a step's losses and return those that jumped: name -> robust standard deviations above the median."""
        jumps = {}
        for name, loss in losses.items():
            if loss != loss or loss == float("inf"):
                continue
            past = self.history.setdefault(name, [])
            if len(past) >= self._window // 4:
                middle = median(past)
                spread = _MAD_TO_SIGMA * median(abs(value - middle) for value in past)
                height = (loss - middle) / max(spread, 0.01 * abs(middle), 1e-12)
                if height > self._threshold:
                    jumps[name] = height
            past.append(loss)  # a jump too: if it lasts, it is the new level
            del past[: -self._window]
        return jumps


class BadSteps:
    """`bad_batches.jsonl`: for each step that was skipped, what every process had in its hands.

    Lines of steps that a resumed run will do again are dropped.
    """

    def __init__(self, path: Path, *, is_main: bool, from_step: int) -> None:
        self._path, self._is_main = path, is_main
        if is_main and path.is_file():
            drop_later(path, from_step)

    def add(self, step: int, samples: Sequence[Mapping[str, Any]], terms: Sequence[str], norm: float) -> str:
        """Write a line for each process (every one calls this) and return what was wrong, in words.

        Args:
            step: That was skipped, from 1.
            samples: `key` and `index` of this process's windows.
            terms: What was not finite, or jumped, on this process.
            norm: Of the gradient, the same on every process.
        """
        mine = {"step": step, "samples": list(samples), "terms": list(terms), "grad_norm": str(norm)}
        everyone = gather(mine)
        if not any(entry["terms"] for entry in everyone):
            everyone = [entry | {"terms": ["gradient"]} for entry in everyone]  # summed up before anybody could look
        if self._is_main:
            with self._path.open("a") as file:
                for rank, entry in enumerate(everyone):
                    file.write(json.dumps({"step": step, "rank": rank, **entry}) + "\n")
        guilty = [(rank, entry) for rank, entry in enumerate(everyone) if entry["terms"]]
        return "; ".join(
            f"rank {rank}: {', '.join(entry['terms'])}, windows {', '.join(s['key'] for s in entry['samples'])}"
            for rank, entry in guilty
        )


def gather(value: Any) -> list[Any]:
    """Return what every process gave, by rank; all of them call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


_SIGNS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "timed out waiting", "broken pipe")


def lost_process(error: BaseException) -> str | None:
    """Return in one line why an exchange between processes failed; None if the error is about something else."""
    text = str(error).lower()
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)):
        return first_line(error)
    return None
