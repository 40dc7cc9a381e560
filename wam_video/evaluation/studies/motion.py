"""How chunks of actions move: limits, smoothness, seams, idleness, as sums.

Actions are taken as a signal in training standard deviations of each dimension, so that metres and radians count alike;
dimensions that never changed in training are left out. Derivatives are differences times the action rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor

MOTION_SUMS = ("outside", "velocity_beyond", "acceleration_beyond", "jerk", "ldlj", "seam", "idle", "step")
"""Each a numerator and a denominator."""

IDLE = 0.1
"""A step shorter than this share of the mean recorded step counts as idle."""

_CENTRAL = 0.999
OVERSHOOT = 0.05
"""Share of the training range by which an action must lie beyond it to be outside: near a limit that recorded actions sit on,
any error is half the time beyond it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What recorded actions do, in standard deviations and seconds."""

    rate: float
    """Actions per second."""
    centre: Float[Tensor, " da"]
    """Physical units."""
    scale: Float[Tensor, " da"]
    """One standard deviation, physical units; 0 for a dimension that never changed."""
    action: Float[Tensor, "2 da"]
    """Least and greatest value in training."""
    velocity: Float[Tensor, "2 da"]
    """Ends of the central 99.9 %."""
    acceleration: Float[Tensor, "2 da"]
    step: float
    """Mean length of a step."""

    @classmethod
    def of(
        cls,
        recorded: Sequence[Float[Tensor, "t da"]],
        *,
        rate: float,
        centre: Float[Tensor, " da"],
        scale: Float[Tensor, " da"],
        extremes: Float[Tensor, "2 da"],
    ) -> Self:
        """Measure recorded sequences of at least 3 actions; `extremes` are those of the whole training split."""
        made = cls(
            rate=rate, centre=centre, scale=scale, action=extremes, velocity=extremes, acceleration=extremes, step=0.0
        )
        signals = [made.signal(x) for x in recorded]
        first, second = (torch.cat([_derivative(x, order, rate) for x in signals]) for order in (1, 2))
        tails = torch.tensor([(1 - _CENTRAL) / 2, (1 + _CENTRAL) / 2], dtype=torch.float64)
        return cls(
            rate=rate,
            centre=centre,
            scale=scale,
            action=made.signal(extremes),
            velocity=torch.quantile(first, tails, dim=0),
            acceleration=torch.quantile(second, tails, dim=0),
            step=float(first.norm(dim=-1).mean()) / rate,
        )

    def signal(self, actions: Float[Tensor, "*n da"]) -> Float[Tensor, "*n d"]:
        """Return actions in standard deviations about the centre, float64, without dimensions that never changed."""
        varies = self.scale > 0
        return ((actions.double() - self.centre.double()) / self.scale.double())[..., varies]


def motion_sums(
    actions: Float[Tensor, "b ta da"],
    mask: Bool[Tensor, "b ta"],
    previous: Float[Tensor, "b da"] | None,
    limits: Limits,
) -> Float[Tensor, "b m 2"]:
    """Return the sums of `MOTION_SUMS` for each chunk.

    Args:
        actions: Physical units.
        mask: True where the window has an action; the others come after.
        previous: The action under way before the chunk; NaN where it isn't known.
        limits: Of the recorded actions.
    """
    x = limits.signal(actions)
    known = [mask, *(mask[:, n:] for n in (1, 2, 3))]  # derivative n needs n more actions
    v, a, j = (_derivative(x, order, limits.rate) for order in (1, 2, 3))
    slack = OVERSHOOT * (limits.action[1] - limits.action[0])
    length = v.norm(dim=-1) / limits.rate
    pairs = {
        "outside": _share((x < limits.action[0] - slack) | (x > limits.action[1] + slack), known[0]),
        "velocity_beyond": _share((v < limits.velocity[0]) | (v > limits.velocity[1]), known[1]),
        "acceleration_beyond": _share((a < limits.acceleration[0]) | (a > limits.acceleration[1]), known[2]),
        "jerk": _share(j.square(), known[3]),
        "ldlj": _ldlj(v, j, known, limits.rate),
        "seam": _seam(x[:, 0], known[0][:, 0], previous, limits),
        "idle": _share((length < IDLE * limits.step)[..., None], known[1]),
        "step": _share((length / limits.step)[..., None], known[1]),
    }
    return torch.stack([pairs[name] for name in MOTION_SUMS], dim=1)


def _derivative(x: Tensor, order: int, rate: float) -> Tensor:
    return torch.diff(x, n=order, dim=-2) * rate**order


def _share(values: Tensor, known: Tensor) -> Tensor:
    """Return the added known values and how many they are."""
    count = known[..., None].expand_as(values)
    return torch.stack([reduce(y.double(), "b t d -> b", "sum") for y in (values * count, count)], dim=-1)


def _ldlj(v: Tensor, j: Tensor, known: Sequence[Tensor], rate: float) -> Tensor:
    """Return the log dimensionless jerk of each chunk (Balasubramanian et al. 2015), and 1; zeros where it isn't defined.

    -ln(duration^3 / peak speed^2 * integral of squared jerk), of the chunk that is there: 0 is smooth, the lower the rougher.
    """
    duration = known[1].sum(dim=1).double() / rate
    peak = (v.norm(dim=-1) * known[1]).amax(dim=1)
    total = (j.square().sum(dim=-1) * known[3]).sum(dim=1) / rate
    ratio = duration**3 * total / peak.square()
    defined = known[3].any(dim=1) & (peak > 0) & (total > 0)
    return torch.stack(
        [torch.where(defined, -torch.log(torch.where(defined, ratio, 1.0)), 0.0), defined.double()], dim=-1
    )


def _seam(first: Tensor, known: Tensor, previous: Tensor | None, limits: Limits) -> Tensor:
    if previous is None:
        return torch.zeros(len(first), 2, dtype=torch.float64)
    jump = (first - limits.signal(previous)).norm(dim=-1) / limits.step
    defined = known & jump.isfinite()
    return torch.stack([torch.where(defined, jump, 0.0), defined.double()], dim=-1)
