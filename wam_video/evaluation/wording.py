"""What the page says of each mode, and which figures it shows: tables of words, no code."""

from dataclasses import dataclass

from wam_video.evaluation.open_loop import CONTROL, Key
from wam_video.tensors import Mode


@dataclass(frozen=True, kw_only=True)
class Line:
    """A figure in a chart."""

    label: str
    key: Key
    style: str = "control"
    """Of its bar."""
    curve: str | None = None
    """Style of its curve over the horizon; None leaves it out of the curves."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Figures that belong next to each other."""

    title: str
    metric: str
    unit: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A picture in the strip of a window; None is the recording."""

    label: str
    key: Key | None = None
    difference: bool = False


@dataclass(frozen=True, kw_only=True)
class Words:
    """A section of the page."""

    title: str
    sentence: str
    headline: Key | None
    """The check whose advantage, or the run whose R2, stands in the overview."""
    headline_text: str
    charts: tuple[Chart, ...]
    panels: tuple[Panel, ...] = ()
    plots: tuple[tuple[str, Key, str], ...] = ()
    """Curves of the action plots, beside the recorded ones: label, run, style."""


_MOVING = "Accuracy of the pixels that move, in dB (longer is better)"
_ERROR = "Error of the actions, in standard deviations (shorter is better)"
_COPY = Line(label="last frame shown again", key=(CONTROL, "copy_last"), curve="s4")
_MEAN = Line(label="always the average action", key=(CONTROL, "mean_action"), curve="s4")
_HOLD = Line(label="last action again", key=(CONTROL, "hold_last"))

WORDS: dict[Mode, Words] = {
    Mode.POLICY: Words(
        title="Policy: what should I do next?",
        sentence="The model sees the last frames and the instruction, and says which actions come next. "
        "The recorded person or script may have chosen another good way, so even a perfect model scores below 1 here.",
        headline=("policy", "model"),
        headline_text="share of the recorded actions' variation that it accounts for",
        charts=(
            Chart(
                title=_ERROR, metric="nrmse", unit="",
                lines=(
                    Line(label="the model's actions", key=("policy", "model"), style="model", curve="s1"),
                    _MEAN,
                    _HOLD,
                    Line(label="the model's, for another moment", key=("policy", "shuffled_targets")),
                ),
            ),
        ),
        plots=(("policy", ("policy", "model"), "s1"),),
    ),
    Mode.FORWARD: Words(
        title="Forward: what happens if I do this?",
        sentence="The model sees the last frames and is told the coming actions; it draws the frames that follow. "
        "The test of a world model: told the actions of another moment, its picture must get worse.",
        headline=("forward_uses_actions", ""),
        headline_text="better on moving pixels with the true actions than with those of another moment",
        charts=(
            Chart(
                title=_MOVING, metric="psnr_moving", unit=" dB",
                lines=(
                    Line(label="told the true actions", key=("forward", "model"), style="model", curve="s1"),
                    Line(label="told another moment's actions", key=("forward", "shuffled_actions"), curve="s2"),
                    Line(label="told the average action", key=("forward", "mean_actions")),
                    _COPY,
                ),
            ),
        ),
        panels=(
            Panel(label="recorded"),
            Panel(label="drawn from the true actions", key=("forward", "model")),
            Panel(label="difference", key=("forward", "model"), difference=True),
            Panel(label="drawn from another moment's actions", key=("forward", "shuffled_actions")),
        ),
    ),
    Mode.INVERSE: Words(
        title="Inverse: what was done here?",
        sentence="The model sees the frames before and after, and works out the actions in between. "
        "Seeing the future must make it better than the policy, which has to guess.",
        headline=("inverse", "model"),
        headline_text="share of the recorded actions' variation that it accounts for",
        charts=(
            Chart(
                title=_ERROR, metric="nrmse", unit="",
                lines=(
                    Line(label="shown the true future", key=("inverse", "model"), style="model", curve="s1"),
                    Line(label="shown no future (policy)", key=("policy", "model"), curve="s2"),
                    Line(label="shown another moment's future", key=("inverse", "shuffled_video")),
                    _MEAN,
                    _HOLD,
                ),
            ),
        ),
        plots=(("inverse", ("inverse", "model"), "s1"), ("policy, for comparison", ("policy", "model"), "s2")),
    ),
    Mode.VIDEO: Words(
        title="Video: how might this go on?",
        sentence="The model sees the last frames, knows no actions, and draws a future of its own choosing. It need not be "
        "the one that was recorded; a wrong guess can score below a still picture.",
        headline=("video_beats_copy", ""),
        headline_text="against a still picture, on moving pixels",
        charts=(
            Chart(
                title=_MOVING, metric="psnr_moving", unit=" dB",
                lines=(
                    Line(label="the model's future", key=("video", "model"), style="model", curve="s1"),
                    Line(label="forward (knows the actions)", key=("forward", "model")),
                    _COPY,
                ),
            ),
        ),
        panels=(
            Panel(label="recorded"),
            Panel(label="imagined", key=("video", "model")),
            Panel(label="difference", key=("video", "model"), difference=True),
        ),
    ),
    Mode.JOINT: Words(
        title="Joint: a plan and its film",
        sentence="The model imagines actions and the video of their outcome together. They must fit each other: the actions "
        "that its own inverse mode reads out of the imagined video should be the imagined ones.",
        headline=("joint", "read_back"),
        headline_text="how much of the imagined actions can be read out of the imagined video",
        charts=(
            Chart(
                title="Imagined actions against those read out of the imagined video (shorter is better)",
                metric="nrmse", unit="",
                lines=(
                    Line(label="of the same plan", key=("joint", "read_back"), style="model"),
                    Line(label="of another plan", key=("joint", "read_back_shuffled")),
                ),
            ),
            Chart(
                title=_ERROR, metric="nrmse", unit="",
                lines=(
                    Line(label="joint's actions", key=("joint", "model"), style="model", curve="s1"),
                    Line(label="policy", key=("policy", "model")),
                    _MEAN,
                ),
            ),
            Chart(
                title=_MOVING, metric="psnr_moving", unit=" dB",
                lines=(Line(label="joint's video", key=("joint", "model"), style="model", curve="s1"), _COPY),
            ),
        ),
        panels=(Panel(label="recorded"), Panel(label="imagined", key=("joint", "model"))),
        plots=(("imagined with the video", ("joint", "model"), "s1"),),
    ),
}  # fmt: skip

CONDITIONS: dict[str, str] = {
    "model": "model",
    "shuffled_actions": "another window's actions",
    "mean_actions": "average actions",
    "shuffled_video": "another window's future",
    "shuffled_targets": "judged on another window",
    "read_back": "inverse of the imagined video",
    "read_back_shuffled": "inverse of another imagined video",
    "hidden_altered": "what it must not see, altered",
    "mean_action": "control: average action",
    "hold_last": "control: last action again",
    "copy_last": "control: last frame again",
}

METRICS: dict[str, str] = {
    "psnr": "PSNR",
    "psnr_moving": "PSNR, moving pixels",
    "psnr_static": "PSNR, static pixels",
    "ssim": "SSIM",
    "motion_ratio": "motion ratio",
    "nrmse": "RMSE / training deviation",
    "r2": "R\u00b2",
    "off_scale": "off in mean or scale / training deviation",
    "identical": "share of identical answers",
    "mae": "mean absolute error",
    "rmse": "RMSE",
}

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("Control", "What one gets without a model, or with a model that is fed the wrong input. A figure means something only "
     "next to it."),
    ("Interval", "The thin line on a bar: 95 % of the figures that other episodes of this kind would have given (bootstrap over "
     "episodes, not over windows)."),
    ("dB (PSNR)", "How close two pictures are; 3 dB more is half the squared error. On moving pixels it counts only what "
     "differs from the last seen frame by more than 5 %, for most of a picture stands still. Pooled over all such pixels; the "
     "whole-frame figure is the mean of the frames' dB."),
    ("R\u00b2", "How much of the actions' variation is explained: 1 is exact, 0 as good as the average of the very actions that are "
     "scored, below 0 worse. Each dimension is divided by its standard deviation in training, and counts by its variance."),
    ("Difference", "Generated minus recorded, doubled, on grey: grey is right."),
)  # fmt: skip

LEFT_OUT: tuple[tuple[str, str], ...] = (
    (
        "LPIPS and FVD",
        "outside the study 'fidelity', which gives them where it has their networks' weights (--weights)",
    ),
    ("FID", "needs the weights of Inception v3 and some thousand images"),
)
"""Metrics that are not given, and why; never a number in their place."""
