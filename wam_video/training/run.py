"""A run as its callbacks and its validation see it: the little of the trainer that they need, and what a step tells them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from wam_video.tensors import Batch, PredictionType
from wam_video.training.build import Parts
from wam_video.training.config import TrainConfig
from wam_video.training.ema import EMA
from wam_video.training.engines import Engine
from wam_video.training.pace import Pace
from wam_video.training.sample import Sampler
from wam_video.training.state import Progress
from wam_video.training.tally import Tally
from wam_video.training.whole import WholeParts


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One step, as the callbacks see it."""

    step: int
    """Steps done, with this one."""
    sums: Float[Tensor, "2 k"]
    """This process's sums of `Run.tally`, on the device."""
    grad_norm: float
    lr: float
    applied: bool
    """False where the update was skipped: its gradient was not finite, or its loss jumped."""


class Run(Protocol):
    """A training run under way; `trainer.Trainer` is one."""

    config: TrainConfig
    engine: Engine
    parts: Parts
    ema: EMA
    whole: WholeParts
    sampler: Sampler
    prediction_kinds: tuple[PredictionType, PredictionType]
    """What the trained module puts out for video and for actions."""
    progress: Progress
    tally: Tally
    """How the sums of a step are kept and named."""
    pace: Pace
    start_step: int
    """Steps that were done before this start."""
    interrupted: bool
    """True on every process once one was asked to stop: then only a checkpoint is written."""

    @property
    def samples_per_step(self) -> int:
        """Windows in a step over all processes."""
        ...

    def elapsed_s(self) -> float:
        """Return the seconds since the loop of this process started."""
        ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers to the trackers (of the main process)."""
        ...

    def save(self) -> None:
        """Write a checkpoint of where the run is, or begin to (`async_save`)."""
        ...

    def validation_batches(self) -> list[Batch]:
        """Return the held-out windows, read once."""
        ...


class Callback(Protocol):
    """A hook of the loop; every process calls it, so collectives are allowed."""

    def on_step(self, run: Run, result: StepResult) -> None:
        """React to a step that was done."""
        ...

    def on_end(self, run: Run) -> None:
        """React to the end of the run, before the processes part."""
        ...
