"""Drift: what becomes of the picture when the forward mode lives on its own frames for up to 200 of them.

The floor is the last real frame held; the ceiling is the same model set right by the recording at every window. Where nothing
happens, the picture must not change either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from wam_video.errors import ConfigError
from wam_video.evaluation import clips
from wam_video.evaluation.drift_scores import UNITS, change_sums, drift_scores, drift_sums
from wam_video.evaluation.intervals import estimate
from wam_video.evaluation.long_rollout import Grid, RollConfig, Stretch, make_grid, roll, told_of
from wam_video.evaluation.scores import Answer, Row
from wam_video.evaluation.stretches import recorded_stretches, simulated_stretches, still_stretches
from wam_video.evaluation.study import Film, Findings, StudyWords, Subject, answer, missing, question
from wam_video.inference.checks import unanswered
from wam_video.tensors import Mode

NUM_FRAMES = 200
"""That a rollout draws, where the recording is as long."""
NUM_STILL_S = 8.0
"""Seconds for which nothing happens."""
MAX_GROWTH = 2.0
"""What stands still may go wrong by this many times as much as in one window, and by one grey level."""
_GREY_LEVEL = 100 / 255
MIN_SHARPNESS = 0.5
"""Blurred or noisy beyond twice or half of the recording's sharpness counts as spoilt."""
MAX_STILL = 0.2
"""Share of the real change in motion that a standing scene may show."""

_NAME, _OWN, _STEP, _HELD, _OTHER = "drift", "rollout", "single_step", "held", "shuffled_actions"
_STILL, _MOVING = "still_real", "moving_real"
_BINS, _FILMS, _FILM_FRAMES = 20, 2, 40

_WORDS = StudyWords(
    title="Drift: how long can it live on its own frames?",
    sentence="The forward mode is told what was really done and reads its own last frames, not the recording's, again and again. "
    "Held against it: the last real frame, never changed; the same model that is given real frames at every window; and the same "
    "rollout that is told another episode's actions. What moved is what differs from the last real frame; the body's state is not told after the start.",
    metrics={
        "psnr_moving": "Pixels that moved, dB (longer is better)",
        "psnr": "Whole picture, dB (longer is better)",
        "static_drift": "What stands still is off by, % of the range (shorter is better)",
        "sharpness": "Sharpness against the recording (1 is right)",
        "brightness_drift": "Brightness is off by, % of the range (shorter is better)",
        "still_change": "Change while nothing happens, % of the range a second (shorter is better)",
    },
    conditions={
        _OWN: "on its own frames",
        _STEP: "one window at a time, on real frames",
        _OTHER: "own frames, another episode's actions",
        _HELD: "last real frame held",
        _STILL: "the real picture, nothing happening",
        _MOVING: "the real picture, in motion",
    },
)

