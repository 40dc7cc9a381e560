"""Smoothness and limits: do the chunks that the model plans move as recorded ones do?"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.data.manifest import load_manifest
from wam_video.data.normalize import recorded_actions as recorded_stats
from wam_video.data.reader import load_npy, read_sample
from wam_video.evaluation.open_loop import window_seed
from wam_video.evaluation.studies.ledger import Figure, Ledger, Part, refused, walk
from wam_video.evaluation.studies.motion import IDLE, MOTION_SUMS, OVERSHOOT, Limits, motion_sums
from wam_video.evaluation.study import Findings, StudyWords, Subject, missing, question
from wam_video.tensors import Mode

SLACK = 5.0
"""Per cent of values that may lie beyond a limit in excess of the recording's own."""

MIN_STEP = 0.2
"""Plans whose steps are shorter than this share of the recorded ones count as standing still."""

MAX_CLIPS = 400
"""Training clips, evenly spread, from which the recorded speeds are taken."""

_NAME = "smoothness"
_MODES = (Mode.POLICY, Mode.JOINT)


def _figure(metric: str, unit: str, *, factor: float = 1.0, root: bool = False) -> Figure:
    place = MOTION_SUMS.index(metric)

    def score(sums: Float[Tensor, "*n m 2"]) -> Float[Tensor, "*n"]:
        mean = sums[..., place, 0] / sums[..., place, 1]
        return factor * (mean.sqrt() if root else mean)

    return Figure(metric=metric, unit=unit, score=score, more_is_better=metric in ("ldlj", "step"))


_FIGURES = (
    _figure("outside", "%", factor=100.0),
    _figure("velocity_beyond", "%", factor=100.0),
    _figure("acceleration_beyond", "%", factor=100.0),
    _figure("jerk", "std/s3", root=True),
    _figure("ldlj", ""),
    _figure("seam", "steps"),
    _figure("step", "steps"),
    _figure("idle", "%", factor=100.0),
)
_BY_NAME = {figure.metric: figure for figure in _FIGURES}


class Smoothness:
    """The study `smoothness`."""

    name = _NAME
    words = StudyWords(
        title="Smoothness: do the planned actions move as recorded ones do?",
        sentence=(
            "The action chunks of policy and joint over recorded moments, beside the recorded actions themselves (the reference: as "
            "near to it as can be is right) and white noise of the same spread (the control). The signal is the action as it is stored, "
            f"in training standard deviations; speeds are compared with the central 99.9 % of the training split. The seam is the jump "
            f"from the action under way to the first of the chunk. A plan passes the limits if at most {SLACK:g} % more of its values than "
            "of the recorded ones lie beyond."
        ),
        metrics={
            "outside": f"Outside the training range by {100 * OVERSHOOT:g} % of it or more, % of values (shorter is better)",
            "velocity_beyond": "Velocity beyond the recorded 99.9 %, % of values (shorter is better)",
            "acceleration_beyond": "Acceleration beyond the recorded 99.9 %, % of values (shorter is better)",
            "jerk": "RMS jerk, standard deviations / s^3 (near the recording is right)",
            "ldlj": "Log dimensionless jerk (higher is smoother; near the recording is right)",
            "seam": "Jump at the seam, in mean recorded steps (near the recording is right)",
            "step": "Mean step, in mean recorded steps (near the recording is right)",
            "idle": f"Steps below {IDLE:g} of the mean recorded one, % (near the recording is right)",
        },
        conditions={
            "policy": "policy",
            "joint": "joint",
            "recorded": "recorded (reference)",
            "white_noise": "white noise, no model",
        },
    )

    def run(self, subject: Subject) -> Findings:
        """Measure; see `study.Study`."""
        spec, group = subject.group.spec, subject.group
        modes = [mode for mode in _MODES if mode not in refused(subject)]
        if not spec.action_dim or not modes:
            return missing(_NAME, "the model plans no actions for this body")
        limits = _limits(subject)
        if limits is None:
            return missing(_NAME, "the training split of these data holds no recorded actions of this body that change")
        ledger = Ledger(_NAME, spec.name, group.episodes, subject.bootstrap)
        for part in walk(subject):
            mask = part.batch.action_mask[..., : spec.action_dim].all(dim=-1)
            previous = _previous(subject, part)
            for condition, chunk in _chunks(subject, part, modes).items():
                ledger.add(condition, motion_sums(chunk, mask, previous, limits))
        ledger.rows(_FIGURES, list(self.words.conditions))
        for mode in modes:
            _ask(ledger, mode.value)
        return ledger.findings


