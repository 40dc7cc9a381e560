"""What studies of recorded windows share: the walk over the windows, and figures and answers out of sums."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.evaluation.intervals import BootstrapConfig, Estimate, estimate
from wam_video.evaluation.open_loop import donors, window_seed
from wam_video.evaluation.scores import Check, Row
from wam_video.evaluation.study import Findings, Subject, answer
from wam_video.evaluation.success import success_rate
from wam_video.inference.checks import unanswered
from wam_video.tensors import Batch, Mode


@dataclass(frozen=True, kw_only=True)
class Part:
    """A batch of the walk."""

    places: range
    """Of its windows in the group."""
    batch: Batch
    donor: Batch | None
    """Other windows, one each, of other episodes where that can be; None for a single window."""
    seeds: list[int]


def walk(subject: Subject) -> Iterator[Part]:
    """Yield the windows of a subject in batches, each window with its donor and the seed of its noise."""
    group, fetch = subject.group, subject.data.dataset.batch
    partner = donors(group.episodes)
    for start in range(0, len(group), subject.batch_size):
        places = range(start, min(start + subject.batch_size, len(group)))
        batch = fetch([group.indices[i] for i in places])
        donor = fetch([group.indices[partner[i]] for i in places]) if partner else None
        yield Part(places=places, batch=batch, donor=donor, seeds=[window_seed(subject.seed, k) for k in batch.keys])
        subject.on_progress(places.stop, len(group))


def refused(subject: Subject) -> frozenset[Mode]:
    """Return the modes that the model can't answer: by its attention, or because the body has no actions."""
    blind = frozenset() if subject.group.spec.action_dim else frozenset(set(Mode) - {Mode.VIDEO})
    return unanswered(subject.pipe.transformer.attention) | blind


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A metric as a function of added sums; NaN where it isn't defined."""

    metric: str
    unit: str
    score: Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]
    time_s: float | None = None
    dimension: str | None = None
    more_is_better: bool = True


class Ledger:
    """Sums of windows by condition, and the rows and answers that they give.

    Args:
        study: Name of the study.
        body: Name of the embodiment.
        episodes: Of each window, in the order in which they are added.
        bootstrap: Of the intervals.
    """

    def __init__(self, study: str, body: str, episodes: Sequence[str], bootstrap: BootstrapConfig) -> None:
        self.study, self.body, self.episodes, self.bootstrap = study, body, tuple(episodes), bootstrap
        self._sums: dict[str, list[Tensor]] = {}
        self.findings = Findings()

    def add(self, condition: str, sums: Float[Tensor, "b ..."]) -> None:
        """Add the sums of a batch."""
        self._sums.setdefault(condition, []).append(sums.double().cpu())

    def __contains__(self, condition: str) -> bool:
        return condition in self._sums

    def sums(self, condition: str) -> Float[Tensor, "n ..."]:
        """Return the sums of all windows."""
        return torch.cat(self._sums[condition])

    def row(self, figure: Figure, condition: str, shown_as: str | None = None) -> None:
        """Report a figure, or that it isn't defined."""
        self._report(figure, shown_as or condition, self.sums(condition), lambda sums: figure.score(sums)[..., None])

    def rows(self, figures: Sequence[Figure], conditions: Sequence[str]) -> None:
        """Report every figure of every condition that was run."""
        for figure in figures:
            for condition in conditions:
                if condition in self:
                    self.row(figure, condition)

    def rate(self, metric: str, condition: str, successes: int, trials: int) -> None:
        """Report a rate of independent trials in per cent, with Wilson's interval, which holds near 0 and 100, too."""
        found = success_rate(successes, trials)
        low, high = (100 * end for end in found.wilson)
        made = Estimate(value=100 * found.rate, low=low, high=high, num_windows=trials, num_episodes=trials)
        self._keep(Figure(metric=metric, unit="%", score=torch.mean), condition, made)

    def contrast(self, figure: Figure, condition: str, first: str, second: str) -> None:
        """Report how much the figure of `first` exceeds that of `second`, paired window by window."""
        pair, difference = self._pair(figure, first, second)
        self._report(figure, condition, pair, difference)

    def ask(self, check: Check, figure: Figure, *, margin: float = 0.0, share: float = 1.0) -> None:
        """Answer by the advantage of the better over (a share of) the worse condition of a check, plus what is forgiven."""
        if check.worse is None or check.better[1] not in self or check.worse[1] not in self:
            return
        pair, difference = self._pair(figure, check.better[1], check.worse[1], share)
        sign = 1.0 if figure.more_is_better else -1.0
        (found,) = estimate(pair, self.episodes, lambda sums: sign * difference(sums) + margin, self.bootstrap)
        if found.value is not None:
            self.findings.answers.append(answer(self.body, check, found))

    def leave_out(self, what: str, reason: str) -> None:
        """Name what could not be measured."""
        self.findings.left_out.append((what, reason))

    def _pair(
        self, figure: Figure, first: str, second: str, share: float = 1.0
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        a, b = self.sums(first), self.sums(second)
        axis = -a.ndim  # of the pair, counted from the end: bootstrap draws stand in front
        return torch.stack([a, b], dim=1), lambda sums: (
            figure.score(sums.select(axis, 0)) - share * figure.score(sums.select(axis, 1))
        )[..., None]

    def _report(self, figure: Figure, condition: str, sums: Tensor, statistic: Callable[[Tensor], Tensor]) -> None:
        (found,) = estimate(sums, self.episodes, statistic, self.bootstrap)
        if found.value is None:
            self.leave_out(f"{self.study}: {figure.metric} of {condition}", "not defined on these windows")
            return
        self._keep(figure, condition, found)

    def _keep(self, figure: Figure, condition: str, found: Estimate) -> None:
        self.findings.rows.append(
            Row(
                embodiment=self.body,
                mode=self.study,
                condition=condition,
                metric=figure.metric,
                unit=figure.unit,
                time_s=figure.time_s,
                dimension=figure.dimension,
                estimate=found,
            )
        )
