"""What torch says when a process that decodes is gone, and when it only had an error to tell."""

import pytest

from wam_video.data.stream import BatchLoader, BatchStream, DataWorkerError, SkipLog
from wam_video.tensors import Batch

KILLED = RuntimeError("DataLoader worker (pid(s) 30651) exited unexpectedly")
FULL = MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback ...")
OURS = RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback ...")
DISK = OSError("Caught OSError in DataLoader worker process 1.\nOriginal Traceback ...")


class Failing:
    """What a loader iterates over."""

    def __init__(self, error: Exception, workers: int) -> None:
        self.num_workers, self._error = workers, error

    def __iter__(self) -> "Failing":
        return self

    def __next__(self) -> Batch:
        raise self._error


def loader(error: Exception, workers: int) -> BatchLoader:
    made = BatchLoader(BatchStream(None, 1, 0, 0, 1), SkipLog({}, 0.0), 0, 2)
    made._loader = Failing(error, workers)
    return made


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KILLED, "(DataLoader worker (pid(s) 30651) exited unexpectedly)"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (EOFError(), "(EOFError)"),
        (FULL, "(out of memory)"),
    ],
)
def test_a_worker_that_is_gone_is_told_in_one_line(error: Exception, told: str) -> None:
    with pytest.raises(DataWorkerError) as raised:
        next(iter(loader(error, 2)))
    assert told in str(raised.value)
    assert "lower data.num_workers" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("error", "workers"), [(OURS, 2), (DISK, 2), (ConnectionResetError(), 0), (MemoryError(), 0)])
def test_an_error_of_another_kind_stays_what_it_is(error: Exception, workers: int) -> None:
    with pytest.raises(type(error)) as raised:
        next(iter(loader(error, workers)))
    assert raised.value is error
