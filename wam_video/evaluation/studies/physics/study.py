"""The study: simulate takes, imagine them, probe every film beside the real and the broken ones."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from wam_video.evaluation.studies.ledger import refused, walk
from wam_video.evaluation.studies.physics import films, probes
from wam_video.evaluation.studies.physics.films import Film as Pictures
from wam_video.evaluation.studies.physics.imagine import Dreamer
from wam_video.evaluation.studies.physics.iq import IQ_METRICS, combined, iq_scores
from wam_video.evaluation.studies.physics.probes import Truth
from wam_video.evaluation.studies.physics.takes import Take, record_takes
from wam_video.evaluation.studies.physics.tally import Tally
from wam_video.evaluation.studies.physics.words import (
    CURVES,
    MORE_IS_BETTER,
    NAME,
    OBJECT_METRICS,
    UNITS,
    WORDS,
    checks,
)
from wam_video.evaluation.study import Film, Findings, StudyWords, Subject, answer, missing
from wam_video.tensors import Mode

_SECONDS = 2.4
"""Of a take, at least one of the model's windows."""
_FILMED = 2
_DONOR = {"hold": "push"}
"""Whose actions are another start's where its own would say nothing: holding still is the same everywhere."""


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """All takes of a run as they really were, and what stands for each."""

    truths: Mapping[tuple[str, str], Truth]
    """(start, kind) -> take."""
    films: Mapping[tuple[str, str], Mapping[str, Pictures]]
    """(start, kind) -> condition -> film."""

    def of(self, *kinds: str) -> list[tuple[Truth, Mapping[str, Pictures]]]:
        """Return the takes of some kinds with their films."""
        return [(truth, self.films[key]) for key, truth in self.truths.items() if key[1] in kinds]


class PhysicsStudy:
    """Does the imagined world behave?"""

    name = NAME
    words: StudyWords = WORDS

    def run(self, subject: Subject) -> Findings:
        """Measure; without a simulator only Physics-IQ's raw scores of the recorded windows."""
        if Mode.FORWARD in refused(subject):
            return missing(NAME, "the model has no forward mode for this body")
        if subject.open_environment is None:
            return _recorded(subject)
        return _simulated(subject)


def _simulated(subject: Subject) -> Findings:
    dreamer = _dreamer(subject)
    if not dreamer.rhythm.ahead:
        return missing(NAME, "no future frame lies within the reach of the model's actions")
    takes, length, env = _record(subject, dreamer)
    if not takes:
        return missing(NAME, f"environment {env!r} ends before a take of {length} actions is over")
    scene = takes[0].scenes[0]
    view = subject.group.spec.views[0] if scene is None else scene.view
    stage = _stage(takes, dreamer, view, length)
    steps = next(iter(stage.truths.values())).steps
    rate = subject.group.spec.action_rate
    tally = Tally(
        study=NAME,
        body=subject.group.spec.name,
        times=[round(step / rate, 6) for step in steps[1:]],
        bootstrap=subject.bootstrap,
    )
    _probe(tally, stage)
    found = _report(tally, list(WORDS.conditions))
    _score(tally, found)
    _explain(tally, found, scene is not None, str(subject.options.env))
    found.films = [_beside(truth, made, rate) for truth, made in stage.of("push")[:_FILMED]]
    return found


def _dreamer(subject: Subject) -> Dreamer:
    return Dreamer(
        sampler=subject.sampler,
        window=subject.pipe.processor.window,
        spec=subject.group.spec,
        seed=subject.seed,
        batch_size=subject.batch_size,
    )


def _record(subject: Subject, dreamer: Dreamer) -> tuple[list[Take], int, str]:
    assert subject.open_environment is not None
    world = subject.open_environment()
    chunk = dreamer.rhythm.ahead[-1]
    length = chunk * max(1, round(_SECONDS * subject.group.spec.action_rate / chunk))
    history = max(dreamer.rhythm.back)
    takes: list[Take] = []
    with closing(world):
        for index in range(subject.options.episodes):
            takes += record_takes(world, index, seed=subject.seed, history=history, length=length)
            subject.on_progress(index + 1, subject.options.episodes)
    return takes, length, world.name


