"""How the processes of a run save a checkpoint together, before training goes on or behind its back, and find the newest one.

With `async_save` the run stops for as long as it takes to copy what is saved to the CPU's memory. A thread of each process then
writes, hashes and commits; threads never use collectives, which belong to the training, but tell each other by marker files.
A save that is due while the one before is still being written waits for it: a checkpoint is never left out, and there is one
copy in memory at a time.

A save that fails, for a full disk say, is told at the next step; training goes on and the checkpoint before is untouched. So many
failures in a row (`max_failed_saves`) end the run, and so does a failure of its last save.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Shaped
from torch import Tensor

from wam_video.errors import CheckpointError, ToldError
from wam_video.log import get_logger
from wam_video.training.checkpoint import CheckpointStore, Contents, Files, verify
from wam_video.training.config import TrainConfig

__all__ = ["Contents", "Files", "Group", "Saver", "SaverConfig", "SavingFailedError"]

_GRACE_S = 20.0
"""How long the other processes' files are waited for when a run ends by an error, in seconds."""

_LOG = get_logger(__name__)


class SavingFailedError(RuntimeError):
    """Too many saves in a row have failed, or the last one of a run."""


class Group(Protocol):
    """The processes of a run; an engine is one."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        ...

    @property
    def num_processes(self) -> int:
        """Processes that take part."""
        ...

    @property
    def device(self) -> torch.device:
        """Where this process's collectives take tensors."""
        ...

    def sum(self, values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Return the sum of a tensor over all processes."""
        ...


@dataclass(frozen=True, kw_only=True)
class SaverConfig:
    """How checkpoints are saved."""

    background: bool = False
    """Write while training goes on."""
    max_failed: int = 3
    """So many saves in a row may fail before the run ends."""
    timeout_s: float = 1800.0
    """A process whose files have not come after so long has failed, in seconds."""

    @classmethod
    def of(cls, config: TrainConfig) -> "SaverConfig":
        """Return what a run asks of its saver."""
        return cls(background=config.async_save, max_failed=config.max_failed_saves, timeout_s=config.save_timeout_s)


class Saver:
    """Saves and finds the checkpoints of a run; every process has one and calls it together with the others.

    Args:
        config: How.
        store: Where.
        group: The processes.
    """

    def __init__(self, config: SaverConfig, store: CheckpointStore, group: Group) -> None:
        self._config = config
        self._store = store
        self._group = group
        self._is_main = group.rank == 0
        self._step = -1
        self._writing: Future[None] | None = None
        self._told = True
        self._failed_in_a_row = 0
        self._deadline = 0.0

    def open(self) -> None:
        """Take the folder for this run.

        Raises:
            CheckpointError: Another run has it, or it can't be written; other processes raise `ToldError`.
        """
        error: CheckpointError | None = None
        if self._is_main:
            try:
                self._store.open()
            except CheckpointError as refused:
                error = refused
        if self._sum(error is not None):
            raise error or ToldError("the main process can't have the folder of checkpoints, and tells why")

    def newest(self) -> Path | None:
        """Return the newest checkpoint whose files agree with their hashes; None if none was ever committed.

        The processes share the hashing. What is damaged is told, by the name of its file.

        Raises:
            CheckpointError: There are checkpoints, but all are damaged; or one is of a newer version.
        """
        steps = self._store.steps() if self._is_main else []
        tried = 0
        while True:
            step = self._sum(steps.pop() + 1 if steps else 0) - 1  # what the main process sees
            if step < 0:
                break
            tried += 1
            folder = self._store.path(step)
            fault = verify(folder, rank=self._group.rank, num_processes=self._group.num_processes)
            if not self._sum(fault is not None):
                return folder
            self._store.distrust(step)
            if fault is not None:
                _LOG.error("checkpoint %s is damaged (%s); trying the one before it", folder, fault)
        if tried:
            raise CheckpointError(
                f"all {tried} checkpoints in {str(self._store.path(0).parent)!r} are damaged; put a good one back, or remove that "
                "folder to start afresh"
            )
        return None

    def save(self, step: int, take: Callable[[], Files]) -> None:
        """Save a checkpoint, or begin to.

        Args:
            step: The run's.
            take: Returns this process's files, copied to the CPU; called when the save before is over.

        Raises:
            SavingFailedError: Too many saves in a row have failed.
        """
        self._finish()
        self._check(self._config.max_failed)
        begun = time.perf_counter()
        failure: OSError | None = None
        if self._is_main:
            try:
                self._store.begin(step)
            except OSError as error:
                failure = error
        off = self._sum(failure is not None)  # and no one writes before the folder is there
        files = {} if off else take()
        self._step, self._told = step, off and not self._is_main
        self._deadline = time.monotonic() + self._config.timeout_s
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        if off:
            self._writing = pool.submit(self._fail, step, failure)
        else:
            self._writing = pool.submit(self._write, step, files, begun, time.perf_counter() - begun)
        pool.shutdown(wait=False)
        if not self._config.background:
            self._finish()
            self._check(self._config.max_failed)

    def poll(self) -> None:
        """Tell of a save that has failed since the last call; cheap, and of this process alone."""
        if self._writing is not None and self._writing.done():
            self._tell()

    def finish(self) -> None:
        """Wait until the last save of the run is on the disk.

        Raises:
            SavingFailedError: It failed.
        """
        self._finish()
        self._check(1)

    def close(self) -> None:
        """Wait for this process's own part of a save, whatever has happened, and give the folder back.

        Others may be gone by now, so the main process waits for their parts a little only.
        """
        self._deadline = min(self._deadline, time.monotonic() + _GRACE_S)
        if self._writing is not None:
            self._writing.exception()
            self._tell()
        self._store.close()

    def _finish(self) -> None:
        """Wait for the save under way on all processes and count it."""
        if self._writing is None:
            return
        self._writing.exception()
        failed = self._tell()
        self._writing = None
        self._failed_in_a_row = self._failed_in_a_row + 1 if self._sum(failed) else 0

    def _check(self, limit: int) -> None:
        if self._failed_in_a_row >= limit:
            raise SavingFailedError(
                f"the last {self._failed_in_a_row} saves failed, the newest one at step {self._step} (the log tells why; "
                f"max_failed_saves is {self._config.max_failed}); make room in {str(self._store.path(0).parent)!r} and start again"
            )

    def _tell(self) -> bool:
        """Log why a finished save failed, once; return whether it has."""
        error = self._writing.exception() if self._writing is not None else None
        if error is not None and not isinstance(error, OSError):
            raise error  # ours to mend, not the disk's
        if error is not None and not self._told:
            _LOG.error("ALARM: no checkpoint of step %d: %s; training goes on without it", self._step, error)
        self._told = True
        return error is not None

    def _fail(self, step: int, error: OSError | None) -> None:
        if self._is_main:
            self._store.abandon(step)
        raise error or OSError("the main process could not make its folder")

    def _write(self, step: int, files: Files, begun: float, held_s: float) -> None:
        """Write this process's files and, on the main process, commit all processes'. Runs in a thread: no collectives."""
        rank, failure = self._group.rank, None
        try:
            self._store.write(step, rank, files)
        except OSError as error:
            failure = error
            self._store.give_up(step, rank, files.keys(), error)
        if self._is_main:
            failure = self._commit(step, failure)
        if failure is not None:
            raise failure
        if self._is_main:
            seconds = time.perf_counter() - begun
            waited = held_s if self._config.background else seconds
            _LOG.info(
                "step %d  saved %s in %.2f s; training waited %.2f s", step, self._store.path(step), seconds, waited
            )

    def _commit(self, step: int, failure: OSError | None) -> OSError | None:
        """Commit what the processes report; where one of them, or this one, has failed, remove it all and return why."""
        own = set[int]() if failure is None else {self._group.rank}
        reports = self._store.gather(step, set(range(self._group.num_processes)) - own, lambda: self._deadline)
        if failure is None:
            try:
                self._store.commit(step, reports)
            except OSError as error:
                failure = error
        if failure is not None:
            self._store.abandon(step)
        return failure

    def _sum(self, value: int) -> int:
        return int(self._group.sum(torch.tensor([int(value)], device=self._group.device)).item())