def _chunks(subject: Subject, part: Part, modes: Sequence[Mode]) -> dict[str, Float[Tensor, "b ta da"]]:
    group, width = subject.group, subject.group.spec.action_dim
    recorded = part.batch.actions[..., :width]
    chunks = {"recorded": recorded}
    for mode in modes:
        made = subject.sampler(mode, part.batch, part.seeds).actions
        assert made is not None, "policy and joint give actions"
        chunks[mode.value] = made[..., :width]
    noise = torch.stack(
        [
            torch.randn(
                recorded.shape[1:], generator=torch.Generator().manual_seed(window_seed(subject.seed, f"{key} white"))
            )
            for key in part.batch.keys
        ]
    )
    return chunks | {"white_noise": group.action_mean + group.action_scale * noise}


def _previous(subject: Subject, part: Part) -> Float[Tensor, "b da"] | None:
    """Return the action before each window; NaN where the recording starts there and the mean stands in its place."""
    group = subject.group
    if group.previous_actions is None:
        return None
    rows = group.previous_actions[list(part.places)].double()
    made_up = (rows == group.action_mean.double()).all(dim=-1, keepdim=True)
    return torch.where(made_up, torch.nan, rows)


def _limits(subject: Subject) -> Limits | None:
    """Return what the recorded actions of the training split do; None if there are none, or none that change."""
    group = subject.group
    stats = recorded_stats(subject.pipe.processor.config["stats"].get(group.spec.name, {}))
    recorded = recorded_actions(str(subject.data.facts["path"]), group.spec.name)
    if not stats or not recorded or not bool((group.action_scale > 0).any()):
        return None
    return Limits.of(
        recorded,
        rate=group.spec.action_rate,
        centre=group.action_mean,
        scale=group.action_scale,
        extremes=torch.tensor([stats["min"], stats["max"]], dtype=torch.float64),
    )


def recorded_actions(folder: str, body: str) -> list[Float[Tensor, "t da"]]:
    """Read the actions of training clips of a body, at most `MAX_CLIPS` of them, evenly spread.

    Raises:
        DataError: The folder or a shard can't be read.
    """
    entries = [e for e in load_manifest(folder).split("train") if e[1].embodiment == body and e[1].num_actions > 2]
    if not entries:
        return []
    places = torch.linspace(0, len(entries) - 1, min(MAX_CLIPS, len(entries)), dtype=torch.float64).round().long()
    return [
        torch.from_numpy(load_npy(read_sample(folder, shard, sample)["actions.npy"], f"actions of {sample.key!r}"))
        for shard, sample in (entries[i] for i in places.tolist())
    ]


def _ask(ledger: Ledger, mode: str) -> None:
    def key(condition: str) -> tuple[str, str]:
        return _NAME, condition

    rough = question(
        f"smoothness_{mode}_jerk", "jerk", key(mode), key("white_noise"),
        asks=f"Are {mode}'s actions smoother than noise?", flag=f"{mode}'s actions are as rough as noise",
    )  # fmt: skip
    ledger.ask(rough, _BY_NAME["jerk"])
    for metric, what in (("outside", "the range of training"), ("velocity_beyond", "the recorded speeds")):
        check = question(
            f"smoothness_{mode}_{metric}", metric, key(mode), key("recorded"),
            asks=f"Do {mode}'s actions stay within {what}?", flag=f"{mode}'s actions leave {what}",
        )  # fmt: skip
        ledger.ask(check, _BY_NAME[metric], margin=SLACK)
    moves = question(
        f"smoothness_{mode}_moves", "step", key(mode), key("recorded"),
        asks=f"Does {mode} plan to move, by {100 * MIN_STEP:g} % of the recorded steps or more?", flag=f"{mode} plans to stand still",
    )  # fmt: skip
    ledger.ask(moves, _BY_NAME["step"], share=MIN_STEP)