def _stage(takes: Sequence[Take], dreamer: Dreamer, view: str, length: int) -> _Stage:
    steps = [0, *dreamer.rhythm.steps(length)]
    truths = {(take.start, take.kind): Truth.of(take, view, steps) for take in takes}
    chosen = [take for take in takes if take.kind != "again"]
    made = dict(zip(((t.start, t.kind) for t in chosen), _imagined(chosen, dreamer, view, length), strict=True))
    for key, shown in made.items():
        truth = truths[key]
        moments = [truth.take.now + step for step in steps]
        shown[films.FLOOR] = films.coded(truth.take.views[view], dreamer.spec.fps, moments)
        shown.update(films.broken(truth.film, truth.scene))
        if key[1] == "push" and (key[0], "again") in truths:
            shown[films.AGAIN] = truths[key[0], "again"].film
    return _Stage(truths={key: truths[key] for key in made}, films=made)


def _imagined(takes: Sequence[Take], dreamer: Dreamer, view: str, length: int) -> list[dict[str, Pictures]]:
    """Return the model's films of the takes, with their own actions and with those of the next start."""
    starts = list(dict.fromkeys(take.start for take in takes))
    own = dreamer.imagine(takes, [take.actions for take in takes], view, length)
    result = [{films.MODEL: film} for film in own]
    by_key = {(take.start, take.kind): take for take in takes}
    pairs = []
    for place, take in enumerate(takes):
        stranger = starts[(starts.index(take.start) + 1) % len(starts)]
        donor = by_key.get((stranger, _DONOR.get(take.kind, take.kind)), by_key.get((stranger, "push")))
        if donor is not None and stranger != take.start:
            told = np.concatenate([take.actions[: take.now], donor.actions[donor.now :]])
            pairs.append((place, told))
    shuffled = dreamer.imagine([takes[place] for place, _ in pairs], [told for _, told in pairs], view, length)
    for (place, _), film in zip(pairs, shuffled, strict=True):
        result[place][films.SHUFFLED] = film
    return result


def _probe(tally: Tally, stage: _Stage) -> None:
    for truth, made in stage.of("push", "stray", "back", "hold"):
        for condition, film in made.items():
            _probe_film(tally, condition, truth, film)
    for start in dict.fromkeys(start for start, _ in stage.truths):
        pair = ((start, "push"), (start, "stray"))
        if not all(key in stage.truths for key in pair):
            continue
        truths = (stage.truths[pair[0]], stage.truths[pair[1]])
        for condition in (c for c in stage.films[pair[0]] if c in stage.films[pair[1]]):
            seen = (
                truths[0].find(stage.films[pair[0]][condition]),
                truths[1].find(stage.films[pair[1]][condition]),
            )
            probes.counterfactual(tally, condition, truths, seen)


def _probe_film(tally: Tally, condition: str, truth: Truth, film: Pictures) -> None:
    kind, start = truth.take.kind, truth.take.start
    if kind == "push":
        for metric, value in zip(IQ_METRICS, iq_scores(film, truth.film), strict=True):
            tally.add(metric, condition, start, value)
    if condition == films.AGAIN:
        return  # other things happen there
    if kind == "hold":
        probes.still(tally, condition, truth, film)
        return
    seen = truth.find(film)
    probes.keep(tally, condition, truth, seen)
    probes.causality(tally, condition, truth, seen)
    probes.penetration(tally, condition, truth, seen)
    if kind == "back":
        probes.retreat(tally, condition, truth, seen)


def _report(tally: Tally, conditions: Sequence[str]) -> Findings:
    found = Findings()
    for metric in WORDS.metrics:
        found.rows += tally.rows(metric, UNITS.get(metric, ""), conditions, CURVES.get(metric, ()))
    for check in checks():
        asked = tally.ask(check, check.metric in MORE_IS_BETTER)
        if asked is not None:
            found.answers.append(asked)
    return found