_BEATS_HELD = question(
    "drift_beats_held", "psnr_moving", (_NAME, _OWN), (_NAME, _HELD),
    asks="On its own frames, is what moves still closer than in the last real one?",
    flag="on its own frames forward is no better than the last real frame",
)  # fmt: skip
_USES_ACTIONS = question(
    "drift_uses_actions", "psnr_moving", (_NAME, _OWN), (_NAME, _OTHER),
    asks="On its own frames, does it still follow what is done?",
    flag="on its own frames forward comes out the same whatever is done",
)  # fmt: skip
_KEEPS_STATIC = question(
    "drift_keeps_static", "static_drift", (_NAME, _OWN), (_NAME, _STEP),
    asks="Does what stands still go wrong less than twice as much as in one window?",
    flag="what stands still wears away on the model's own frames",
)  # fmt: skip
_STANDS_STILL = question(
    "drift_stands_still", "still_change", (_NAME, _OWN), (_NAME, _MOVING),
    asks="While nothing happens, does the picture change less than a fifth of what motion does?",
    flag="the picture goes on changing while nothing happens",
)  # fmt: skip
_STAYS_SHARP = question(
    "drift_stays_sharp", "sharpness", (_NAME, _OWN), (_NAME, "half_or_twice"),
    asks="Does the picture stay between half and twice as sharp as the recording?",
    flag="the picture becomes blurred or noisy on the model's own frames",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Tracks:
    """What was drawn, by condition, for each stretch, and what was true."""

    made: Mapping[str, list[UInt8[Tensor, "f v c h w"]]]
    true: list[UInt8[Tensor, "f v c h w"]]
    last: list[UInt8[Tensor, "1 v c h w"]]
    """The frame at the start."""
    episodes: tuple[str, ...]


class Drift:
    """Long rollouts of the forward mode over recorded or simulated episodes."""

    name = _NAME
    words = _WORDS

    def __init__(self, num_frames: int = NUM_FRAMES) -> None:
        self._num_frames = num_frames

    def run(self, subject: Subject) -> Findings:
        """Measure.

        Raises:
            WamError: The simulator or the data can't be used.
        """
        if Mode.FORWARD in unanswered(subject.pipe.transformer.attention):
            return missing(self.name, "the model's attention can't answer 'forward'")
        if not subject.group.spec.action_dim:
            return missing(self.name, "the recordings hold no actions")
        try:
            grid = make_grid(subject.pipe.processor.window)
        except ConfigError as error:
            return missing(self.name, str(error))
        stretches = self._stretches(subject, grid)
        fit = [s for s in stretches if grid.reach(len(s.places)) >= grid.num_future]
        if not fit:
            return missing(
                self.name, f"no recording is longer than a window ({grid.num_future * grid.step_s:g} s after the first)"
            )
        findings = Findings()
        tracks = self._tracks(subject, fit, grid)
        self._say_how_long(subject, tracks, grid, findings)
        _add_curves(subject, tracks, grid, findings)
        findings.films += [_film(tracks, i, grid) for i in range(min(_FILMS, len(fit)))]
        self._add_still(subject, fit, tracks, grid, findings)
        return findings

    def _stretches(self, subject: Subject, grid: Grid) -> list[Stretch]:
        count = subject.options.episodes
        if subject.open_environment is None:
            return recorded_stretches(subject.data.dataset, subject.group.spec, grid, count)
        window = subject.pipe.processor.window
        return simulated_stretches(
            subject.open_environment, window, grid, count=count, num_frames=self._num_frames, seed=subject.seed
        )

    def _tracks(self, subject: Subject, stretches: Sequence[Stretch], grid: Grid) -> _Tracks:
        lengths = [min(self._num_frames, grid.reach(len(s.places))) for s in stretches]
        true = [s.frames(grid.ticks(n)) for s, n in zip(stretches, lengths, strict=True)]
        last = [s.frames([grid.start]) for s in stretches]
        made = {
            _OWN: roll(subject.sampler, stretches, lengths, grid, _config(subject)),
            _STEP: roll(subject.sampler, stretches, lengths, grid, _config(subject, feed_back=False)),
            _HELD: [first.expand_as(x) for first, x in zip(last, true, strict=True)],
        }
        if len(stretches) > 1:
            others = [told_of(s, donor) for s, donor in zip(stretches, [*stretches[1:], stretches[0]], strict=True)]
            made[_OTHER] = roll(subject.sampler, others, lengths, grid, _config(subject))
        return _Tracks(made=made, true=true, last=last, episodes=tuple(s.episode for s in stretches))

    def _say_how_long(self, subject: Subject, tracks: _Tracks, grid: Grid, findings: Findings) -> None:
        lengths = sorted(len(x) for x in tracks.true)
        if lengths[0] < self._num_frames:
            kind = "recordings" if subject.open_environment is None else "simulated episodes"
            hint = "; simulated ones are as long as needed: --env" if subject.open_environment is None else ""
            reason = (
                f"the {len(lengths)} {kind} end after {lengths[0]} to {lengths[-1]} of {self._num_frames} frames "
                f"({lengths[-1] * grid.step_s:g} s at most){hint}"
            )
            findings.left_out.append((f"drift over {self._num_frames} frames", reason))

    def _add_still(
        self, subject: Subject, stretches: Sequence[Stretch], tracks: _Tracks, grid: Grid, findings: Findings
    ) -> None:
        """Measure how much the picture changes while nothing happens, and while something does."""
        second = max(1, round(1 / grid.step_s))
        count = max(round(NUM_STILL_S / grid.step_s), second)
        if subject.open_environment is None:
            group, fetch = subject.group, subject.data.dataset.batch
            moments = [(s.episode, s.fetch, place) for s in stretches for place in s.places]
            moments += [(episode, fetch, i) for episode, i in zip(group.episodes, group.indices, strict=True)]
            still = still_stretches(moments, grid, count=subject.options.episodes, num_frames=count)
        else:
            still = simulated_stretches(
                subject.open_environment, subject.pipe.processor.window, grid,
                count=subject.options.episodes, num_frames=count, seed=subject.seed, still=True,
            )  # fmt: skip
        if not still:
            reason = "in the windows and the longest recordings there is no moment in which nothing moves; name a simulator: --env"
            findings.left_out.append(("still_change", reason))
            return
        lengths = [min(count, grid.reach(len(s.places))) for s in still]
        made = roll(subject.sampler, still, lengths, grid, _config(subject))
        true = [s.frames([grid.start, *grid.ticks(n)]) for s, n in zip(still, lengths, strict=True)]
        own = [torch.cat([t[:1], m]) for t, m in zip(true, made, strict=True)]
        moving = [torch.cat([first, x]) for first, x in zip(tracks.last, tracks.true, strict=True)]
        names = tuple(s.episode for s in still)
        found = {
            _OWN: (own, names), _STILL: (true, names), _MOVING: (moving, tracks.episodes),
        }  # fmt: skip
        for condition, (videos, episodes) in found.items():
            sums = torch.stack([change_sums(video, second) for video in videos])
            (e,) = estimate(sums, episodes, lambda x: (x[..., 0] / x[..., 1])[..., None], subject.bootstrap)
            if e.value is not None:
                findings.rows.append(_row(subject, condition, "still_change", e))
        findings.answers += _still_answer(subject, own, moving, (names, tracks.episodes), second)


def _config(subject: Subject, *, feed_back: bool = True) -> RollConfig:
    return RollConfig(feed_back=feed_back, seed=subject.seed, batch_size=subject.batch_size)


def _row(subject: Subject, condition: str, metric: str, found: object, time_s: float | None = None) -> Row:
    return Row(
        embodiment=subject.group.spec.name, mode=_NAME, condition=condition, metric=metric, unit=UNITS[metric],
        time_s=time_s, estimate=found,  # type: ignore[arg-type]
    )  # fmt: skip


def _add_curves(subject: Subject, tracks: _Tracks, grid: Grid, findings: Findings) -> None:
    """Score over all frames, and over each of the stages that at least half of the episodes live to see."""
    sums = {
        condition: [drift_sums(*x) for x in zip(videos, tracks.true, tracks.last, strict=True)]
        for condition, videos in tracks.made.items()
    }
    longest = max(len(x) for x in tracks.true)
    edges = torch.linspace(0, longest, min(_BINS, longest) + 1).round().int().tolist()
    metrics = list(UNITS)[:-1]

    def statistic(x: Tensor) -> Tensor:
        found = drift_scores(x)
        return torch.stack([found[m] for m in metrics], dim=-1)

    for condition, parts in sums.items():
        stages: list[tuple[float | None, int, int]] = [(None, 0, 0)]
        stages += [(round(b * grid.step_s, 6), a, b) for a, b in pairwise(edges)]
        for time_s, a, b in stages:
            alive = [i for i, part in enumerate(parts) if part.shape[1] >= b]
            if 2 * len(alive) < len(parts):
                continue
            pooled = torch.stack([parts[i][:, a : b or None].sum(dim=1) for i in alive])
            found = estimate(pooled, [tracks.episodes[i] for i in alive], statistic, subject.bootstrap)
            findings.rows += [
                _row(subject, condition, m, e, time_s)
                for m, e in zip(metrics, found, strict=True)
                if e.value is not None
            ]
    findings.answers += _answers(subject, {k: torch.stack([p.sum(dim=1) for p in v]) for k, v in sums.items()}, tracks)


def _answers(subject: Subject, sums: Mapping[str, Float[Tensor, "n k"]], tracks: _Tracks) -> list[Answer]:
    cases = (
        (_BEATS_HELD, _HELD, lambda a, b: a["psnr_moving"] - b["psnr_moving"]),
        (_USES_ACTIONS, _OTHER, lambda a, b: a["psnr_moving"] - b["psnr_moving"]),
        (_KEEPS_STATIC, _STEP, lambda a, b: MAX_GROWTH * b["static_drift"] + _GREY_LEVEL - a["static_drift"]),
        (_STAYS_SHARP, _OWN, lambda a, b: torch.minimum(a["sharpness"], 1 / a["sharpness"]) - MIN_SHARPNESS),
    )
    answers = []
    for check, other, advantage in cases:
        if other not in sums:
            continue

        def statistic(x: Tensor, advantage=advantage) -> Tensor:
            a, b = (drift_scores(part) for part in x.unbind(dim=-2))
            return advantage(a, b)[..., None]

        (e,) = estimate(torch.stack([sums[_OWN], sums[other]], dim=1), tracks.episodes, statistic, subject.bootstrap)
        if e.value is not None:
            answers.append(answer(subject.group.spec.name, check, e))
    return answers


def _still_answer(
    subject: Subject,
    own: Sequence[Tensor],
    moving: Sequence[Tensor],
    episodes: tuple[Sequence[str], Sequence[str]],
    second: int,
) -> list[Answer]:
    """Compare the two sets of episodes, which need not be the same: one row each, zeros for the other set's sums."""
    zero = torch.zeros(2, dtype=torch.float64)
    rows = [torch.stack([change_sums(v, second), zero]) for v in own]
    rows += [torch.stack([zero, change_sums(v, second)]) for v in moving]

    def statistic(x: Tensor) -> Tensor:
        mine, real = (x[..., i, 0] / x[..., i, 1] for i in range(2))
        return (MAX_STILL * real - mine)[..., None]

    (e,) = estimate(torch.stack(rows), [*episodes[0], *episodes[1]], statistic, subject.bootstrap)
    return [answer(subject.group.spec.name, _STANDS_STILL, e)] if e.value is not None else []


def _film(tracks: _Tracks, place: int, grid: Grid) -> Film:
    """Put the recording, the rollout and the single blocks next to each other, thinned to what a page can hold."""
    true = tracks.true[place]
    every = max(1, -(-len(true) // _FILM_FRAMES))

    def panel(video: Tensor) -> UInt8[Tensor, "f h w 3"]:
        shown = torch.cat([tracks.last[place], video[every - 1 :: every]])
        return rearrange(shown, "f v c h w -> f (v h) w c")

    panels = [panel(true), panel(tracks.made[_OWN][place]), panel(tracks.made[_STEP][place])]
    strip = clips.strip(panels, 1, (False, True, True))
    seconds = len(true) * grid.step_s
    caption = f"{tracks.episodes[place]}: recorded; on its own frames; one window at a time. {seconds:g} s, thinned to {len(strip)} frames"
    return Film(caption=caption, frames=torch.from_numpy(strip), seconds_a_frame=every * grid.step_s)
