"""Where on the noise square a network is trained: densities over (t_video, t_action), with mass on edges and corners.

The density decides what a model is good at, for each mode walks its own path across the square (`flow.modes`). A draw is a
pure map from uniform numbers, so it is the same on any device and any number of ranks:

| density        | (t_video, t_action) in the interior                                             |
|----------------|---------------------------------------------------------------------------------|
| `independent`  | both uniform, independent (UWM, arXiv 2504.02792)                               |
| `shared`       | one uniform clock for both (DreamZero, 2602.15922)                              |
| `flash`        | t_video ~ Beta(7, 1), t_action uniform (DreamZero-Flash)                        |
| `ordered`      | uniform on the triangle t_video >= t_action (X-WAM, 2604.26694)                 |
| `asynchronous` | t_action uniform, t_video = t_action + (1 - t_action) Beta(1.5, 1) (X-WAM's code)    |
| `logit_normal` | both sigmoid(N(0, 1)), independent (Esser et al. 2024, eq. 19)                  |
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wam_video.errors import ConfigError, one_of
from wam_video.flow.path import shift_time
from wam_video.tensors import Mode

DensityName = Literal["independent", "shared", "flash", "ordered", "asynchronous", "logit_normal"]

NUM_UNIFORMS = 4
"""Uniform numbers that one draw takes: region, start, and one for each clock."""


@dataclass(frozen=True, kw_only=True)
class DensityConfig:
    """A density over the square: an interior, the share of samples on each mode's own path, and at its start."""

    name: str = "independent"
    """One of independent, shared, flash, ordered, asynchronous, logit_normal."""
    edges: dict[str, float] = field(default_factory=dict[str, float])
    """Share of samples drawn on the path of a mode: `{policy: 0.2, forward: 0.2}`; the rest lies in the interior."""
    start: float = 0.0
    """Share of samples whose free clocks are set to exactly 1, where every path begins."""
    shift_video: float = 1.0
    """Moves video clocks towards noise (`flow.path.shift_time`); 1 leaves them."""
    shift_action: float = 1.0
    absent_video: float = 0.0
    """Share of steps (whole batches) that leave the future video out, which trains the cheap policy path."""
    noisy_history: float = 0.0
    """Share of chunks whose clean copy, which later chunks read, is a little noisy (causal networks): history that a model
    has made itself is not perfect either."""
    noisy_history_max: float = 0.3
    """Largest clock of such a copy; uniform from 0."""
    prefix: float = 0.0
    """Share of chunks whose first actions are committed: given at clock 0 and not scored, while the others are noised. So a
    model learns to go on from what is carried out while it thinks (continuation `prefix` of `flow.continuation`)."""
    prefix_max: int = 4
    """Most actions of such a prefix, fewer than a chunk has; uniform from 1."""

    def __post_init__(self) -> None:
        if self.name not in DensityName.__args__:
            raise ConfigError(one_of("density.name", self.name, DensityName.__args__))
        for mode, share in self.edges.items():
            if mode not in list(Mode):
                raise ConfigError(one_of("density.edges key", mode, list(Mode)))
            if not 0 <= share <= 1:
                raise ConfigError(f"density.edges.{mode} is {share}; allowed: 0 to 1")
        if sum(self.edges.values()) > 1 + 1e-6:
            raise ConfigError(f"density.edges sum to {sum(self.edges.values()):.3f}; allowed: at most 1")
        if self.prefix_max < 1:
            raise ConfigError(
                f"density.prefix_max is {self.prefix_max}; allowed: 1 or more, and fewer than a chunk has actions"
            )
        for name in ("start", "absent_video", "noisy_history", "noisy_history_max", "prefix"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"density.{name} is {getattr(self, name)}; allowed: 0 to 1")


