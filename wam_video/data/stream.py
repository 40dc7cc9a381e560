"""The batches of one rank for ever, through worker processes, and the count of samples that could not be used."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import parent_process
from threading import Thread
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from wam_video.errors import DataError, WamError, first_line
from wam_video.log import get_logger
from wam_video.tensors import Batch

_LOG = get_logger(__name__)


class DataWorkerError(RuntimeError):
    """A process that decodes is gone: killed, out of memory, or crashed within a library."""


class BatchSource(Protocol):
    """What a stream needs of `loader.WindowDataset`."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the windows at these global indices."""
        ...

    def share_cache(self, workers: int) -> None:
        """Make room for other workers of the same process."""
        ...


class BatchStream(IterableDataset):
    """The batches of one rank from a sample index on; worker w of n yields every n-th of them.

    What a user can mend is yielded as an error, for torch would wrap it in the traceback of another process.
    """

    def __init__(self, source: BatchSource, batch_size: int, start_index: int, rank: int, world_size: int) -> None:
        self._source, self._batch_size, self._start = source, batch_size, start_index
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[Batch | WamError]:
        worker = get_worker_info()
        step, number = (worker.num_workers, worker.id) if worker else (1, 0)
        if worker:
            torch.set_num_threads(1)
            self._source.share_cache(worker.num_workers)
            Thread(target=_exit_with_parent, daemon=True).start()
        while True:
            first = self._start + (number * self._world_size + self._rank) * self._batch_size
            try:
                batch: Batch | WamError = self._source.batch(range(first, first + self._batch_size))
            except WamError as error:
                batch = error
            yield batch
            number += step


class SkipLog:
    """The clips that could not be used: counted by reason, each named once, and fatal beyond a share of their dataset."""

    def __init__(self, clips: Mapping[str, int], max_bad_share: float) -> None:
        """Count nothing yet.

        Args:
            clips: How many each dataset has.
            max_bad_share: Share of them that may be bad.
        """
        self._clips, self._limit = dict(clips), max_bad_share
        self._bad: dict[tuple[str, str], str] = {}
        self.windows = 0
        """Windows that were replaced."""

    @property
    def reasons(self) -> dict[str, int]:
        """Clips by reason."""
        return dict(Counter(self._bad.values()))

    def add(self, batch: Batch) -> None:
        """Take in what a batch says of replaced windows.

        Raises:
            DataError: More clips of a dataset are bad than the limit allows.
        """
        for skip in batch.skipped:
            self.windows += skip.wanted
            if (skip.dataset, skip.key) in self._bad:
                continue
            self._bad[skip.dataset, skip.key] = skip.reason
            _LOG.warning("skipped %s/%s (%s): %s", skip.dataset, skip.key, skip.reason, skip.message)
            self._check(skip.dataset)

    def _check(self, dataset: str) -> None:
        reasons = Counter(reason for (name, _), reason in self._bad.items() if name == dataset)
        bad, clips = sum(reasons.values()), self._clips[dataset]
        if bad > self._limit * clips:
            told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
            raise DataError(
                f"dataset {dataset!r}: {bad} of {clips} clips can't be used ({told}); data.max_bad_share allows "
                f"{self._limit:g} of them: run `wam-video data verify`, convert or copy it again, or raise the limit"
            )


class BatchLoader:
    """An endless iterable of one rank's batches; `skips` tells what could not be used so far."""

    def __init__(self, stream: BatchStream, skips: SkipLog, workers: int, prefetch: int) -> None:
        options: dict[str, Any] = {}
        if workers:  # a plain fork would copy the locks of decoder and CUDA threads, held or not
            options = {
                "multiprocessing_context": "forkserver",
                "prefetch_factor": prefetch,
                "persistent_workers": True,
            }
        pin = torch.cuda.is_available()
        self._loader = DataLoader(stream, batch_size=None, num_workers=workers, pin_memory=pin, **options)
        self.skips = skips

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches.

        Raises:
            DataError: Too many clips can't be used.
            DataWorkerError: A worker is gone.
        """
        batches = iter(self._loader)
        while True:
            batch = _next(batches, workers=self._loader.num_workers > 0)
            if isinstance(batch, WamError):
                raise batch
            self.skips.add(batch)
            yield batch


def _next(batches: Iterator[Batch | WamError], *, workers: bool) -> Batch | WamError:
    """Return the next batch; with workers, find out from the error whether one of them is gone.

    That shows in torch's words or, where it had a batch to hand over, in the connection. An error within a worker, of which
    torch says that it "caught" it, stays what it is, but for one of memory.
    """
    try:
        return next(batches)
    except (RuntimeError, MemoryError, OSError, EOFError) as error:
        told = str(error)
        within = "in DataLoader worker process" in told
        full = within and isinstance(error, MemoryError)
        lost = workers and not within and (not isinstance(error, RuntimeError) or "DataLoader worker" in told)
        if not (full or lost):
            raise
        raise DataWorkerError(
            f"a process that decodes data is gone ({'out of memory' if full else first_line(error)}): killed, out of memory, or "
            "crashed in a decoder (the system's log tells); lower data.num_workers, data.cache_mb or data.prefetch, or run "
            "`wam-video data verify`, and start the same command again"
        ) from error


def _exit_with_parent() -> None:
    """End this worker when the process that it works for is gone, even killed.

    torch's own watchdog looks at the parent id, which here is the fork server's, and each worker keeps that server alive.
    """
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
