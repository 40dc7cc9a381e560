"""Real-time chunking: the first actions of a chunk are committed, for they are carried out while it is made.

| continuation | committed actions                                             | what was planned after them              |
|--------------|---------------------------------------------------------------|------------------------------------------|
| `prefix`     | at clock 0 all along, as trained with `density.prefix`        | is not read                              |
| `guided`     | pulled to, by the gradient of the error of the chunk expected | pulled to less and less (soft mask)      |
| `replace`    | put onto the path at each step, with noise of their own       | is not read                              |

`guided` is RTC's inpainting (Black, Galliker and Levine 2025, "Real-time execution of action chunking flow policies",
arXiv 2506.07339, eq. 2 to 5 and algorithm 1), in our direction of time: with t = 1 - tau the expected chunk is x - t v, and
`r_t^2 = t^2 / (t^2 + (1 - t)^2)`. It needs no training, and a backward pass through the network at each step. `replace` is the
plain way that it is held against (Lugmayr et al. 2022, RePaint, without resampling).
"""

from dataclasses import dataclass, replace
from math import e
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wam_video.errors import ConfigError, one_of
from wam_video.flow.path import interpolate
from wam_video.flow.solvers import Clocks, Field, State

ContinuationName = Literal["prefix", "guided", "replace"]

MAX_GUIDANCE = 5.0
"""Largest weight of the gradient (beta of algorithm 1; the paper's value)."""


def check_continuation(name: str) -> str:
    """Return `name` if there is such a continuation.

    Raises:
        ConfigError: There is none.
    """
    if name not in ContinuationName.__args__:
        raise ConfigError(one_of("continuation", name, ContinuationName.__args__))
    return name


def soft_mask(committed: Bool[Tensor, "b ta"], planned: Bool[Tensor, "b ta"]) -> Float[Tensor, "b ta"]:
    """Return how much each action of a chunk counts (eq. 5): 1 if committed, then falling over those planned, 0 for new ones.

    Args:
        committed: The first d actions.
        planned: Those after them up to the end of the plan before, if any.
    """
    d, k = committed.sum(1, keepdim=True), (committed | planned).sum(1, keepdim=True)
    c = (k - torch.arange(committed.shape[1], device=committed.device)) / (k - d + 1)
    falling = c * (torch.exp(c) - 1) / (e - 1)
    return torch.where(committed, torch.ones_like(falling), torch.where(planned, falling, torch.zeros_like(falling)))


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What a chunk is drawn to while it is made; `field` bends a velocity field so."""

    name: str
    """`guided` or `replace`; `prefix` is a matter of clocks, which bends nothing."""
    target: Float[Tensor, "b ta da"]
    """The plan before, normalised; anything where the weight is 0."""
    weight: Float[Tensor, "b ta da"]
    """0 in dimensions that a body lacks."""
    noise: Float[Tensor, "b ta da"]
    """With which `replace` puts the target onto the path."""

    def part(self, actions: slice) -> "Continuation":
        """Return that of some of the actions."""
        return replace(
            self, target=self.target[:, actions], weight=self.weight[:, actions], noise=self.noise[:, actions]
        )

    def field(self, field: Field) -> Field:
        """Return the field that leads to chunks which continue the target."""
        return self._replaced(field) if self.name == "replace" else self._guided(field)

    def _replaced(self, field: Field) -> Field:
        def velocity(state: State, clocks: Clocks) -> State:
            actions, t = _actions(state, clocks)
            known = interpolate(self.target, self.noise, t).to(actions)
            return field(replace(state, actions=torch.where(self.weight == 1, known, actions)), clocks)

        return velocity

    def _guided(self, field: Field) -> Field:
        def velocity(state: State, clocks: Clocks) -> State:
            actions, t = _actions(state, clocks)
            with torch.enable_grad():
                x = actions.detach().requires_grad_(True)
                v = field(replace(state, actions=x), clocks)
                assert v.actions is not None, "a field of actions was asked for"
                expected = x - t * v.actions
                error = ((self.target - expected) * self.weight).detach()
                (pull,) = torch.autograd.grad((error * expected).sum(), x)
            share = (t**2 + (1 - t) ** 2) / (t * (1 - t)).clamp(min=1e-6)  # (1 - tau) / (tau r^2)
            bent = v.actions.detach() - share.clamp(max=MAX_GUIDANCE) * pull
            return State(video=None if v.video is None else v.video.detach(), actions=bent)

        return velocity


def _actions(state: State, clocks: Clocks) -> tuple[Float[Tensor, "b ta da"], Float[Tensor, "b ta 1"]]:
    if state.actions is None or clocks.actions is None:
        raise ConfigError("there are committed actions, but the run has none; use a mode that generates actions")
    return state.actions, clocks.actions[..., None].to(state.actions)
