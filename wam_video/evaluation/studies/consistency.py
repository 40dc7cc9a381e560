"""Inverse consistency: can the actions be read out of the video that was generated for them, by a model that didn't make it?

A model that makes both video and actions can agree with itself in a code of its own, so the reader must be another one.
What it misreads of the generated video is held against what it misreads of the recording, and against pairs that don't
belong together.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from wam_video.evaluation.metrics import action_scores, action_sums
from wam_video.evaluation.open_loop import Generated, Group, Sampler, donors, window_seed
from wam_video.evaluation.studies.ledger import Figure, Ledger, Part, refused, walk
from wam_video.evaluation.study import Findings, StudyWords, Subject, missing, question
from wam_video.tensors import Batch, Mode

_NAME = "consistency"
_MODES = (Mode.FORWARD, Mode.JOINT, Mode.VIDEO)
_OWN, _OTHER, _STILL = "own_", "_shuffled", "_still"
_NO_READER = (
    "needs --inverse-model FOLDER: another checkpoint than the one that is scored, of the same body and windows"
)
_ASKS = {
    Mode.FORWARD: (
        "Can a stranger read the given actions out of the predicted video?",
        "forward: the actions can't be read out of its video",
    ),
    Mode.JOINT: (
        "Can a stranger read joint's actions out of joint's video?",
        "joint: a stranger can't read its actions out of its video",
    ),
    Mode.VIDEO: (
        "Does a stranger see in the video mode's future what was really done?",
        "video: what a stranger reads out of it has nothing to do with what was done",
    ),
}


class Consistency:
    """The study `consistency`."""

    name = _NAME
    words = StudyWords(
        title="Consistency: can the actions be read out of the generated video?",
        sentence=(
            "A separate inverse model (--inverse-model) reads the actions between the frames of generated video, and they are held "
            "against those that the video was made for: the given ones (forward), those made with it (joint), and those that were "
            "recorded (video: the future is open there, so it can't be perfect). What it misreads of the recording itself is the floor, "
            "another moment's actions are one control, and what it makes of the last frame shown again is the other: so much the past alone "
            "gives away. 'excess' is the error above that floor. The model's own inverse mode "
            "reads, too, but may collude: it can find marks in its own video that no other eye sees; 'collusion' is by how much "
            "better it reads its own video than the stranger does, each above its own floor."
        ),
        metrics={
            "nrmse": "Error of the actions read, in standard deviations (shorter is better)",
            "excess": "Error above that on the recording (shorter is better)",
            "r2": "R2 of the actions read (longer is better)",
            "collusion": "Excess of the stranger over the model's own reading (large: a code of its own)",
        },
        conditions={
            "forward": "forward",
            "joint": "joint",
            "video": "video",
            "real": "recording (floor)",
            "forward_shuffled": "forward, another moment's actions",
            "joint_shuffled": "joint, another moment's actions",
            "video_shuffled": "video, another moment's actions",
            "real_shuffled": "recording, another moment's actions",
            "forward_still": "last frame again, against forward's actions",
            "joint_still": "last frame again, against joint's actions",
            "video_still": "last frame again, against the recorded actions",
            "mean_action": "average action, no model",
            "own_forward": "forward, own model (may collude)",
            "own_joint": "joint, own model (may collude)",
            "own_video": "video, own model (may collude)",
            "own_real": "recording, own model",
        },
    )

    def run(self, subject: Subject) -> Findings:
        """Measure; see `study.Study`."""
        unable = refused(subject)
        modes = [mode for mode in _MODES if mode not in unable]
        readers: dict[str, Sampler] = {}
        if subject.inverse is not None:
            readers[""] = subject.inverse
        if Mode.INVERSE not in unable:
            readers[_OWN] = subject.sampler
        if not subject.group.spec.action_dim or not modes or not readers:
            why = "the body has no actions" if not subject.group.spec.action_dim else _NO_READER
            return missing(_NAME, why)
        ledger = Ledger(_NAME, subject.group.spec.name, subject.group.episodes, subject.bootstrap)
        pairs: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        for part in walk(subject):
            for condition, read, target in _readings(part, subject, modes, readers):
                mask = part.batch.action_mask[..., : subject.group.spec.action_dim]
                ledger.add(condition, action_sums(read, target, mask, subject.group.action_mean))
                pairs.setdefault(condition, []).append((read, target, mask))
        _shuffle(ledger, pairs, subject.group)
        _report(ledger, subject, readers)
        return ledger.findings


def _readings(
    part: Part, subject: Subject, modes: list[Mode], readers: dict[str, Sampler]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield a condition, the actions read, and those that they are held against, for one batch."""
    batch, width = part.batch, subject.group.spec.action_dim
    true = batch.actions[..., :width]
    shown: dict[str, tuple[Batch, Tensor]] = {"real": (batch, true)}
    for mode in modes:
        made = subject.sampler(mode, batch, part.seeds)
        target = true if made.actions is None else made.actions[..., :width].to(true)
        shown[mode.value] = (_showing(batch, made), target)
    # From other noise than what is read was made from: a reader that ignores the video could else repeat joint's actions.
    seeds = [window_seed(subject.seed, f"{key}:read_back") for key in batch.keys]

    def read(reader: Sampler, seen: Batch) -> Tensor:
        actions = reader(Mode.INVERSE, seen, seeds).actions
        assert actions is not None, "the inverse mode gives actions"
        return actions[..., :width].to(true)

    for prefix, reader in readers.items():
        for name, (seen, target) in shown.items():
            yield prefix + name, read(reader, seen), target
    if "" in readers:  # what the past alone gives away: habit is no reading
        guessed = read(readers[""], _standing(batch))
        for mode in modes:
            yield mode.value + _STILL, guessed, shown[mode.value][1]
    yield "mean_action", subject.group.action_mean.to(true).expand_as(true), true


