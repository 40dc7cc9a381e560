"""Success rates with honest intervals, and two policies compared on the same starts.

Intervals of one rate: Wilson (1927) and Clopper and Pearson (1934). Two policies that met the same starts: McNemar's exact
test (1947), which looks at the starts where they disagree only. All by SciPy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm, wilcoxon

from wam_video.errors import ConfigError, DataError

_FLIPS_FOR_P05 = 6
"""So many disagreements, all in one direction, are the fewest that McNemar's exact test calls a difference at 5 %."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Successes of a number of episodes, with 95 % intervals."""

    successes: int
    episodes: int
    rate: float
    wilson: tuple[float, float]
    clopper_pearson: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-able."""
        return asdict(self)


def success_rate(successes: int, episodes: int, level: float = 0.95) -> Rate:
    """Return a success rate with both intervals.

    Raises:
        ConfigError: There are no episodes, or more successes than episodes.
    """
    if not 0 <= successes <= episodes or episodes < 1:
        raise ConfigError(f"{successes} successes of {episodes} episodes; there must be at least one episode")
    test = binomtest(successes, episodes)
    wilson, exact = (test.proportion_ci(level, method) for method in ("wilson", "exact"))
    return Rate(
        successes=successes,
        episodes=episodes,
        rate=successes / episodes,
        wilson=(float(wilson.low), float(wilson.high)),
        clopper_pearson=(float(exact.low), float(exact.high)),
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two policies on the same starts."""

    first: str
    second: str
    episodes: int
    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float
    """Success rate of the second less that of the first."""
    p_value: float
    """McNemar's exact test, two-sided; the chance of so lopsided a disagreement between equals."""
    verdict: str
    """`first`, `second` or `none`: which is better, at 5 %."""
    detectable: float
    """The true difference that so many starts would show four times in five."""
    sentence: str
    progress: dict[str, Any] | None = None
    """How far they came: mean of each, Wilcoxon's p value (signed ranks, two-sided), and who came farther, at 5 %."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-able."""
        return asdict(self)


def compare(first: str, second: str, pairs: Sequence[tuple[bool, bool]], *, comparisons: int = 1) -> Comparison:
    """Compare two policies start by start; refuse to name a winner that the sample can't carry.

    Args:
        first: Name of the one.
        second: Name of the other.
        pairs: For every start whether each succeeded.
        comparisons: How many are made at once; the p value is multiplied by it (Bonferroni).

    Raises:
        ConfigError: There are no pairs.
    """
    if not pairs:
        raise ConfigError(f"{first!r} and {second!r} have no start in common; run both on the same starts")
    table = np.asarray(pairs, dtype=bool)
    a, b = table[:, 0], table[:, 1]
    only_a, only_b, n = int((a & ~b).sum()), int((b & ~a).sum()), len(table)
    flips = only_a + only_b
    p = min(1.0, comparisons * (binomtest(only_a, flips).pvalue if flips else 1.0))
    verdict = "none" if p >= 0.05 else ("first" if only_a > only_b else "second")
    # smallest true difference with power 0.8 at 5 %, for the share of disagreements seen (one added: none seen is no proof)
    spread = (norm.ppf(0.975) + norm.ppf(0.8)) * math.sqrt((flips + 1) / (n + 2) / n)
    detectable = float(min(1.0, max(spread, _FLIPS_FOR_P05 / n)))
    difference = float(b.mean() - a.mean())
    return Comparison(
        first=first,
        second=second,
        episodes=n,
        both=int((a & b).sum()),
        only_first=only_a,
        only_second=only_b,
        neither=int((~a & ~b).sum()),
        difference=difference,
        p_value=float(p),
        verdict=verdict,
        detectable=detectable,
        sentence=_sentence(first, second, (only_a, only_b, n), (difference, float(p), verdict, detectable)),
    )


def compare_progress(pairs: Sequence[tuple[float, float]], *, comparisons: int = 1) -> dict[str, Any]:
    """Compare how far two policies came start by start (Wilcoxon's signed ranks, 1945).

    It can tell policies apart that never succeed; coming farther is no success, and is not called one.

    Args:
        pairs: For every start how far each came, 0 to 1.
        comparisons: How many are made at once (Bonferroni).
    """
    table = np.asarray(pairs, dtype=np.float64)
    gap = table[:, 1] - table[:, 0]
    result: Any = wilcoxon(gap) if gap.any() else None
    p = 1.0 if result is None else min(1.0, comparisons * float(result.pvalue))
    verdict = "none" if p >= 0.05 else ("second" if gap.mean() > 0 else "first")
    return {"first": float(table[:, 0].mean()), "second": float(table[:, 1].mean()), "p_value": p, "verdict": verdict}


def _sentence(first: str, second: str, counts: tuple[int, int, int], found: tuple[float, float, str, float]) -> str:
    only_a, only_b, n = counts
    difference, p, verdict, detectable = found
    disagree = f"they disagree on {only_a + only_b} of {n} starts, {only_a} for {first} and {only_b} for {second}"
    if verdict == "none":
        return (
            f"No difference between {first} and {second} can be claimed from {n} starts: {disagree} (p = {p:.2g}). A true "
            f"difference below about {100 * detectable:.0f} points would mostly go unseen with so few starts."
        )
    winner, loser = (first, second) if verdict == "first" else (second, first)
    return f"{winner} succeeds more often than {loser} by {100 * abs(difference):.0f} points: {disagree} (p = {p:.2g})."


def paired(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Pair the episodes of two records by their starts.

    Args:
        first: Episodes with `start_id` and `start_hash`.
        second: The same of another policy.

    Raises:
        DataError: Starts of the same name were not the same.
    """
    by_id = {episode["start_id"]: episode for episode in first}
    pairs = []
    for episode in second:
        other = by_id.get(episode["start_id"])
        if other is None:
            continue
        if other["start_hash"] != episode["start_hash"]:
            raise DataError(
                f"start {episode['start_id']!r} is not the same in both records (hashes {other['start_hash']} and "
                f"{episode['start_hash']}); simulator versions, options or disturbances differ: run both again"
            )
        pairs.append((other, episode))
    return pairs
