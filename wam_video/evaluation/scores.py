"""From sums to figures: rows with intervals, and the questions that a reader has, answered by differences of rows."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from wam_video.evaluation.intervals import BootstrapConfig, Estimate, estimate
from wam_video.evaluation.metrics import action_scores, video_scores
from wam_video.evaluation.open_loop import CONTROL, HIDDEN, Group, Key, Measured
from wam_video.tensors import Mode

VIDEO_METRICS = ("psnr", "psnr_moving", "psnr_static", "ssim", "motion_ratio")
UNITS = {"psnr": "dB", "psnr_moving": "dB", "psnr_static": "dB"}
MIN_MOTION = 0.2
"""A generated video whose moving pixels change less than this share of what was recorded counts as frozen."""
MAX_OFF_SCALE = 0.5
"""Actions that are off in mean or scale by more standard deviations than this count as in other units (`metrics.off_scale`)."""
IDENTICAL = "identical"
"""Share of the windows whose answer stays the same to the bit when what its mode must not see is altered."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure."""

    embodiment: str
    mode: str
    condition: str
    metric: str
    unit: str
    dimension: str | None = None
    """Name of the action dimension; None over all of them."""
    time_s: float | None = None
    """Seconds into the future; None over the whole horizon."""
    view: str | None = None
    """Name of the camera; None over all of them."""
    estimate: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return one flat, JSON-able row: what was scored, then its estimate."""
        values = asdict(self)
        return values | values.pop("estimate")


@dataclass(frozen=True, kw_only=True)
class Check:
    """A question, answered by whether one condition is better than another."""

    name: str
    mode: Mode | None
    """None: the check belongs to a study (`study.Study`)."""
    metric: str
    better: Key
    worse: Key | None
    """None: the metric itself must reach `MIN_MOTION`, or stay below `MAX_OFF_SCALE`."""
    question: str
    flag: str
    """What to say if the answer is no."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A check with what was measured: the advantage, above 0 where the answer is yes; of `IDENTICAL`, the share, which must be 1."""

    check: Check
    embodiment: str
    advantage: Estimate
    status: str
    """`yes`; `no`, also where the interval holds 0; `unknown` with fewer than two episodes, save for `IDENTICAL`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the question and its answer, JSON-able."""
        c = self.check
        return {
            "name": c.name, "mode": c.mode.value if c.mode else None, "embodiment": self.embodiment, "status": self.status,
            "question": c.question, "flag": c.flag if self.status == "no" else None, "metric": c.metric,
            "better": ":".join(c.better), "worse": ":".join(c.worse) if c.worse else None, "advantage": self.advantage.to_dict(),
        }  # fmt: skip


def _check(name: str, metric: str, better: Key, worse: Key | None, question: str, flag: str) -> Check:
    return Check(
        name=name,
        mode=Mode(name.split("_")[0]),
        metric=metric,
        better=better,
        worse=worse,
        question=question,
        flag=flag,
    )


_POLICY, _INVERSE, _JOINT = ("policy", "model"), ("inverse", "model"), ("joint", "model")
_FORWARD, _VIDEO = ("forward", "model"), ("video", "model")
_MEAN, _HOLD, _COPY = (CONTROL, "mean_action"), (CONTROL, "hold_last"), (CONTROL, "copy_last")


def _blind(mode: str, what: str) -> Check:
    return _check(f"{mode}_sees_no_{what}", IDENTICAL, (mode, "model"), (mode, HIDDEN),
                  f"Is the answer the same, to the bit, whatever the {what} that it must not see?",
                  f"{mode} sees the {what} that it must not see")  # fmt: skip


