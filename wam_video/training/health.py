"""The health of a run: steps that must not count, losses that jump, processes that are lost.

Whether a step counts is decided where all processes meet anyway: a micro-batch whose loss is not finite gets a gradient that is
not finite (`poison`), the engines add gradients up over the processes, and none applies an update whose norm is not finite. So
they agree without another exchange, whatever carries the run, and a step that is to be skipped for another reason, a jump of
its loss, is skipped the same way.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from wam_video.errors import first_line
from wam_video.log import get_logger
from wam_video.training.config import TrainConfig
from wam_video.training.engines import Engine
from wam_video.training.health_config import HealthConfig
from wam_video.training.metrics import drop_later
from wam_video.training.sample import TrainingSample
from wam_video.training.state import Progress
from wam_video.training.tally import Tally, not_finite, term_means

_LOG = get_logger(__name__)

_MAD_TO_SIGMA = 1.4826
"""Of a normal distribution: its standard deviation over its median absolute deviation."""


class TrainingFailedError(RuntimeError):
    """The losses or gradients of too many steps in a row were not finite, or jumped."""


def poison(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the loss unchanged to the bit; one that is not finite gets a gradient of NaN."""
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, float("nan"))


class SpikeDetector:
    """Says which losses of a step lie far above those of the steps before it; a pure function of what it was shown.

    Args:
        config: Threshold and window.
        history: The last losses by name, to go on with; kept up to date in place.
    """

    def __init__(self, config: HealthConfig, history: dict[str, list[float]] | None = None) -> None:
        self._threshold, self._window = config.spike_threshold, config.spike_window
        self.history: dict[str, list[float]] = {} if history is None else history

    def judge(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Take in a step's losses and return those that jumped: name -> robust standard deviations above the median."""
        jumps = {}
        for name, loss in losses.items():
            if loss != loss or loss == float("inf"):
                continue
            past = self.history.setdefault(name, [])
            if len(past) >= self._window // 4:
                middle = median(past)
                spread = _MAD_TO_SIGMA * median(abs(value - middle) for value in past)
                height = (loss - middle) / max(spread, 0.01 * abs(middle), 1e-12)
                if height > self._threshold:
                    jumps[name] = height
            past.append(loss)  # a jump too: if it lasts, it is the new level
            del past[: -self._window]
        return jumps


class BadSteps:
    """`bad_batches.jsonl`: for each step that was skipped, what every process had in its hands.

    Lines of steps that a resumed run will do again are dropped.
    """

    def __init__(self, path: Path, *, is_main: bool, from_step: int) -> None:
        self._path, self._is_main = path, is_main
        if is_main and path.is_file():
            drop_later(path, from_step)

    def add(self, step: int, samples: Sequence[Mapping[str, Any]], terms: Sequence[str], norm: float) -> str:
        """Write a line for each process (every one calls this) and return what was wrong, in words.

        Args:
            step: That was skipped, from 1.
            samples: `key` and `index` of this process's windows.
            terms: What was not finite, or jumped, on this process.
            norm: Of the gradient, the same on every process.
        """
        mine = {"step": step, "samples": list(samples), "terms": list(terms), "grad_norm": str(norm)}
        everyone = gather(mine)
        if not any(entry["terms"] for entry in everyone):
            everyone = [entry | {"terms": ["gradient"]} for entry in everyone]  # summed up before anybody could look
        if self._is_main:
            lines = [json.dumps({"step": step, "rank": rank, **entry}) + "\n" for rank, entry in enumerate(everyone)]
            try:
                with self._path.open("a") as file:
                    file.writelines(lines)
            except OSError as error:  # the log has it too: no reason for a full disk to end the run
                _LOG.error("ALARM: %s lost step %d: %s", self._path, step, error)
        guilty = [(rank, entry) for rank, entry in enumerate(everyone) if entry["terms"]]
        return "; ".join(
            f"rank {rank}: {', '.join(entry['terms'])}, windows {', '.join(s['key'] for s in entry['samples'])}"
            for rank, entry in guilty
        )


class Guard:
    """Keeps steps from counting that should not, and the run from going on when there are too many of them.

    Args:
        config: The run.
        engine: Its processes.
        tally: How the sums of its steps are kept.
        progress: How far it is; the losses that jumps are judged by are kept there, so that a resumed run decides the same.
    """

    def __init__(self, config: TrainConfig, engine: Engine, tally: Tally, progress: Progress) -> None:
        self._config, self._engine, self._tally, self._progress = config, engine, tally, progress
        self._spikes = SpikeDetector(config.health, progress.losses) if config.health.spike == "skip" else None
        self._path = Path(config.output_dir) / "bad_batches.jsonl"
        self._bad = BadSteps(self._path, is_main=engine.is_main, from_step=progress.step)

    def jumps(self, sums: Float[Tensor, "2 k"]) -> list[str]:
        """Say which losses of the step jumped, where that is to skip it: the same on every process, which all call this."""
        if self._spikes is None:
            return []
        jumps = self._spikes.judge(term_means(self._engine.sum(self._tally.terms(sums))))
        return [f"jump of {name} by {height:.0f} deviations" for name, height in jumps.items()]

    def tell(
        self, samples: Sequence[TrainingSample], sums: Float[Tensor, "2 k"], jumps: Sequence[str], norm: float
    ) -> None:
        """Write down what every process had in a step that was skipped, and is counted already.

        Raises:
            TrainingFailedError: It was the last of too many in a row.
        """
        step, row, most = self._progress.step, self._progress.bad_steps, self._config.max_bad_steps
        windows = [{"key": key, "index": index} for s in samples for key, index in zip(s.keys, s.indices, strict=True)]
        told = self._bad.add(step, windows, [*not_finite(self._tally.terms(sums)), *jumps], norm)
        if self._engine.is_main:
            _LOG.error("step %d skipped: gradient norm is %s; %s", step, norm, told)
        if row >= most:
            raise TrainingFailedError(
                f"{row} steps in a row had a non-finite gradient or a jump of the loss (max_bad_steps={most}); "
                f"lower optim.lr, or look at the windows named in {self._path}"
            )


def gather(value: Any) -> list[Any]:
    """Return what every process gave, by rank; all of them call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


_SIGNS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "timed out waiting", "broken pipe")


def lost_process(error: BaseException) -> str | None:
    """Return in one line why an exchange between processes failed; None if the error is about something else."""
    text = str(error).lower()
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)):
        return first_line(error)
    return None
