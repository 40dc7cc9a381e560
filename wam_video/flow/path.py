"""The probability path, and the only file that fixes the direction of flow time: t = 1 is noise, t = 0 is data.

Linear path of rectified flow, in the direction of Wan and FLUX: `x_t = (1 - t) * x + t * eps` with `eps ~ N(0, 1)` and
velocity `v = dx_t/dt = eps - x` (Liu et al. 2022, "Flow Straight and Fast", eq. 1, with time reversed; Lipman et al. 2023,
eq. 22 with sigma_min = 0). Every other file converts through these functions.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.tensors import PredictionType

Values = Float[Tensor, "..."]
"""A tensor of any shape; arguments of one function broadcast."""

MIN_T = 1e-3
"""Smallest t that a sample prediction is divided by; below it x_t is the data for every practical purpose."""


def expand_clock(t: Float[Tensor, "b m"], like: Float[Tensor, "b ..."], axis: int) -> Float[Tensor, "b ..."]:
    """Reshape clocks `b m` so that they broadcast over `like`, whose axis `axis` has length m."""
    shape = [1] * like.ndim
    shape[0], shape[axis] = t.shape
    return t.reshape(shape)


def interpolate(x: Values, noise: Values, t: Values) -> Values:
    """Return `x_t = (1 - t) x + t eps`; `t` broadcasts. Exact at both ends: x at t = 0, noise at t = 1."""
    return (1.0 - t) * x + t * noise


def velocity(x: Values, noise: Values) -> Values:
    """Return the velocity `eps - x` of the path, which does not depend on t."""
    return noise - x


def to_velocity(prediction: Values, x_t: Values, t: Values, kind: PredictionType) -> Values:
    """Convert a network's output at `(x_t, t)` to a velocity: `(x_t - x) / t` for a sample prediction."""
    return prediction if kind == "velocity" else (x_t - prediction) / t.clamp(min=MIN_T)


def to_sample(prediction: Values, x_t: Values, t: Values, kind: PredictionType) -> Values:
    """Convert a network's output at `(x_t, t)` to the clean sample: `x_t - t v` for a velocity prediction."""
    return prediction if kind == "sample" else x_t - t * prediction


def shift_time(t: Values, shift: float) -> Values:
    """Move clocks towards noise: `s t / (1 + (s - 1) t)` (Esser et al. 2024, eq. 23). `shift` 1 changes nothing."""
    return shift * t / (1.0 + (shift - 1.0) * t)


def standard_noise(shape: tuple[int, ...], generators: list[torch.Generator], device: torch.device | str) -> Values:
    """Draw `N(0, 1)` noise of `shape`, row i from `generators[i]`, so that a row does not depend on its neighbours."""
    rows = [torch.randn(shape[1:], generator=g, device=g.device) for g in generators]
    return torch.stack(rows).to(device)