def _showing(batch: Batch, made: Generated) -> Batch:
    """Return the windows with their future replaced by the generated one, as stored pixels."""
    assert made.video is not None, "these modes give video"
    future = rearrange((made.video * 255).round().clamp(0, 255).to(torch.uint8), "b v f c h w -> b v c f h w")
    return replace(batch, video=torch.cat([batch.video[:, :, :, : batch.num_context_frames], future], dim=3))


def _standing(batch: Batch) -> Batch:
    """Return the windows with the last seen frame in place of their future."""
    k = batch.num_context_frames
    past = batch.video[:, :, :, :k]
    future = past[:, :, :, -1:].expand_as(batch.video[:, :, :, k:])
    return replace(batch, video=torch.cat([past, future], dim=3))


def _shuffle(ledger: Ledger, pairs: dict[str, list[tuple[Tensor, Tensor, Tensor]]], group: Group) -> None:
    """Add the stranger's readings held against what belongs to other windows."""
    partner = donors(group.episodes)
    if partner is None:
        return
    for condition in [c for c in pairs if c in ("real", *(m.value for m in _MODES))]:
        read, target, mask = (torch.cat(column) for column in zip(*pairs[condition], strict=True))
        ledger.add(condition + _OTHER, action_sums(read, target[partner], mask & mask[partner], group.action_mean))


def _report(ledger: Ledger, subject: Subject, readers: dict[str, Sampler]) -> None:
    conditions = list(Consistency.words.conditions)
    nrmse, r2 = _figures(subject.group)
    ledger.rows([nrmse, r2, *_each(subject.group)], conditions)
    for prefix in readers:
        for mode in (m.value for m in _MODES if prefix + m.value in ledger):
            ledger.contrast(replace(nrmse, metric="excess"), prefix + mode, prefix + mode, f"{prefix}real")
    if "" not in readers:
        ledger.leave_out("consistency", f"{_NO_READER}; the model's own readings alone may be collusion")
        return
    if "real_shuffled" not in ledger:
        ledger.leave_out("consistency: shuffled", "there is a single window, and none to take other actions from")
    for mode in (m for m in _MODES if m.value in ledger):
        better, worse = (_NAME, mode.value), (_NAME, mode.value + _OTHER)
        asks, flag = _ASKS[mode]
        ledger.ask(question(f"consistency_{mode.value}", "nrmse", better, worse, asks=asks, flag=flag), nrmse)
        beyond = question(
            f"consistency_{mode.value}_beyond_past", "nrmse", better, (_NAME, mode.value + _STILL),
            asks="Does the video tell more of them than the last frame shown again?",
            flag=f"{mode.value}: its video tells no more of the actions than the last seen frame",
        )  # fmt: skip
        ledger.ask(beyond, nrmse)
        if _OWN + mode.value in ledger:
            _collusion(ledger, mode, subject.group)
    check = question(
        "consistency_reader", "nrmse", (_NAME, "real"), (_NAME, "mean_action"),
        asks="Can the stranger read real video at all?", flag="the separate inverse model can't read real video: its figures say nothing",
    )  # fmt: skip
    ledger.ask(check, nrmse)


def _collusion(ledger: Ledger, mode: Mode, group: Group) -> None:
    """Report (stranger's excess) - (own excess); its sums are those of four conditions side by side."""
    nrmse, _ = _figures(group)
    names = (mode.value, "real", _OWN + mode.value, f"{_OWN}real")
    stacked = torch.stack([ledger.sums(name) for name in names], dim=1)

    def surplus(sums: Float[Tensor, "*n 4 k ta da"]) -> Float[Tensor, "*n"]:
        a, floor, own, own_floor = (nrmse.score(sums.select(-4, i)) for i in range(4))
        return (a - floor) - (own - own_floor)

    ledger.add(f"_{mode.value}", stacked)
    ledger.row(Figure(metric="collusion", unit="std", score=surplus), f"_{mode.value}", shown_as=mode.value)


def _figures(group: Group) -> tuple[Figure, Figure]:
    def overall(metric: str) -> Figure:
        return Figure(
            metric=metric,
            unit="std" if metric == "nrmse" else "",
            score=lambda sums: action_scores(sums, group.action_scale)[0][metric],
            more_is_better=metric == "r2",
        )

    return overall("nrmse"), overall("r2")


def _each(group: Group) -> list[Figure]:
    """Return the mean absolute error of each dimension, in its own units."""
    spec = group.spec
    names = spec.action_names or tuple(f"action {i}" for i in range(spec.action_dim))
    units = spec.action_units or ("",) * spec.action_dim
    return [
        Figure(
            metric="mae",
            unit=unit,
            dimension=name,
            score=lambda sums, i=i: action_scores(sums, group.action_scale)[1]["mae"][..., i],
            more_is_better=False,
        )
        for i, (name, unit) in enumerate(zip(names, units, strict=True))
    ]
