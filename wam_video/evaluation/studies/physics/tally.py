"""Ratios of sums by metric, condition and thing, and the rows and answers that they give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.evaluation.intervals import BootstrapConfig, Estimate, estimate
from wam_video.evaluation.scores import Answer, Check, Row
from wam_video.evaluation.study import answer


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one take adds to a metric: over a film's pictures, or a single sum."""

    start: str
    thing: str | None
    above: Float[np.ndarray, " f"]
    below: Float[np.ndarray, " f"]


@dataclass(kw_only=True)
class Tally:
    """Sums of all takes; a figure is the sum above over the sum below.

    Args:
        study: Its name.
        body: Name of the embodiment.
        times: Seconds of a film's pictures, for curves.
        bootstrap: Of the intervals.
    """

    study: str
    body: str
    times: Sequence[float]
    bootstrap: BootstrapConfig
    entries: dict[tuple[str, str], list[Entry]] = field(default_factory=dict[tuple[str, str], list[Entry]])

    def add(
        self, metric: str, condition: str, start: str, above: object, below: object = 1.0, thing: str | None = None
    ) -> None:
        """Add one take's sums: numbers, or arrays over the film's pictures."""
        top, bottom = np.broadcast_arrays(np.atleast_1d(np.asarray(above, np.float64)), np.asarray(below, np.float64))
        entry = Entry(start=start, thing=thing, above=np.where(bottom > 0, top, 0.0), below=bottom)
        self.entries.setdefault((metric, condition), []).append(entry)

    def rows(self, metric: str, unit: str, conditions: Sequence[str], curves: Sequence[str]) -> list[Row]:
        """Return a metric's rows: over all, over time for the conditions of `curves`, and thing by thing where there are several."""
        found = []
        for condition in conditions:
            entries = self.entries.get((metric, condition), [])
            things = list(dict.fromkeys(e.thing for e in entries))
            found += self._row(metric, unit, condition, entries)
            if condition in curves:
                for i, time in enumerate(self.times):
                    at = [Entry(start=e.start, thing=None, above=e.above[[i]], below=e.below[[i]]) for e in entries]
                    found += self._row(metric, unit, condition, at, time_s=time)
            for thing in things if len(things) > 1 else ():
                mine = [e for e in entries if e.thing == thing]
                found += self._row(metric, unit, condition, mine, dimension=thing)
        return found

    def measured(self, metric: str, condition: str) -> bool:
        """Say whether there was anything to measure."""
        return any(e.below.sum() > 0 for e in self.entries.get((metric, condition), []))

    def ask(self, check: Check, more_is_better: bool) -> Answer | None:
        """Answer by how much better a condition is than another; None where one was not measured."""
        if check.worse is None:
            return None
        pair = [self.entries.get((check.metric, key[1]), []) for key in (check.better, check.worse)]
        if not all(self.measured(check.metric, key[1]) for key in (check.better, check.worse)):
            return None
        starts = sorted({e.start for entries in pair for e in entries})
        sums = torch.stack([_sums(entries, starts) for entries in pair], dim=1)
        sign = 1.0 if more_is_better else -1.0

        def advantage(added: Float[Tensor, "*n 2 2"]) -> Tensor:
            ratio = added[..., 0] / added[..., 1]
            return sign * (ratio[..., :1] - ratio[..., 1:])

        (found,) = estimate(sums, starts, advantage, self.bootstrap)
        return None if found.value is None else answer(self.body, check, found)

    def score_row(
        self, metric: str, parts: Sequence[str], conditions: Sequence[str], score: Callable[[Tensor], Tensor]
    ) -> list[Row]:
        """Return a row of the first condition for a function of several metrics' means (`combine`)."""
        found = self.combine(parts, conditions, score)
        if found is None or found.value is None:
            return []
        row = Row(
            embodiment=self.body, mode=self.study, condition=conditions[0], metric=metric, unit="", estimate=found
        )
        return [row]

    def combine(
        self, metrics: Sequence[str], conditions: Sequence[str], score: Callable[[Tensor], Tensor]
    ) -> Estimate | None:
        """Estimate a function of the means `[*n conditions metrics]` over the starts that all of them share."""
        table = [[self.entries.get((m, c), []) for m in metrics] for c in conditions]
        shared = set.intersection(*({e.start for e in entries} for row in table for entries in row))
        if not shared:
            return None
        starts = sorted(shared)
        sums = torch.stack([torch.stack([_sums(e, starts) for e in row], dim=1) for row in table], dim=1)
        (found,) = estimate(sums, starts, lambda s: score(s[..., 0] / s[..., 1])[..., None], self.bootstrap)
        return found

    def _row(
        self,
        metric: str,
        unit: str,
        condition: str,
        entries: Sequence[Entry],
        *,
        time_s: float | None = None,
        dimension: str | None = None,
    ) -> list[Row]:
        if not entries:
            return []
        starts = sorted({e.start for e in entries})
        sums = _sums(entries, starts)
        (found,) = estimate(sums, starts, lambda s: (s[..., 0] / s[..., 1])[..., None], self.bootstrap)
        if found.value is None:
            return []
        place = {"time_s": time_s, "dimension": dimension}
        return [
            Row(
                embodiment=self.body,
                mode=self.study,
                condition=condition,
                metric=metric,
                unit=unit,
                estimate=found,
                **place,
            )
        ]


def _sums(entries: Sequence[Entry], starts: Sequence[str]) -> Float[Tensor, "n 2"]:
    place = {start: i for i, start in enumerate(starts)}
    sums = torch.zeros(len(starts), 2, dtype=torch.float64)
    for entry in entries:
        if entry.start in place:
            sums[place[entry.start]] += torch.tensor([entry.above.sum(), entry.below.sum()])
    return sums
