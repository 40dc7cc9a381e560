"""A run that stands still ends itself: stacks of every thread in a file, one line, and an exit code of its own."""

import faulthandler
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from wam_video.log import get_logger

if TYPE_CHECKING:
    from wam_video.training.run import Run, StepResult

HUNG = 70
"""Exit code of a process that ended itself because nothing moved."""

_LOG = get_logger(__name__)

_SPARE_S = 10.0
"""After its own dump, for the other processes, whose watchdogs bark a little later, before a launcher ends them all."""


class Watchdog:
    """A thread that ends the process when `beat` was not called for `seconds`; used by `with`, and as a callback.

    Where the interpreter itself stands still (an extension that holds its lock), no thread of ours runs; then faulthandler's
    timer, which this thread sets back as long as it runs, writes the stacks to stderr and exits with code 1.

    Args:
        folder: Where `hang-rank<r>.txt` is written.
        rank: Of this process.
        seconds: Without a beat; 0: nothing is watched.
    """

    def __init__(self, folder: Path, rank: int, seconds: float) -> None:
        self._path, self._rank, self._seconds = folder / f"hang-rank{rank}.txt", rank, seconds
        self._last, self._step = time.monotonic(), 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, step: int) -> None:
        """Say that something was finished."""
        self._step, self._last = step, time.monotonic()

    def on_step(self, run: "Run", result: "StepResult") -> None:
        """Beat: a step, or what another callback made of it, is done."""
        self.beat(result.step)

    def on_end(self, run: "Run") -> None:
        """Beat: the callbacks before this one are through with the end of the run."""
        self.beat(run.progress.step)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self.beat(0)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._seconds:
            self._thread.join()

    def _watch(self) -> None:
        spare = min(_SPARE_S, self._seconds)
        try:
            while not self._done.wait(min(self._seconds / 10, 5.0)):
                still = time.monotonic() - self._last
                if still >= self._seconds:
                    self._end(still, spare)
                faulthandler.dump_traceback_later(self._seconds + 2 * spare, file=2, exit=True)  # to stderr
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _end(self, still: float, spare: float) -> None:
        """Write the stacks and end the process; it does not return."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("w") as file:
            file.write(f"rank {self._rank}: nothing was finished for {still:.0f} s, after step {self._step}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        _LOG.error(
            "rank %d hangs: nothing was finished for %.0f s after step %d (health.hang_seconds=%g); stacks in %s; exit code %d",
            *(self._rank, still, self._step, self._seconds, self._path, HUNG),
        )
        time.sleep(spare)
        os._exit(HUNG)
