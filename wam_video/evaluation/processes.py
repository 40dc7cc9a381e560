"""The windows of a model shared out among processes, whole batches at a time, so that the figures are the same to the bit.

A number can depend on which windows are computed together and on how many threads add it up, but not on the process. So every
batch is the one that a single process would make, and every process has as many threads as that one would have.
"""

import logging
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from multiprocessing import get_context
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from torch import Tensor

from wam_video.evaluation.measured import BatchSums, Measured
from wam_video.evaluation.open_loop import join_batches, measure, measure_batch, num_batches
from wam_video.evaluation.opened import EvaluateConfig, Opened, open_model

_LIBRARIES = (diffusers, transformers)


class WorkerDiedError(RuntimeError):
    """A process ended before its work was done."""


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What a process is told when it starts."""

    config: EvaluateConfig
    name: str
    threads: int
    bars: tuple[bool, ...]
    verbosity: tuple[int, ...]


def measure_groups(
    config: EvaluateConfig, name: str, opened: Opened, on_batch: Callable[[int], None] = lambda count: None
) -> list[Measured]:
    """Run the modes of a model over all groups of its windows.

    Args:
        config: The request, with the number of processes.
        name: Of the model in it.
        opened: That model.
        on_batch: Called after each batch with its number of windows.

    Raises:
        WorkerDiedError: A process died.
    """
    groups, options = opened.data.groups, opened.options
    jobs = [(i, number) for i, group in enumerate(groups) for number in range(num_batches(group, options))]
    processes = min(config.processes, len(jobs))
    if processes == 1:
        fetch = opened.data.dataset.batch
        return [measure(opened.sampler, fetch, group, options, on_batch) for group in groups]
    request = _Request(
        config=config,
        name=name,
        threads=torch.get_num_threads(),
        bars=tuple(library.utils.logging.is_progress_bar_enabled() for library in _LIBRARIES),
        verbosity=tuple(library.utils.logging.get_verbosity() for library in _LIBRARIES),
    )
    parts: list[list[BatchSums]] = [[] for _ in groups]
    # spawned, not forked: torch's threads and a device's context would be copied in a broken state
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start, (request,))
    try:
        waiting: list[Future[Any]] = [pool.submit(_measure, *job) for job in jobs]
        for (i, _), future in zip(jobs, waiting, strict=True):
            part = _swap(future.result(), np.ndarray, torch.from_numpy)
            parts[i].append(part)
            on_batch(len(part))
    except BrokenProcessPool as error:
        raise WorkerDiedError(
            f"one of {processes} evaluating processes died, most likely for lack of memory; give fewer --processes"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return [join_batches(part, group) for part, group in zip(parts, groups, strict=True)]


_requests: list[_Request] = []
"""Of this process, if it is one that measures."""


def _start(request: _Request) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which stops its processes itself
    logging.disable(logging.WARNING)  # the parent opens the same model and data, and says it
    torch.set_num_threads(request.threads)
    for library, bar, level in zip(_LIBRARIES, request.bars, request.verbosity, strict=True):
        library.utils.logging.set_verbosity(level)
        (library.utils.logging.enable_progress_bar if bar else library.utils.logging.disable_progress_bar)()
    _requests[:] = [request]


@cache
def _opened() -> Opened:
    (request,) = _requests
    return open_model(request.config, request.name)


def _measure(group: int, number: int) -> Any:
    opened = _opened()
    data = opened.data
    part = measure_batch(opened.sampler, data.dataset.batch, data.groups[group], opened.options, number)
    # As arrays: torch would send its tensors as open files, of which a process may have few.
    return _swap(part, Tensor, lambda tensor: tensor.cpu().numpy())


def _swap(value: Any, kind: type, make: Callable[[Any], Any]) -> Any:
    """Return a record with everything of one kind in it replaced."""
    if isinstance(value, kind):
        return make(value)
    if isinstance(value, dict):
        return {key: _swap(each, kind, make) for key, each in value.items()}
    if isinstance(value, list):
        return [_swap(each, kind, make) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _swap(getattr(value, f.name), kind, make) for f in fields(value)})
    return value
