"""What happens beside the updates: logging, validation, checkpoints and export. Each is told of every step."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from wam_video.log import get_logger
from wam_video.training.build import Exporter
from wam_video.training.checkpoint import replace_folder
from wam_video.training.metrics import Tracker, region_means
from wam_video.training.validate import validation_losses

if TYPE_CHECKING:
    from wam_video.training.trainer import StepResult, Trainer

_LOG = get_logger(__name__)


class Callback(Protocol):
    """A hook of the loop; every process calls it, so collectives are allowed."""

    def on_step(self, trainer: "Trainer", result: "StepResult") -> None:
        """React to a step that was done."""
        ...

    def on_end(self, trainer: "Trainer") -> None:
        """React to the end of the run, before the processes part."""
        ...


class LogCallback:
    """Average over the steps since the last line, and write a line and the trackers."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._sums: Tensor | None = None
        self._steps = 0
        self._wait_s = 0.0
        self._since = time.perf_counter()

    def on_step(self, trainer: "Trainer", result: "StepResult") -> None:
        """Add up; at every `every`-th step, write."""
        self._sums = result.regions if self._sums is None else self._sums + result.regions
        self._steps += 1
        self._wait_s += result.wait_s
        if result.step % self._every == 0 or result.step == trainer.config.steps:
            self._write(trainer, result, self._sums)

    def on_end(self, trainer: "Trainer") -> None:
        """Nothing: the last line was written with the last step."""

    def _write(self, trainer: "Trainer", result: "StepResult", sums: Tensor) -> None:
        sums = trainer.engine.sum(sums)
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        rate = self._steps / seconds
        values = region_means(sums) | {
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            "samples_per_second": rate * trainer.samples_per_step,
            "data_wait_share": self._wait_s / seconds,
        }
        trainer.log(values, result.step)
        left = (trainer.config.steps - result.step) / rate
        if trainer.config.max_minutes is not None:
            left = min(left, trainer.config.max_minutes * 60 - trainer.elapsed_s())
        losses = " ".join(
            f"{name.removeprefix('loss_')} {values[name]:.4f}" for name in values if name.startswith("loss_")
        )
        _LOG.info(
            "step %d/%d  %s  norm %.2f  lr %.1e  %.1f samples/s  wait %.0f%%  %s left",
            *(result.step, trainer.config.steps, losses, result.grad_norm, result.lr),
            *(values["samples_per_second"], 100 * values["data_wait_share"], _duration(left)),
        )
        self._sums, self._steps, self._wait_s, self._since = None, 0, 0.0, now


class ValidateCallback:
    """Errors on held-out windows with the averaged weights, by mode; and an evaluator, if one was handed in."""

    def __init__(self, every: int, evaluator: Callable[["Trainer"], dict[str, float]] | None = None) -> None:
        self._every = every
        self._evaluator = evaluator
        self._last = -1

    def on_step(self, trainer: "Trainer", result: "StepResult") -> None:
        """Validate at every `every`-th step."""
        if result.step % self._every == 0:
            self._validate(trainer)

    def on_end(self, trainer: "Trainer") -> None:
        """Validate what the run ended with, unless it was asked to stop or had nothing left to do."""
        if not trainer.interrupted and trainer.progress.step > trainer.start_step:
            self._validate(trainer)

    def _validate(self, trainer: "Trainer") -> None:
        step = trainer.progress.step
        if step == self._last:
            return
        self._last = step
        with trainer.ema.applied():
            values = validation_losses(trainer)
            if self._evaluator is not None:
                values |= self._evaluator(trainer)
        if values:
            trainer.log(values, step)
            _LOG.info(
                "step %d  validation  %s",
                step,
                "  ".join(f"{k.removeprefix('val_')} {v:.4f}" for k, v in values.items()),
            )


class CheckpointCallback:
    """Save every so often and at the end."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._last = -1

    def on_step(self, trainer: "Trainer", result: "StepResult") -> None:
        """Save at every `every`-th step."""
        if result.step % self._every == 0:
            self._save(trainer)

    def on_end(self, trainer: "Trainer") -> None:
        """Save where the run stopped, unless that has been done."""
        if trainer.progress.step > trainer.start_step:
            self._save(trainer)

    def _save(self, trainer: "Trainer") -> None:
        if trainer.progress.step != self._last:
            self._last = trainer.progress.step
            _LOG.info("step %d  saved %s", self._last, trainer.save())


class ExportCallback:
    """Write the model with the averaged weights to `<output>/model`, in one piece."""

    def __init__(self, exporter: Exporter, folder: Path, every: int) -> None:
        self._exporter = exporter
        self._folder = folder
        self._every = every

    def on_step(self, trainer: "Trainer", result: "StepResult") -> None:
        """Export at every `every`-th step (0: never)."""
        if self._every and result.step % self._every == 0:
            self._export(trainer)

    def on_end(self, trainer: "Trainer") -> None:
        """Export what the run ended with."""
        if not trainer.interrupted:
            self._export(trainer)

    def _export(self, trainer: "Trainer") -> None:
        if trainer.engine.is_main:
            temporary = self._folder.with_name(self._folder.name + ".tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            with trainer.ema.applied(), torch.no_grad():
                self._exporter(temporary, trainer.parts, trainer.config)
            replace_folder(temporary, self._folder)
            _LOG.info("exported %s", self._folder)
        trainer.engine.wait()


class TrackerCallback:
    """Close the trackers at the end."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers

    def on_step(self, trainer: "Trainer", result: "StepResult") -> None:
        """Nothing: values come through `Trainer.log`."""

    def on_end(self, trainer: "Trainer") -> None:
        """Close."""
        for tracker in self._trackers:
            tracker.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