def draw_clocks(
    config: DensityConfig, uniforms: Float[Tensor, "b 4"], has_actions: Bool[Tensor, " b"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Map uniform numbers in [0, 1) to clocks in [0, 1].

    Args:
        config: The density.
        uniforms: Four independent uniform numbers a sample.
        has_actions: False for action-free video; there the actions are unknown (t_action = 1) and all the mass moves
            to the path of `video`.

    Returns:
        `t_video` and `t_action`, one a sample.
    """
    region, start, u_video, u_action = uniforms.unbind(-1)
    t_video, t_action = _interior(config.name, u_video, u_action)
    t_video = shift_time(t_video, config.shift_video)
    t_action = shift_time(t_action, config.shift_action)
    at_start = start < config.start
    one, zero = torch.ones_like(t_video), torch.zeros_like(t_video)
    free_video, free_action = torch.where(at_start, one, t_video), torch.where(at_start, one, t_action)
    edge_video, edge_action = _marginals(config, u_video, u_action)
    edge_video, edge_action = torch.where(at_start, one, edge_video), torch.where(at_start, one, edge_action)
    paths = {
        Mode.POLICY: (one, edge_action),
        Mode.FORWARD: (edge_video, zero),
        Mode.INVERSE: (zero, edge_action),
        Mode.VIDEO: (edge_video, one),
        Mode.JOINT: (edge_video, torch.where(at_start, one, shift_time(u_video, config.shift_action))),
    }
    low = 0.0
    for mode, share in config.edges.items():
        here = (region >= low) & (region < low + share)
        free_video = torch.where(here, paths[Mode(mode)][0], free_video)
        free_action = torch.where(here, paths[Mode(mode)][1], free_action)
        low += share
    return torch.where(has_actions, free_video, edge_video), torch.where(has_actions, free_action, one)


def draw_history(config: DensityConfig, uniforms: Float[Tensor, "b chunks 2"]) -> Float[Tensor, "b chunks"]:
    """Map uniform numbers in [0, 1) to the clock of each chunk's clean copy: 0, but for a share of `noisy_history`."""
    share, level = uniforms.unbind(-1)
    return torch.where(share < config.noisy_history, level * config.noisy_history_max, torch.zeros_like(level))


def draw_prefix(config: DensityConfig, uniforms: Float[Tensor, "b chunks 2"]) -> Int[Tensor, "b chunks"]:
    """Map uniform numbers in [0, 1) to how many actions of each chunk are committed: 0, but for a share of `prefix`."""
    share, level = uniforms.unbind(-1)
    count = 1 + (level * config.prefix_max).long().clamp(max=config.prefix_max - 1)
    return torch.where(share < config.prefix, count, torch.zeros_like(count))


def _interior(name: str, u_video: Tensor, u_action: Tensor) -> tuple[Tensor, Tensor]:
    """Map two uniform numbers through the inverse distribution of a density."""
    if name == "shared":
        return u_video, u_video
    if name == "flash":
        return u_video.pow(1 / 7), u_action  # inverse of the Beta(7, 1) distribution function t^7
    if name == "ordered":
        return torch.maximum(u_video, u_action), torch.minimum(u_video, u_action)
    if name == "asynchronous":
        return u_action + (1 - u_action) * u_video.pow(1 / 1.5), u_action
    if name == "logit_normal":
        return _logit_normal(u_video), _logit_normal(u_action)
    return u_video, u_action


def _marginals(config: DensityConfig, u_video: Tensor, u_action: Tensor) -> tuple[Tensor, Tensor]:
    """Return the clocks along an edge: uniform, or logit-normal if the interior is."""
    if config.name == "logit_normal":
        u_video, u_action = _logit_normal(u_video), _logit_normal(u_action)
    return shift_time(u_video, config.shift_video), shift_time(u_action, config.shift_action)


def _logit_normal(u: Tensor) -> Tensor:
    return torch.sigmoid(_normal_quantile(u.clamp(1e-6, 1 - 1e-6)))


_normal_quantile = cast("Callable[[Tensor], Tensor]", torch.special.ndtri)  # pyright: ignore[reportUnknownMemberType] - torch gives it no type
