"""Being asked to stop: signals that mean "save a checkpoint and go", and how long that may take."""

import os
import signal
import socket
import threading
from typing import Any

from wam_video.log import get_logger

STOPPED = 75
"""Exit code of a run that was asked to stop and has more to do: start the same command again (EX_TEMPFAIL of sysexits.h)."""

_LOG = get_logger(__name__)


class StopRequest:
    """SIGTERM, SIGUSR1 (Slurm's warning) and SIGINT ask the run to save and stop; a second SIGINT interrupts it where it is.

    The grace period is kept by a thread that the signal itself wakes, so that it also runs while the main thread sits in an
    exchange or in a save and sees no signal. Used by `with`; once a request was made, later signals are ours until the end of
    the process, so that a launcher that ends its other processes does not cut off the writing of this one.

    Args:
        grace_seconds: From the signal to the end of the process.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._number: int | None = None
        self._before: dict[int, Any] = {}
        self._over = threading.Event()
        self._ours, self._theirs = socket.socketpair()
        self._wakeup = -1

    def is_made(self) -> bool:
        """Say whether a signal has come."""
        return self._number is not None

    @property
    def exit_code(self) -> int:
        """Of a run that stopped on request: 0 if a person at the keyboard asked (SIGINT), else `STOPPED`."""
        return 0 if self._number == signal.SIGINT else STOPPED

    def __enter__(self) -> "StopRequest":
        self._theirs.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        self._before = {number: signal.signal(number, self._make) for number in numbers}
        threading.Thread(target=self._keep_grace, name="grace", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        signal.set_wakeup_fd(self._wakeup)
        self._theirs.close()  # which ends the thread
        if not self.is_made():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _make(self, number: int, _frame: object) -> None:
        """Take note, on the main thread and as soon as it can."""
        if self._number is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._number = number
        _LOG.info("%s: saving a checkpoint and stopping", signal.Signals(number).name)

    def _keep_grace(self) -> None:
        with self._ours:
            if self._ours.recv(1) and not self._over.wait(self._grace_seconds):
                _LOG.error(
                    "the step under way and the checkpoint did not end in health.grace_seconds=%g; going without, with exit code %d: "
                    "the same command goes on from the checkpoint before",
                    *(self._grace_seconds, STOPPED),
                )
                os._exit(STOPPED)
