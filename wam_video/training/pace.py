"""How long a step takes and what of it is this process's own work: the clock of the loop, and who is slow.

Nothing here makes the host wait for a CUDA device in the midst of a run.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.training.health_config import HealthConfig

_Mark = float | torch.cuda.Event


@dataclass(kw_only=True)
class Stretch:
    """The steps since the last log line, as this process saw them; seconds by step."""

    step_s: list[float] = field(default_factory=list)
    wait_s: list[float] = field(default_factory=list)
    """For data."""
    own_s: list[float] = field(default_factory=list)
    """Waiting for data, making samples and the forward passes, without the exchanges, where the fast wait for the slow."""
    frames: int = 0
    """Pixel frames of all views."""
    flops: float = 0.0
    """Of the network, forward and backward."""


class Pace:
    """The clock of one process's loop. On CUDA it leaves events in the stream and reads them when asked, so nothing waits.

    A step is: `begin`, make the samples, `meet` (the first exchange is about to begin), `met` (it is over), `worked` after each
    forward pass (the last backward pass is about to exchange gradients), `end`. Where weights are sharded, forward passes wait
    for the other processes too; what is left to tell them apart is the part before `meet`.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._marks: list[_Mark] = []
        self._own: list[list[_Mark]] = []
        self._began = 0.0
        self._now = Stretch()

    def begin(self) -> None:
        """Start a step."""
        self._began = time.perf_counter()
        self._marks = [self._mark()]

    def meet(self, wait_s: float, frames: int) -> None:
        """Take note of what the samples took and are: seconds of waiting for them, pixel frames in them."""
        self._marks.append(self._mark())
        self._now.wait_s.append(wait_s)
        self._now.frames += frames

    def met(self) -> None:
        """Go on after the first exchange."""
        self._marks.append(self._mark())

    def worked(self, flops: float, *, last: bool) -> None:
        """Take note of a micro-batch's forward pass and its operations; before the exchange after the last one, own work ends."""
        self._now.flops += flops
        if last:
            self._marks.append(self._mark())

    def end(self) -> None:
        """End a step."""
        self._own.append(self._marks)
        self._now.step_s.append(time.perf_counter() - self._began)

    def take(self) -> Stretch:
        """Return what was counted since the last call, and start again."""
        if self._on_cuda:
            torch.cuda.current_stream().synchronize()  # where a line is written, numbers are read from the device anyway
        stretch, self._now = self._now, Stretch()
        stretch.own_s = [_between(m[0], m[1]) + _between(m[2], m[3]) for m in self._own]
        self._own = []
        return stretch

    def _mark(self) -> _Mark:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _between(start: _Mark, end: _Mark) -> float:
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    return start.elapsed_time(end) / 1000  # type: ignore[union-attr, arg-type]


class StragglerWatch:
    """Names the slowest process once it has been slow for several log intervals in a row.

    Args:
        config: From which ratio on, and for how long.
        hosts: Of the processes, by rank.
    """

    def __init__(self, config: HealthConfig, hosts: Sequence[str]) -> None:
        self._config, self._hosts = config, hosts
        self._rank, self._times = -1, 0

    def judge(self, own_s: Sequence[float], wait_share: Sequence[float]) -> tuple[float, str | None]:
        """Take in an interval, by rank, and return the slowest's ratio to the median, and what to say of it, if anything.

        Args:
            own_s: Own work in a step, seconds.
            wait_share: Of the step's time that went into waiting for data, 0 to 1.
        """
        slowest = max(range(len(own_s)), key=lambda rank: own_s[rank])
        others = [seconds for rank, seconds in enumerate(own_s) if rank != slowest]
        usual = median(others) if others else own_s[slowest]
        ratio = own_s[slowest] / max(usual, 1e-9)
        slow = bool(self._config.straggler_ratio and others) and ratio >= self._config.straggler_ratio
        self._times = self._times + 1 if slow and slowest == self._rank else int(slow)
        self._rank = slowest
        if not slow or self._times < self._config.straggler_intervals:
            return ratio, None
        return ratio, (
            f"rank {slowest} on {self._hosts[slowest]} is slow: {own_s[slowest]:.3g} s of own work a step, {ratio:.1f} times the "
            f"others' {usual:.3g} s, in {self._times} log intervals in a row; it waits {wait_share[slowest]:.0%} of the time for "
            f"data (the others {fmean(s for r, s in enumerate(wait_share) if r != slowest):.0%})"
        )


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the values lie: the nearest one, not a mean of two."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


class Wishes:
    """What the processes wish, once summed up; on CUDA read at the next call, so that the host does not wait for the device.

    Every process reads the same numbers at the same call, so a stop is decided by all at once, there one step later.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._under_way: tuple[Tensor, torch.cuda.Event] | None = None

    def read(self, wishes: Float[Tensor, " n"]) -> list[bool]:
        """Take the sums of this call and return which are above 0: of this call, or on CUDA of the one before."""
        if not self._on_cuda:
            return (wishes > 0).tolist()
        before = self._under_way
        copy = torch.empty(wishes.shape, dtype=wishes.dtype, device="cpu", pin_memory=True)
        copy.copy_(wishes, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._under_way = copy, event
        if before is None:
            return [False] * len(wishes)
        before[1].synchronize()
        return (before[0] > 0).tolist()
