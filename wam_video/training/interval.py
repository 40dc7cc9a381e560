"""What is told of the steps between two log lines: losses, speed, memory, jumps of the loss, and who is slow."""

import socket
import time
from statistics import fmean

import torch
from torch import Tensor

from wam_video.log import get_logger
from wam_video.training.health import SpikeDetector, gather
from wam_video.training.pace import StragglerWatch, Stretch, percentile
from wam_video.training.run import Run, StepResult
from wam_video.training.tally import term_means
from wam_video.training.work import peak_flops, peak_memory

_LOG = get_logger(__name__)

_FEW = 16
"""Processes, up to which each has a curve of its own."""


class Interval:
    """Adds steps up on the device, and makes numbers of them when asked; every process has one and asks together."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._terms: list[tuple[int, Tensor]] = []
        self._steps, self._skipped = 0, 0
        self._since = time.perf_counter()
        self._spikes: SpikeDetector | None = None
        self._stragglers: StragglerWatch | None = None

    def add(self, run: Run, result: StepResult) -> None:
        """Add a step; one that was skipped is only counted."""
        self._steps += 1
        self._skipped += not result.applied
        if result.applied:
            self._sums = result.sums if self._sums is None else self._sums + result.sums
        if run.config.health.spike == "warn":
            self._terms.append((result.step, run.tally.terms(result.sums)))

    def numbers(self, run: Run, result: StepResult) -> dict[str, float]:
        """Return what the steps since the last call come to, over all processes, and start again; waits for the device.

        Warnings about jumps of the loss and about a slow process go to the log of the main process.
        """
        now = time.perf_counter()
        seconds, self._since = max(now - self._since, 1e-9), now
        values = {} if self._sums is None else run.tally.means(run.engine.sum(self._sums))
        if run.config.health.spike == "warn":
            values["spikes"] = self._count_spikes(run)
        values |= {
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            "skipped_steps": float(self._skipped),
            "samples_per_second": self._steps * run.samples_per_step / seconds,
        }
        values |= self._pace(run, seconds)
        self._sums, self._terms, self._steps, self._skipped = None, [], 0, 0
        return {name: value for name, value in values.items() if abs(value) < float("inf")}

    def _pace(self, run: Run, seconds: float) -> dict[str, float]:
        """Exchange what each process measured of itself."""
        engine, stretch = run.engine, run.pace.take()
        rows = torch.zeros(engine.num_processes, 6, device=engine.device)
        rows[engine.rank] = torch.tensor(_row(stretch, peak_memory(engine.device)))
        shared = engine.data_processes / engine.num_processes  # processes that share a sample count it each
        own_s, wait_s, step_s, memory, frames, flops = zip(*engine.sum(rows).tolist(), strict=True)
        values = {
            "data_wait_share": fmean(wait_s) / seconds,
            "frames_per_second": sum(frames) * shared / seconds,
            "step_s_p50": percentile(stretch.step_s, 0.5),
            "step_s_p95": percentile(stretch.step_s, 0.95),
            "memory_gb": max(memory) / 1e9,
        }
        peak = peak_flops(engine.device, run.config.health.peak_tflops)
        if peak is not None and sum(flops) > 0:
            values["mfu"] = sum(flops) * shared / (peak * max(sum(step_s), 1e-9))
        if engine.num_processes == 1:
            return values
        if self._stragglers is None:
            self._stragglers = StragglerWatch(run.config.health, gather(socket.gethostname()))
        shares = [wait / max(step, 1e-9) for wait, step in zip(wait_s, step_s, strict=True)]
        values["slowest_ratio"], warning = self._stragglers.judge(own_s, shares)
        if warning is not None:
            _LOG.warning("%s", warning)
        values["data_wait_share_max"] = max(shares)
        few = shares if len(shares) <= _FEW else []
        return values | {f"data_wait_share/rank{rank}": share for rank, share in enumerate(few)}

    def _count_spikes(self, run: Run) -> float:
        self._spikes = self._spikes or SpikeDetector(run.config.health)
        sums = run.engine.sum(torch.stack([terms for _, terms in self._terms]))
        jumps = []
        for (step, _), row in zip(self._terms, sums, strict=True):
            losses = term_means(row)
            jumps += [(step, name, losses[name], z) for name, z in self._spikes.judge(losses).items()]
        if jumps:
            told = ", ".join(f"{name} {loss:.4g} at step {step} ({z:.0f})" for step, name, loss, z in jumps[:4])
            _LOG.warning(
                "the loss jumped %d time(s): %s; in brackets robust standard deviations above the median of %d steps "
                "(health.spike=skip would skip such updates)",
                *(len(jumps), told + (", ..." if len(jumps) > 4 else ""), run.config.health.spike_window),
            )
        return float(len(jumps))


def _row(stretch: Stretch, memory: float) -> list[float]:
    own = fmean(stretch.own_s) if stretch.own_s else 0.0
    return [own, sum(stretch.wait_s), sum(stretch.step_s), memory, float(stretch.frames), stretch.flops]