CHECKS: tuple[Check, ...] = (
    _check("forward_uses_actions", "psnr_moving", _FORWARD, ("forward", "shuffled_actions"),
           "Does the predicted video depend on the actions?", "forward ignores the actions"),
    _check("forward_beats_mean_actions", "psnr_moving", _FORWARD, ("forward", "mean_actions"),
           "Are the true actions better than average ones?", "forward gains nothing from the true actions"),
    _check("forward_beats_copy", "psnr_moving", _FORWARD, _COPY,
           "Is it better than showing the last frame again?", "forward is no better than the last frame again"),
    _check("forward_moves", "motion_ratio", _FORWARD, None, "Does anything move?", "forward shows a frozen frame"),
    _check("inverse_uses_video", "nrmse", _INVERSE, ("inverse", "shuffled_video"),
           "Do the actions come from what is seen to happen?", "inverse ignores the future video"),
    _check("inverse_beats_policy", "nrmse", _INVERSE, _POLICY,
           "Does seeing the future help, against guessing (policy)?", "inverse is no better than policy"),
    _check("inverse_beats_mean", "nrmse", _INVERSE, _MEAN,
           "Is it better than the average action?", "inverse is no better than the average action"),
    _check("policy_uses_observation", "nrmse", _POLICY, ("policy", "shuffled_targets"),
           "Do the actions fit this situation, not just any?", "policy ignores what it sees"),
    _check("policy_beats_mean", "nrmse", _POLICY, _MEAN,
           "Is it better than the average action?", "policy is no better than the average action"),
    _check("policy_beats_hold", "nrmse", _POLICY, _HOLD,
           "Is it better than repeating the last action?", "policy is no better than repeating the last action"),
    _check("video_beats_copy", "psnr_moving", _VIDEO, _COPY,
           "Is it better than showing the last frame again?", "video is no better than the last frame again"),
    _check("video_moves", "motion_ratio", _VIDEO, None, "Does anything move?", "video shows a frozen frame"),
    _check("joint_agrees", "nrmse", ("joint", "read_back"), ("joint", "read_back_shuffled"),
           "Do the imagined actions fit the imagined video?", "joint imagines video and actions that don't belong together"),
    _check("joint_beats_mean", "nrmse", _JOINT, _MEAN,
           "Are its actions better than the average action?", "joint's actions are no better than the average action"),
    _check("joint_moves", "motion_ratio", _JOINT, None, "Does anything move?", "joint shows a frozen frame"),
    *(_check(f"{mode}_fits_units", "off_scale", (mode, "model"), None, "Are the actions of the recorded mean and scale?",
             f"{mode}'s actions are off in mean or scale, as with the statistics of another body")
      for mode in ("policy", "inverse", "joint")),
    *(_blind(mode, "future") for mode in ("policy", "forward", "video", "joint")),
    _blind("inverse", "actions"),
)  # fmt: skip


def score_rows(measured: Measured, group: Group, config: BootstrapConfig) -> list[Row]:
    """Return every figure of a group: each run and control, over all and by horizon, dimension by dimension."""
    rows: list[Row] = []
    tables = [
        (measured.video, _video_columns(measured), _video_vector),
        (measured.actions, _action_columns(measured, group), _action_vector(group)),
    ]
    for sums, columns, statistic in tables:
        for (mode, condition), values in sums.items():
            found = estimate(values, group.episodes, statistic, config)
            rows += [
                Row(embodiment=group.spec.name, mode=mode, condition=condition, estimate=e, **column)
                for column, e in zip(columns, found, strict=True)
                if e.value is not None
            ]
    for (mode, condition), same in measured.identical.items():
        share = _share(same, group, config)
        rows.append(
            Row(embodiment=group.spec.name, mode=mode, condition=condition, metric=IDENTICAL, unit="", estimate=share)
        )
    return rows


def _share(same: Tensor, group: Group, config: BootstrapConfig) -> Estimate:
    sums = torch.stack([same.double(), torch.ones(len(same), dtype=torch.float64)], dim=1)
    (share,) = estimate(sums, group.episodes[: len(same)], lambda x: (x[..., 0] / x[..., 1])[..., None], config)
    return share


