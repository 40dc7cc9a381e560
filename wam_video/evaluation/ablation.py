"""What may be claimed of an ablation: every variant against one reference, paired by seed and by held-out episode.

Two things would come out differently the next time: the training (its seed) and which episodes were held out. The interval
of a mean over seeds holds both. With S seeds, d_k the figure (or the difference to the reference) of seed k over all
held-out episodes, and d its mean:

    d +- t(df) * sqrt(s^2 / S + e^2)

s is the standard deviation of the d_k (`seed_spread: own`, S - 1 degrees of freedom) or, for differences, sqrt(2) times the
residual deviation of the table of variants and seeds (`pooled`: one noise for all variants, as in a randomised block design,
(V - 1)(S - 1) degrees). e is the bootstrap's standard error over episodes; all variants and seeds meet the same drawn
episodes in each draw, so that what makes an episode hard cancels from a difference. What episodes do to single seeds is then
in both terms: the interval errs towards wide. df is Welch's and Satterthwaite's. With one seed, or one episode, there is no
interval, and nothing is claimed. p values are of the same t; Holm (1979) over the family.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor

from wam_video.errors import ConfigError, one_of

SPREADS = ("own", "pooled")
FAMILIES = ("all", "metric")

Table = Mapping[tuple[str, int], Float[Tensor, " draws"]]
"""(variant, seed) -> a figure: first over all episodes, then once for each bootstrap draw."""


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
    """How intervals are made and what counts as a difference."""

    level: float = 0.95
    num_draws: int = 2000
    """Of the bootstrap over episodes."""
    seed: int = 0
    """Of the draws."""
    seed_spread: str = "own"
    """`own`: each difference has its own deviation over seeds; `pooled`: all variants of a metric share one."""
    family: str = "all"
    """What Holm corrects over: `all` comparisons of the table, or those of one `metric`."""

    def __post_init__(self) -> None:
        for name, allowed in (("seed_spread", SPREADS), ("family", FAMILIES)):
            if getattr(self, name) not in allowed:
                raise ConfigError(one_of(f"statistics.{name}", getattr(self, name), allowed))
        if not 0.5 <= self.level < 1 or self.num_draws < 100:
            raise ConfigError(
                f"statistics.level is {self.level}, num_draws {self.num_draws}; allowed: 0.5 to below 1, and at least 100"
            )


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A mean over seeds with its interval; the ends are None where nothing can be said."""

    mean: float
    deviation: float | None
    """Over seeds; None of one seed."""
    low: float | None
    high: float | None
    p_value: float | None
    """Of a mean of 0, two-sided."""
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A variant against the reference, in one figure."""

    variant: str
    summary: Summary
    per_seed: tuple[float, ...]
    residual: bool
    """The deviation over seeds was pooled over variants."""


def summarize(
    rows: Sequence[Float[Tensor, " draws"]],
    seeds: Sequence[int],
    num_episodes: int,
    level: float,
    spread: tuple[float, int] | None = None,
) -> Summary:
    """Return the mean over seeds with the interval of this module's first lines.

    Args:
        rows: For each seed the figure over all episodes, then once for each bootstrap draw.
        seeds: Their names.
        num_episodes: Held out.
        level: Of the interval.
        spread: Deviation over seeds and its degrees of freedom, where they come from elsewhere.
    """
    table = torch.stack([row.double() for row in rows])
    values, count = table[:, 0], len(rows)
    mean = float(values.mean())
    deviation = float(values.std()) if count > 1 else None
    used, degrees = spread or (deviation, count - 1)
    low = high = p = None
    if used is not None and degrees > 0 and num_episodes > 1:
        draws = table[:, 1:].mean(dim=0)
        draws = draws[draws.isfinite()]
        of_seeds = used**2 / count
        of_episodes = float(draws.var()) if len(draws) > 1 else math.inf
        low, high, p = _interval(mean, (of_seeds, degrees), (of_episodes, num_episodes - 1), level)
    return Summary(mean=mean, deviation=deviation, low=low, high=high, p_value=p, seeds=tuple(seeds))


def _interval(
    mean: float, seeds: tuple[float, int], episodes: tuple[float, int], level: float
) -> tuple[float | None, float | None, float | None]:
    """Return the ends and the p value from two variances of the mean, each with its degrees of freedom."""
    variance = seeds[0] + episodes[0]
    if not math.isfinite(variance):
        return None, None, None
    if variance == 0:
        return mean, mean, 1.0 if mean == 0 else 0.0
    degrees = variance**2 / (seeds[0] ** 2 / seeds[1] + episodes[0] ** 2 / episodes[1])
    half = float(student.ppf((1 + level) / 2, degrees)) * math.sqrt(variance)
    return mean - half, mean + half, float(2 * student.sf(abs(mean) / math.sqrt(variance), degrees))


def differences(table: Table, reference: str, num_episodes: int, config: StatisticsConfig) -> list[Difference]:
    """Compare every variant with the reference, seed by seed, over the seeds that both have.

    Args:
        table: A figure of every cell; all over the same episodes and the same draws of them.
        reference: Name of a variant.
        num_episodes: Held out.
        config: Level and spread.
    """
    ours = [seed for variant, seed in table if variant == reference]
    names = list(dict.fromkeys(variant for variant, _ in table if variant != reference))
    whole = [n for n in [reference, *names] if all((n, seed) in table for seed in ours)]
    residual = _residual(table, whole, ours) if config.seed_spread == "pooled" else None
    found = []
    for name in names:
        seeds = [seed for seed in ours if (name, seed) in table]
        if not seeds:
            continue
        rows = [table[name, seed] - table[reference, seed] for seed in seeds]
        pooled = residual is not None and name in whole
        summary = summarize(rows, seeds, num_episodes, config.level, residual if pooled else None)
        per_seed = tuple(float(row[0]) for row in rows)
        found.append(Difference(variant=name, summary=summary, per_seed=per_seed, residual=pooled))
    return found


def _residual(table: Table, variants: Sequence[str], seeds: Sequence[int]) -> tuple[float, int] | None:
    """Return the deviation of a difference between two variants, pooled, with (V - 1)(S - 1) degrees of freedom."""
    degrees = (len(variants) - 1) * (len(seeds) - 1)
    if degrees < 1:
        return None
    y = torch.stack([torch.stack([table[v, s][0].double() for s in seeds]) for v in variants])
    rest = y - y.mean(dim=0, keepdim=True) - y.mean(dim=1, keepdim=True) + y.mean()
    return math.sqrt(2 * float(rest.square().sum()) / degrees), degrees


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm 1979, step down), in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def verdict(difference: Difference, corrected: float | None, better: int, level: float) -> str:
    """Return `better`, `worse` or `none`: a claim needs an interval without 0 and a corrected p value.

    Args:
        difference: To the reference.
        corrected: Holm's p value.
        better: 1 where more is better, -1 where less is.
        level: Of the interval.
    """
    s = difference.summary
    if s.low is None or s.high is None or corrected is None or s.low <= 0 <= s.high or corrected >= 1 - level:
        return "none"
    return "better" if better * s.mean > 0 else "worse"


def sentence(config: StatisticsConfig, seeds: Sequence[int], family: int) -> str:
    """Say exactly what the intervals are."""
    percent = f"{100 * config.level:g} %"
    spread = (
        "the deviation over seeds of each difference itself"
        if config.seed_spread == "own"
        else "the residual deviation of the table of variants and seeds, pooled over variants"
    )
    what = "all comparisons of the table" if config.family == "all" else "the comparisons of each metric"
    return (
        f"Intervals are {percent} t intervals of the mean over {len(seeds)} training seeds, with {spread}, widened by the standard "
        f"error over held-out episodes (bootstrap of {config.num_draws} draws, the same episodes for every variant and seed). "
        f"Differences are paired by seed and by episode. One is claimed only where its interval excludes 0 and Holm's corrected "
        f"p value is below {1 - config.level:.2g}; corrected over {what} ({family} in all)."
    )


def to_dict(summary: Summary) -> dict[str, Any]:
    """Return the fields, JSON-able."""
    return {
        "mean": summary.mean,
        "deviation": summary.deviation,
        "low": summary.low,
        "high": summary.high,
        "p_value": summary.p_value,
        "seeds": list(summary.seeds),
    }