def _score(tally: Tally, found: Findings) -> None:
    """Add Physics-IQ's score, normalised by what a second take of the same start reaches."""
    rows, answers = [], []
    if tally.measured(IQ_METRICS[0], films.AGAIN):
        for condition in WORDS.conditions:
            if tally.measured(IQ_METRICS[0], condition):
                rows += tally.score_row("piq_score", IQ_METRICS, (condition, films.AGAIN), _normalised)
        for check in checks():
            worse = check.worse[1] if check.worse else ""
            if check.metric == "piq_score" and tally.measured(IQ_METRICS[0], worse):
                gain = tally.combine(IQ_METRICS, (films.MODEL, worse, films.AGAIN), _gain)
                if gain is not None and gain.value is not None:
                    answers.append(answer(tally.body, check, gain))
    if not rows:
        found.left_out.append((f"{NAME}: piq_score", "there is no second take of the same start to normalise by"))
    found.rows[:0], found.answers[:0] = rows, answers


def _normalised(means: Tensor) -> Tensor:
    return combined(means[..., 0, :], means[..., 1, :])


def _gain(means: Tensor) -> Tensor:
    variance = means[..., 2, :]
    return combined(means[..., 0, :], variance) - combined(means[..., 1, :], variance)


def _explain(tally: Tally, found: Findings, has_scene: bool, env: str) -> None:
    """Say which probes could not be grounded."""
    for metric in (*OBJECT_METRICS, "static_drift"):
        if tally.measured(metric, films.MODEL):
            continue
        reason = f"nothing of the kind happened in these takes of environment {env!r}"
        if not has_scene and metric in OBJECT_METRICS:
            reason = f"environment {env!r} does not say what is where in its pictures (data.simulation.GroundTruth)"
        found.left_out.append((f"{NAME}: {metric}", reason))
    if not tally.measured(IQ_METRICS[0], films.SHUFFLED):
        found.left_out.append(
            (f"{NAME}: {films.SHUFFLED}", "other actions need a second start; simulate more episodes")
        )


def _recorded(subject: Subject) -> Findings:
    """Score the recorded windows: no second take, no simulator."""
    group = subject.group
    tally = Tally(study=NAME, body=group.spec.name, times=(), bootstrap=subject.bootstrap)
    for part in walk(subject):
        batch, donor, k = part.batch, part.donor, part.batch.num_context_frames
        told = {films.MODEL: batch}
        if donor is not None:
            told[films.SHUFFLED] = replace(batch, actions=donor.actions, action_mask=donor.action_mask)
        # The last seen picture and what follows: agreeing on the past is no merit.
        real = rearrange(batch.video[:, 0, :, k - 1 :], "b c f h w -> b f h w c").numpy()
        shown = {films.FROZEN: np.repeat(real[:, :1], real.shape[1], 1)}
        for condition, asked in told.items():
            made = subject.sampler(Mode.FORWARD, asked, part.seeds).video
            assert made is not None  # forward always gives video
            pixels = (made[:, 0] * 255).round().clamp(0, 255).to(torch.uint8).cpu()
            shown[condition] = np.concatenate([real[:, :1], rearrange(pixels, "b f c h w -> b f h w c").numpy()], 1)
        known = batch.frame_mask[:, 0, k - 1 :].numpy()
        for i, place in enumerate(part.places):
            for condition, film in shown.items():
                scores = iq_scores(film[i][known[i]], real[i][known[i]])
                for metric, value in zip(IQ_METRICS, scores, strict=True):
                    tally.add(metric, condition, group.episodes[place], value)
    found = _report(tally, list(WORDS.conditions))
    reason = "needs a simulator of this body (--env)"
    found.left_out += [(f"{NAME}: {metric}", reason) for metric in ("piq_score", *OBJECT_METRICS, "static_drift")]
    return found


def _beside(truth: Truth, made: Mapping[str, Pictures], rate: float) -> Film:
    gap = np.full((len(truth.film), truth.side, 4, 3), 128, np.uint8)
    both = np.concatenate([truth.film, gap, made[films.MODEL]], axis=2)
    both = both[:, : both.shape[1] // 2 * 2, : both.shape[2] // 2 * 2]
    return Film(
        caption=f"{truth.take.start}: the simulator, and the model's imagination of the same actions",
        frames=torch.from_numpy(both),
        seconds_a_frame=truth.steps[-1] / rate / (len(truth.steps) - 1),
    )
