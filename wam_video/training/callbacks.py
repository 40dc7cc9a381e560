"""What happens beside the updates: logging, validation, checkpoints and export. Each is told of every step."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError

from wam_video.errors import WamError, first_line
from wam_video.log import get_logger
from wam_video.training.build import Exporter, Parts
from wam_video.training.checkpoint import replace_folder
from wam_video.training.interval import Interval
from wam_video.training.metrics import Tracker
from wam_video.training.run import Run, StepResult
from wam_video.training.saving import SavingFailedError
from wam_video.training.validate import validation_losses

_LOG = get_logger(__name__)


class LogCallback:
    """Average over the steps since the last line, and write a line and the trackers."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._interval = Interval()

    def on_step(self, run: Run, result: StepResult) -> None:
        """Add up; at every `every`-th step, write."""
        self._interval.add(run, result)
        if result.step % self._every == 0 or result.step == run.config.steps:
            self._write(run, result)

    def on_end(self, run: Run) -> None:
        """Nothing: the last line was written with the last step."""

    def _write(self, run: Run, result: StepResult) -> None:
        values = self._interval.numbers(run, result)
        run.log(values, result.step)
        left = (run.config.steps - result.step) * run.samples_per_step / values["samples_per_second"]
        if run.config.max_minutes is not None:
            left = min(left, run.config.max_minutes * 60 - run.elapsed_s())
        losses = " ".join(
            f"{name.removeprefix('loss_')} {values[name]:.4f}" for name in values if name.startswith("loss_")
        )
        used = f"  mfu {100 * values['mfu']:.0f}%" if "mfu" in values else ""
        _LOG.info(
            "step %d/%d  %s  norm %.2f  lr %.1e  %.1f samples/s  wait %.0f%%%s  %.1f GB  %s left",
            *(result.step, run.config.steps, losses, result.grad_norm, result.lr, values["samples_per_second"]),
            *(100 * values["data_wait_share"], used, values["memory_gb"], _duration(left)),
        )


class ValidateCallback:
    """Errors on held-out windows with the averaged weights, by mode; and an evaluator, if one was handed in."""

    def __init__(self, every: int, evaluator: Callable[[Run], dict[str, float]] | None = None) -> None:
        self._every = every
        self._evaluator = evaluator
        self._last = -1

    def on_step(self, run: Run, result: StepResult) -> None:
        """Validate at every `every`-th step."""
        if result.step % self._every == 0:
            self._validate(run)

    def on_end(self, run: Run) -> None:
        """Validate what the run ended with, unless it was asked to stop or had nothing left to do."""
        if not run.interrupted and run.progress.step > run.start_step:
            self._validate(run)

    def _validate(self, run: Run) -> None:
        step = run.progress.step
        if step == self._last:
            return
        self._last = step
        with run.ema.applied():
            values = validation_losses(run)
            if self._evaluator is not None:
                values |= self._evaluator(run)
        if values:
            run.log(values, step)
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

    def on_step(self, run: Run, result: StepResult) -> None:
        """Save at every `every`-th step."""
        if result.step % self._every == 0:
            self._save(run)

    def on_end(self, run: Run) -> None:
        """Save where the run stopped, unless that has been done."""
        if run.progress.step > run.start_step:
            self._save(run)

    def _save(self, run: Run) -> None:
        if run.progress.step != self._last:
            self._last = run.progress.step
            run.save()


class ExportCallback:
    """Write the model with the averaged weights to `<output>/model`, in one piece."""

    def __init__(self, exporter: Exporter, folder: Path, every: int) -> None:
        self._exporter = exporter
        self._folder = folder
        self._every = every

    def on_step(self, run: Run, result: StepResult) -> None:
        """Export at every `every`-th step (0: never)."""
        if self._every and result.step % self._every == 0:
            self._export(run)  # a failure is told, and the next time may go well

    def on_end(self, run: Run) -> None:
        """Export what the run ended with.

        Raises:
            SavingFailedError: The disk does not take it.
        """
        if not run.interrupted and not self._export(run):
            raise SavingFailedError(
                f"the model was not exported to {str(self._folder)!r} (the main process tells why), but the run is done and in its last "
                "checkpoint; make room and start the same command again"
            )

    def _export(self, run: Run) -> bool:
        """Export on the main process; return, on all, whether that went well."""
        failed = 0
        with run.whole.filled(run.engine, run.ema) as parts:
            if parts is not None:
                failed = int(not self._write(parts, run))
        return not int(run.engine.sum(torch.tensor([failed], device=run.engine.device)).item())

    @torch.no_grad()
    def _write(self, parts: Parts, run: Run) -> bool:
        temporary = self._folder.with_name(self._folder.name + ".tmp")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            self._exporter(temporary, parts, run.config)
            replace_folder(temporary, self._folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            _LOG.error("ALARM: step %d was not exported to %s: %s", run.progress.step, self._folder, first_line(error))
            return False
        _LOG.info("exported %s", self._folder)
        return True


class TrackerCallback:
    """Close the trackers at the end."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers

    def on_step(self, run: Run, result: StepResult) -> None:
        """Nothing: values come through `Trainer.log`."""

    def on_end(self, run: Run) -> None:
        """Close."""
        for tracker in self._trackers:
            tracker.close()


class WatchCallback:
    """Keep a page of the run up to date, on the main process: after a log line, if it takes less than a hundredth of the time.

    Args:
        render: Writes the page of a run's folder.
        every: Steps between log lines.
    """

    def __init__(self, render: Callable[[Path], object], every: int) -> None:
        self._render, self._every = render, every
        self._took_s = 0.0
        self._written = float("-inf")

    def on_step(self, run: Run, result: StepResult) -> None:
        """Write the page at every `every`-th step, if the last one was long enough ago."""
        if result.step % self._every == 0 and time.monotonic() - self._written > 100 * self._took_s:
            self._write(run)

    def on_end(self, run: Run) -> None:
        """Write how it ended."""
        self._write(run)

    def _write(self, run: Run) -> None:
        if not run.engine.is_main:
            return
        began = time.monotonic()
        try:
            self._render(Path(run.config.output_dir))
        except WamError as error:  # a full disk, say: no reason to stop
            _LOG.warning("the page of the run was not written: %s", error)
        self._written = time.monotonic()
        self._took_s = self._written - began


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
