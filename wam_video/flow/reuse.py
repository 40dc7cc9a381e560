"""Steps without a network call: where the velocity hardly changes from one step to the next, it is used once more.

The criterion is measured on the way: the relative change |v - v'| / |v| between the last two velocities that were computed, for
each row and each modality that is generated, the larger of the two. Below the tolerance the next step takes the last velocity as
it is, at most `most` times in turn; then the network is asked again. A row's answer does not depend on its neighbours: where only
some rows may go on, the network is called for all, and the others keep their velocity. To look at a number costs one host
synchronisation a step, so a tolerance of 0 (the default) leaves the loop as it is.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wam_video.errors import ConfigError
from wam_video.flow.solvers import Clocks, Field, State


@dataclass(kw_only=True)
class Meter:
    """What a run took."""

    asked: int = 0
    """Evaluations that the solver wanted."""
    computed: int = 0
    """Those that the network was called for."""


@dataclass(frozen=True, kw_only=True)
class ReuseConfig:
    """When a velocity is used again."""

    tolerance: float = 0.0
    """Relative change up to which it is; 0: never."""
    most: int = 1
    """Steps in turn without a network call."""

    def __post_init__(self) -> None:
        if not self.tolerance >= 0:
            raise ConfigError(f"reuse_tolerance is {self.tolerance}; allowed: 0 (never) or more")
        if self.most < 1:
            raise ConfigError(f"reuse_most is {self.most}; allowed: 1 or more")


class ReusedField:
    """A field that is asked less often; for one run along one path.

    Args:
        field: The network's.
        config: When not.
        video: Whether the video's velocity counts.
        actions: Whether the actions' does.
        meter: Is told of every evaluation.
    """

    def __init__(self, field: Field, config: ReuseConfig, *, video: bool, actions: bool, meter: Meter) -> None:
        self._field, self._config, self._parts, self._meter = field, config, (video, actions), meter
        self._used: State | None = None
        self._turns: Int[Tensor, " b"] | None = None
        self._still: Bool[Tensor, " b"] | None = None

    def __call__(self, state: State, clocks: Clocks) -> State:
        """Return the velocity of `state`, computed or that of before."""
        self._meter.asked += 1
        last, still, turns = self._used, self._still, self._turns
        if last is None or still is None or turns is None or not bool(still.any()):
            return self._computed(state, clocks, None)
        if bool(still.all()):
            self._turns = turns + 1
            self._still = still & (self._turns < self._config.most)
            return last
        return self._computed(state, clocks, still)

    def _computed(self, state: State, clocks: Clocks, keep: Bool[Tensor, " b"] | None) -> State:
        self._meter.computed += 1
        new, last = self._field(state, clocks), self._used
        if self._config.tolerance == 0:
            return new
        if last is None:
            self._used = new
            return new
        change = self._change(new, last)
        keep = torch.zeros_like(change, dtype=torch.bool) if keep is None else keep
        turns = torch.zeros_like(change, dtype=torch.long) if self._turns is None else self._turns
        self._turns = torch.where(keep, turns + 1, torch.zeros_like(turns))
        self._still = torch.where(keep, self._turns < self._config.most, change < self._config.tolerance)
        self._used = State(video=_mix(keep, last.video, new.video), actions=_mix(keep, last.actions, new.actions))
        return self._used

    def _change(self, new: State, last: State) -> Float[Tensor, " b"]:
        changes: list[Tensor] = []
        for counts, a, b in zip(self._parts, (new.video, new.actions), (last.video, last.actions), strict=True):
            if counts and a is not None and b is not None:
                size = a.flatten(1).square().sum(dim=1).sqrt().clamp(min=1e-12)
                changes.append((a - b).flatten(1).square().sum(dim=1).sqrt() / size)
        return torch.stack(changes).amax(0)


def _mix(keep: Bool[Tensor, " b"], old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new
    return torch.where(keep.reshape(-1, *[1] * (new.ndim - 1)), old, new)
