"""What is measured during training, and where it is written: plain lines, metrics.jsonl, and trackers by name."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.errors import ConfigError, MissingDependencyError
from wam_video.flow.loss import LossTerms
from wam_video.log import get_logger
from wam_video.models.teacher import AlignmentTerms
from wam_video.training.durable import write_text
from wam_video.training.sample import TrainingSample

_LOG = get_logger(__name__)

REGIONS = (
    *("loss_video", "loss_forward", "loss_video_only", "loss_joint_video"),
    *("loss_action", "loss_policy", "loss_inverse", "loss_joint_action"),
    *("loss_teacher", "teacher_cosine", "teacher_cosine_shuffled"),
)
"""Mean errors by region of the noise square: video in all, with the actions given (t_action = 0), with them unknown (1), between;
actions in all, with the future video unknown or absent (t_video = 1), with it given (0), between. And a teacher's loss, which is
the negative cosine, the cosine itself, and its control, the cosine with the features of another sample."""


def region_sums(
    sample: TrainingSample, terms: LossTerms, alignment: AlignmentTerms | None = None
) -> Float[Tensor, "2 regions"]:
    """Return the sums of errors and of their weights in each region, on the device and without a gradient."""
    t_video, t_action = sample.t_video, sample.t_action
    everywhere = torch.ones_like(t_video)
    given_action, unknown_action = (t_action == 0).float(), (t_action == 1).float()
    given_video, unknown_video = (t_video == 0).float(), (t_video == 1).float()
    video = torch.stack([everywhere, given_action, unknown_action, everywhere - given_action - unknown_action])
    action = torch.stack([everywhere, unknown_video, given_video, everywhere - given_video - unknown_video])
    video_rows = torch.stack([terms.video_sum.detach(), terms.video_count])
    action_rows = torch.stack([terms.action_sum.detach(), terms.action_count])
    return torch.cat([video_rows @ video.T, action_rows @ action.T, _teacher_sums(t_video, alignment)], dim=1)


def _teacher_sums(like: Tensor, terms: AlignmentTerms | None) -> Float[Tensor, "2 3"]:
    if terms is None:
        return like.new_zeros(2, 3)
    cosine = terms.cosine_sum.detach()
    sums, counts = [-cosine, cosine, terms.shuffled_sum], [terms.count, terms.count, terms.shuffled_count]
    return torch.stack([torch.stack(sums), torch.stack(counts)])


def region_means(sums: Float[Tensor, "2 regions"]) -> dict[str, float]:
    """Return the mean error of each region that was visited."""
    totals, counts = sums.tolist()
    return {name: total / count for name, total, count in zip(REGIONS, totals, counts, strict=True) if count > 0}


class Tracker(Protocol):
    """Somewhere that numbers go, by step."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the numbers of a step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class JsonLines:
    """`metrics.jsonl`: one object a line. Lines of steps that a resumed run will do again are dropped."""

    def __init__(self, path: Path, *, from_step: int) -> None:
        drop_later(path, from_step)
        self._file = path.open("a")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Append a line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """TensorBoard's event files."""

    def __init__(self, folder: Path, *, from_step: int) -> None:
        try:
            module = import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise MissingDependencyError("tensorboard", "train", "the tracker tensorboard") from error
        self._writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class HostedRun:
    """A run of wandb or of trackio, whose interface is the same; both continue the run of the same id."""

    def __init__(self, package: str, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            self._package = import_module(package)
        except ImportError as error:
            raise ConfigError(f"trackers names {package!r}, which is not installed: pip install {package}") from error
        name = folder.name
        here = {"dir": str(folder), "id": name, "resume": "allow"} if package == "wandb" else {"resume": "allow"}
        self._package.init(project="wam-video", name=name, config=dict(config), **here)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send scalars."""
        self._package.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._package.finish()


class Lasting:
    """A tracker whose disk may be full: numbers are lost then, which is told once, and the run goes on."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._failing = False

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand the numbers of a step on."""
        try:
            self._tracker.log(values, step)
            self._failing = False
        except OSError as error:
            self._tell(f"numbers of step {step} and maybe later ones", error)

    def close(self) -> None:
        """Close it."""
        try:
            self._tracker.close()
        except OSError as error:
            self._tell("the last numbers", error)

    def _tell(self, what: str, error: OSError) -> None:
        if not self._failing:
            _LOG.error("ALARM: %s lost %s: %s", type(self._tracker).__name__, what, error)
        self._failing = True


def open_trackers(names: list[str], folder: Path, config: Mapping[str, Any], from_step: int) -> list[Tracker]:
    """Open metrics.jsonl and the trackers of these names.

    Raises:
        MissingDependencyError: A tracker's package is not installed.
    """
    trackers: list[Tracker] = [JsonLines(folder / "metrics.jsonl", from_step=from_step)]
    for name in names:
        tensorboard = name == "tensorboard"
        trackers.append(TensorBoard(folder, from_step=from_step) if tensorboard else HostedRun(name, folder, config))
    return [Lasting(tracker) for tracker in trackers]


def drop_later(path: Path, step: int) -> None:
    """Keep of a file of JSON lines those up to a step, all of them or as it was; a file that is not there is made."""
    before = path.read_text() if path.is_file() else None
    text = "".join(f"{line}\n" for line in (before or "").splitlines() if _step_of(line) <= step)
    if text != before:
        write_text(path, text)


def _step_of(line: str) -> int:
    """Return the step of a line of metrics.jsonl; a line cut short by a crash is one to drop."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return 2**62
