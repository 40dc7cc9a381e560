"""Action following: does the predicted video do what the actions say?

The same windows go through the forward mode with the recorded actions and with wrong ones, from the same noise. A model that
follows is nearer to the recording with the true actions than with any others (the difference is Delta PSNR), and its
video changes more with the actions than with the noise.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from wam_video.data.processor import Origin
from wam_video.evaluation.clips import strip
from wam_video.evaluation.metrics import video_scores, video_sums
from wam_video.evaluation.open_loop import Generated, window_seed
from wam_video.evaluation.studies.ledger import Figure, Ledger, Part, refused, walk
from wam_video.evaluation.study import Film, Findings, StudyWords, Subject, missing, question
from wam_video.tensors import Batch, Mode

NUDGE = 0.25
"""How far actions are moved for the sensitivity, in training standard deviations of each dimension."""

_NAME, _TRUE = "following", (("following", "model"))
_FILMS = 2
_FILMED = ("model", "shuffled", "flipped")

_CHANGE = Figure(metric="change", unit="%", score=lambda s: 100 * (s[..., 0] / s[..., 1]).sqrt())
_SENSITIVITY = Figure(metric="sensitivity", unit="%", score=lambda s: 100 / NUDGE * (s[..., 0] / s[..., 1]).sqrt())
_PSNR = Figure(metric="psnr_moving", unit="dB", score=lambda s: video_scores(s)["psnr_moving"])
_DELTA = replace(_PSNR, metric="delta_psnr")

_WRONG = {
    "shuffled": ("those of another moment", "forward is as right with another moment's actions"),
    "hold": ("holding still", "forward is as right with a body that holds still"),
    "zero": ("the middle of the range", "forward is as right with actions from the middle of the range"),
    "flipped": ("their mirror image", "forward is as right with mirrored actions"),
}


class Following:
    """The study `following`."""

    name = _NAME
    words = StudyWords(
        title="Following: does the video do what the actions say?",
        sentence=(
            "The forward mode gets the recorded actions, and then wrong ones, from the same noise. The true actions must give the "
            "video that is nearest to the recording (Delta PSNR: by so much), and another chunk of actions must change the video "
            "more than other noise does. Where the simulator is named by --env, 'holding still' is its own action for that; "
            "without one it is zero in the model's own units, the middle of the range of the training actions."
        ),
        metrics={
            "psnr_moving": "PSNR of moving pixels, dB (longer is better)",
            "delta_psnr": "Delta PSNR: true actions over wrong ones, dB (longer is better)",
            "change": "Change of the video, % of the range (actions must move it more than noise)",
            "sensitivity": "Sensitivity: change of the video for one standard deviation of the actions, % of the range",
        },
        conditions={
            "model": "true actions",
            "shuffled": "another moment's actions",
            "hold": "holding still (the simulator's action)",
            "zero": "zero in the model's units",
            "flipped": "mirrored about the mean action",
            "nudged": f"moved by {NUDGE:g} std",
            "other_noise": "same actions, other noise",
            "copy_last": "last frame again, no model",
        },
    )

    def run(self, subject: Subject) -> Findings:
        """Measure; see `study.Study`."""
        if Mode.FORWARD in refused(subject):
            return missing(_NAME, "the model has no forward mode for this body")
        spec, group = subject.group.spec, subject.group
        video = Ledger(_NAME, spec.name, group.episodes, subject.bootstrap)
        change = Ledger(_NAME, spec.name, group.episodes, subject.bootstrap)
        still, stay = _still(subject)
        alter: dict[str, Callable[[Part], Batch | None]] = {
            "model": lambda part: part.batch,
            "shuffled": _shuffled,
            still: lambda part: _with(part.batch, stay(part.batch)),
            "flipped": lambda part: _flipped(part.batch, subject),
            "nudged": lambda part: _nudged(part.batch, subject),
        }
        films: list[Film] = []
        times: list[float] = []
        for part in walk(subject):
            made = {name: subject.sampler(Mode.FORWARD, b, part.seeds) for name, f in alter.items() if (b := f(part))}
            again = [window_seed(subject.seed, f"{key} again") for key in part.batch.keys]
            made["other_noise"] = subject.sampler(Mode.FORWARD, part.batch, again)
            times = part.batch.frame_times[0, part.batch.num_context_frames :].tolist()
            _measure(part.batch, made, video, change)
            if len(films) < _FILMS:
                films.append(_film(part.batch, made))
        _report(video, change, still, times)
        found = video.findings
        return Findings(
            rows=found.rows + change.findings.rows,
            answers=found.answers + change.findings.answers,
            left_out=found.left_out + change.findings.left_out,
            films=films,
        )


def _measure(batch: Batch, made: dict[str, Generated], video: Ledger, change: Ledger) -> None:
    k = batch.num_context_frames
    frames = rearrange(batch.video, "b v c f h w -> b v f c h w").float() / 255
    last, future = frames[:, :, k - 1], frames[:, :, k:]
    mask = batch.frame_mask[:, :, k:] & batch.frame_mask[:, :, k - 1 : k]
    for name in (n for n in made if n not in ("nudged", "other_noise")):
        video.add(name, video_sums(_video(made[name]), future, last, mask))
    video.add("copy_last", video_sums(last.unsqueeze(2).expand_as(future), future, last, mask))
    true = _video(made["model"])
    for name in (n for n in made if n != "model"):
        change.add(name, _difference(_video(made[name]), true, mask))


def _video(made: Generated) -> Tensor:
    assert made.video is not None, "the forward mode gives video"
    return made.video


def _difference(a: Tensor, b: Tensor, mask: Tensor) -> Float[Tensor, "b 2"]:
    """Return the added squared difference of two videos' recorded frames, and how many values it is of."""
    squared = reduce((a - b).double().square(), "b v f c h w -> b v f", "sum")
    count = torch.full_like(squared, float(a[0, 0, 0].numel()))
    return torch.stack([reduce(x * mask, "b v f -> b", "sum") for x in (squared, count)], dim=-1)


