"""Work in several processes whose results come in the order of the jobs, whatever the number of processes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

from wam_video.errors import DataError

J = TypeVar("J")
R = TypeVar("R")

_AHEAD = 2
"""Jobs that wait for each process."""


def in_order(work: Callable[[J], R], jobs: Iterable[J], workers: int) -> Iterator[R]:
    """Yield `work(job)` for every job in order.

    Args:
        work: A function of a module, pure: the results may not depend on which process ran what before.
        jobs: Its arguments.
        workers: Processes; 1 stays in this one.

    Raises:
        DataError: A process died.
    """
    todo = iter(jobs)
    if workers == 1:
        yield from map(work, todo)
        return
    # spawned, not forked: the caller may hold threads (torch, a progress bar) that a fork would leave half alive
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = deque(pool.submit(work, job) for job in islice(todo, workers * _AHEAD))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, job) for job in islice(todo, 1))
                yield result
        except BrokenProcessPool as error:
            raise DataError(
                f"one of {workers} simulating processes died, most likely for lack of memory; give fewer workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