def answer_checks(measured: Measured, group: Group, modes: Sequence[Mode], config: BootstrapConfig) -> list[Answer]:
    """Answer the questions for which everything was run."""
    answers = []
    for check in CHECKS:
        if check.metric == IDENTICAL:
            if check.mode in modes and check.worse in measured.identical:
                share = _share(measured.identical[check.worse], group, config)
                status = "yes" if share.value == 1 else "no"  # nothing is left to chance
                answers.append(Answer(check=check, embodiment=group.spec.name, advantage=share, status=status))
            continue
        table = measured.video if check.metric in VIDEO_METRICS else measured.actions
        keys = [key for key in (check.better, check.worse) if key is not None]
        if check.mode not in modes or any(key not in table for key in keys):
            continue
        sums = torch.stack([table[key] for key in keys], dim=1)
        (advantage,) = estimate(sums, group.episodes, _advantage(check, group), config)
        if advantage.value is None:
            continue
        answers.append(
            Answer(check=check, embodiment=group.spec.name, advantage=advantage, status=status_of(advantage))
        )
    return answers


def status_of(advantage: Estimate) -> str:
    """Return `yes` where the whole interval is above 0, `no` where it is not, `unknown` where there is none."""
    if advantage.low is None:
        return "unknown"
    return "yes" if advantage.low > 0 else "no"


def _advantage(check: Check, group: Group) -> Callable[[Tensor], Tensor]:
    if check.metric in VIDEO_METRICS:

        def score(sums: Tensor) -> Tensor:
            return video_scores(sums)[check.metric]
    else:

        def score(sums: Tensor) -> Tensor:
            return -action_scores(sums, group.action_scale)[0][check.metric]

    axis = -3 if check.metric in VIDEO_METRICS else -4
    if check.worse is None:
        least = MIN_MOTION if check.metric == "motion_ratio" else -MAX_OFF_SCALE
        return lambda sums: (score(sums.select(axis, 0)) - least)[..., None]
    return lambda sums: (score(sums.select(axis, 0)) - score(sums.select(axis, 1)))[..., None]


def _video_columns(measured: Measured) -> list[dict[str, Any]]:
    whole = [{"metric": m, "unit": UNITS.get(m, "")} for m in VIDEO_METRICS]
    steps = [
        {"metric": m, "unit": UNITS[m], "time_s": t}
        for m in ("psnr", "psnr_moving")
        for t in _rounded(measured.frame_times)
    ]
    return whole + steps


def _video_vector(sums: Tensor) -> Tensor:
    whole = video_scores(sums)
    steps = video_scores(sums.movedim(-1, 0)[..., None])
    columns = [whole[m] for m in VIDEO_METRICS] + [x for m in ("psnr", "psnr_moving") for x in steps[m].unbind(0)]
    return torch.stack(columns, dim=-1)


def _action_columns(measured: Measured, group: Group) -> list[dict[str, Any]]:
    spec = group.spec
    names = spec.action_names or tuple(f"action {i}" for i in range(spec.action_dim))
    units = spec.action_units or ("",) * spec.action_dim
    columns: list[dict[str, Any]] = [{"metric": m, "unit": ""} for m in ("nrmse", "r2", "off_scale")]
    columns += [{"metric": "nrmse", "unit": "", "time_s": t} for t in _rounded(measured.action_times)]
    for metric in ("mae", "rmse", "r2"):
        columns += [
            {"metric": metric, "unit": "" if metric == "r2" else unit, "dimension": name}
            for name, unit in zip(names, units, strict=True)
        ]
    return columns


def _action_vector(group: Group) -> Callable[[Tensor], Tensor]:
    def vector(sums: Tensor) -> Tensor:
        overall, each = action_scores(sums, group.action_scale)
        steps, _ = action_scores(sums.movedim(-2, 0)[..., None, :], group.action_scale)
        parts = [overall[m][..., None] for m in ("nrmse", "r2", "off_scale")] + [steps["nrmse"].movedim(0, -1)]
        return torch.cat([*parts, each["mae"], each["rmse"], each["r2"]], dim=-1)

    return vector


def _rounded(times: Sequence[float]) -> list[float]:
    return [round(t, 6) for t in times]