def _report(video: Ledger, change: Ledger, still: str, times: list[float]) -> None:
    conditions = ("model", "shuffled", still, "flipped", "copy_last")
    curves = [
        replace(_PSNR, time_s=round(t, 6), score=lambda s, i=i: video_scores(s[..., i : i + 1])["psnr_moving"])
        for i, t in enumerate(times)
    ]
    video.rows([_PSNR, *curves], conditions)
    for wrong in (c for c in ("shuffled", still, "flipped") if c in video):
        video.contrast(_DELTA, wrong, "model", wrong)
        what, flag = _WRONG[wrong]
        asks = f"Are the true actions better than {what}?"
        video.ask(
            question(f"following_beats_{wrong}", "psnr_moving", _TRUE, (_NAME, wrong), asks=asks, flag=flag), _PSNR
        )
    if "shuffled" not in video:
        video.leave_out("following: shuffled", "there is a single window, and none to take other actions from")
    change.rows([_CHANGE], ("shuffled", still, "flipped", "nudged", "other_noise"))
    change.row(_SENSITIVITY, "nudged")
    change.row(_SENSITIVITY, "other_noise")
    check = question(
        "following_answers_actions", "change", (_NAME, "shuffled"), (_NAME, "other_noise"),
        asks="Do other actions change the video more than other noise does?",
        flag="the video answers to the noise, not to the actions",
    )  # fmt: skip
    change.ask(check, _CHANGE)


def _with(batch: Batch, actions: Float[Tensor, "b ta da"]) -> Batch:
    return replace(batch, actions=torch.where(batch.action_mask, actions.to(batch.actions), 0.0))


def _shuffled(part: Part) -> Batch | None:
    if part.donor is None:
        return None
    return replace(part.batch, actions=part.donor.actions, action_mask=part.donor.action_mask)


def _flipped(batch: Batch, subject: Subject) -> Batch:
    mean = _wide(subject.group.action_mean, batch)
    return _with(batch, 2 * mean - batch.actions)


def _nudged(batch: Batch, subject: Subject) -> Batch:
    """Move the whole chunk to one side in each dimension, to which one the window decides."""
    scale, sides = subject.group.action_scale, []
    for key in batch.keys:
        noise = torch.Generator().manual_seed(window_seed(subject.seed, f"{key} nudge"))
        sides.append(2 * torch.randint(2, (1, len(scale)), generator=noise) - 1)
    return _with(batch, batch.actions + _wide(NUDGE * scale * torch.stack(sides), batch))


def _wide(x: Tensor, batch: Batch) -> Tensor:
    return torch.nn.functional.pad(x.to(batch.actions), (0, batch.actions.shape[-1] - x.shape[-1]))


def _still(subject: Subject) -> tuple[str, Callable[[Batch], Tensor]]:
    """Return the condition of a body that stays where it is, and its actions: as the simulator has them, or else the middle."""
    width = subject.group.spec.action_dim
    if subject.open_environment is not None:
        seen = []
        with closing(subject.open_environment()) as world:
            for seed in range(3):
                world.reset(world.tasks[0], [seed])
                seen.append((torch.as_tensor(world.hold()), torch.as_tensor(world.state())[:width]))
        if all(torch.equal(hold, seen[0][0]) for hold, _ in seen):
            return "hold", lambda batch: _wide(seen[0][0].expand(len(batch), 1, -1), batch)
        if all(torch.equal(hold, state) for hold, state in seen):  # actions are places to go to
            return "hold", lambda batch: _wide(batch.state[:, None, :width], batch)

    def middle(batch: Batch) -> Tensor:
        processor = subject.pipe.processor
        zeros = torch.zeros(len(batch), 1, processor.max_action_dim)
        every = torch.ones(len(batch), dtype=torch.bool)
        origin = Origin(
            state=batch.state, mask=batch.state_mask, rows=every
        )  # for actions that are told relative to it
        bodies = processor.indices(batch.embodiments)
        return _wide(processor.denormalize_actions(zeros, bodies, origin)[..., :width], batch)

    return "zero", middle


def _film(batch: Batch, made: dict[str, Generated]) -> Film:
    """Show the first window of a batch: the recording, and what each kind of actions makes of it."""
    k = batch.num_context_frames
    recorded = rearrange(batch.video[0], "v c f h w -> f (v h) w c")
    panels, names = [recorded], ["recorded"]
    for name in (n for n in _FILMED if n in made):
        pixels = (_video(made[name])[0] * 255).round().clamp(0, 255).to(torch.uint8)
        panels.append(torch.cat([recorded[:k], rearrange(pixels, "v f c h w -> f (v h) w c")]))
        names.append(Following.words.conditions[name])
    frames = strip(panels, k, [False] + [True] * (len(panels) - 1))
    return Film(
        caption=f"{batch.keys[0]}: {' | '.join(names)}",
        frames=torch.from_numpy(frames),
        seconds_a_frame=float((batch.frame_times[0, -1] - batch.frame_times[0, k - 1]) / max(1, len(recorded) - k)),
    )
