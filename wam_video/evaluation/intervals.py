"""Confidence intervals by a bootstrap over episodes, seeded.

Windows of one episode resemble each other, so episodes are what is drawn again, with replacement (a cluster bootstrap;
Efron and Tibshirani 1993, 8.5), and every score is computed anew from the drawn episodes' added sums.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Statistic = Callable[[Float[Tensor, "..."]], Float[Tensor, "*n m"]]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval; the ends are None where fewer than two episodes were seen."""

    value: float | None
    low: float | None
    high: float | None
    num_windows: int
    num_episodes: int

    def to_dict(self) -> dict[str, float | int | None]:
        """Return the fields, JSON-able."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class BootstrapConfig:
    """How intervals are drawn."""

    num_draws: int = 1000
    level: float = 0.95
    seed: int = 0


def episode_sums(sums: Float[Tensor, "b ..."], episodes: Sequence[str]) -> Float[Tensor, "e ..."]:
    """Add the windows of each episode; episodes in sorted order, so that the order of windows doesn't matter."""
    names = sorted(set(episodes))
    row = {name: i for i, name in enumerate(names)}
    index = torch.tensor([row[name] for name in episodes])
    return torch.zeros(len(names), *sums.shape[1:], dtype=torch.float64).index_add(0, index, sums.double().cpu())


def draw_counts(num_episodes: int, config: BootstrapConfig) -> Int[Tensor, "draws e"]:
    """Return how often each episode was drawn in each bootstrap draw."""
    generator = torch.Generator().manual_seed(config.seed)
    drawn = torch.randint(num_episodes, (config.num_draws, num_episodes), generator=generator)
    return torch.zeros(config.num_draws, num_episodes, dtype=torch.int64).scatter_add(1, drawn, torch.ones_like(drawn))


def estimate(
    sums: Float[Tensor, "b ..."], episodes: Sequence[str], statistic: Statistic, config: BootstrapConfig | None = None
) -> list[Estimate]:
    """Return the figures of all windows' added sums and their percentile intervals over episodes.

    Args:
        sums: What the statistic needs, per window; axes after the first are the statistic's own.
        episodes: The episode of each window.
        statistic: From added sums `[*n *k]` to m figures `[*n m]`; NaN where one isn't defined.
        config: Draws, level and seed.
    """
    config = config or BootstrapConfig()
    by_episode = episode_sums(sums, episodes)
    values = statistic(by_episode.sum(dim=0))
    ends = torch.full((2, len(values)), torch.nan, dtype=torch.float64)
    if len(by_episode) > 1:
        counts = draw_counts(len(by_episode), config).double()
        drawn = statistic(torch.tensordot(counts, by_episode, dims=1)).double()
        tail = (1 - config.level) / 2
        ends = torch.nanquantile(drawn, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    columns = zip(values.tolist(), *ends.tolist(), strict=True)
    return [
        Estimate(
            value=_finite(value),
            low=_finite(low),
            high=_finite(high),
            num_windows=len(episodes),
            num_episodes=len(by_episode),
        )
        for value, low, high in columns
    ]


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
