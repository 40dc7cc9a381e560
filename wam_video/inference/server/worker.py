"""The thread that infers, so that the event loop never waits: pings are answered while a decision takes a minute."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, Queue
from time import monotonic, perf_counter

from wam_video.inference.server.dialects import Answer, Asked
from wam_video.inference.server.policy import Policy
from wam_video.log import get_logger

_LOG = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """How requests of several robots meet."""

    batch_window_s: float = 0.005
    """How long the first of them waits for others."""
    max_batch: int = 8
    """Robots decided for together."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    row: int
    asked: Asked | None
    """None: forget the row."""
    future: "asyncio.Future[Answer | Exception] | None" = None


class Worker:
    """Decides in a thread of its own, in the order in which it was asked.

    Args:
        policy: Used by the thread only, once it runs.
        config: How requests meet.
        seen: Told of each batch, on the event loop: robots and seconds.
        robots: Returns how many there are, for whom it is worth to wait.
    """

    def __init__(
        self,
        policy: Policy,
        config: WorkerConfig,
        seen: Callable[[int, float], None],
        robots: Callable[[], int],
    ) -> None:
        self._policy, self._config, self._seen, self._robots = policy, config, seen, robots
        self._jobs: Queue[_Job | None] = Queue()
        self._loop = asyncio.get_running_loop()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="wam-video-worker", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    async def decide(self, row: int, asked: Asked) -> Answer:
        """Return the decision for a robot, who must not ask again before.

        Raises:
            WamError: The request can't be carried out.
        """
        future: asyncio.Future[Answer | Exception] = self._loop.create_future()
        self._jobs.put(_Job(row=row, asked=asked, future=future))
        answer = await future
        if isinstance(answer, Exception):
            raise answer
        return answer

    def forget(self, row: int) -> None:
        """Make a row as new, after what was asked for before and before what will be asked."""
        self._jobs.put(_Job(row=row, asked=None))

    async def stop(self) -> None:
        """Finish what was asked, and end."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch, rest = self._gather(job) if job.asked is not None else ([], job)
            if batch:
                self._decide(batch)
            if rest is not None:
                self._reset(rest.row)
            elif self._ended:
                return

    def _gather(self, first: _Job) -> tuple[list[_Job], _Job | None]:
        """Return jobs that come within the window, and the reset that ended it, if one did."""
        batch, until = [first], monotonic() + self._config.batch_window_s
        while len(batch) < min(self._config.max_batch, self._robots()):
            try:
                job = self._jobs.get(timeout=max(until - monotonic(), 0))
            except Empty:
                break
            if job is None:
                self._ended = True
                break
            if job.asked is None:
                return batch, job
            batch.append(job)
        return batch, None

    def _reset(self, row: int) -> None:
        try:
            self._policy.reset(row)
        except Exception:  # noqa: BLE001 - the thread must go on
            _LOG.exception("row %d could not be reset", row)

    def _decide(self, batch: list[_Job]) -> None:
        began = perf_counter()
        try:
            answers: list[Answer | Exception] = self._policy.decide(
                [(job.row, job.asked) for job in batch if job.asked is not None]
            )
        except Exception as error:  # noqa: BLE001 - the thread must go on
            _LOG.exception("a batch of %d decisions failed", len(batch))
            answers = [error for _ in batch]
        self._loop.call_soon_threadsafe(self._done, batch, answers, perf_counter() - began)

    def _done(self, batch: list[_Job], answers: list[Answer | Exception], seconds: float) -> None:
        self._seen(len(batch), seconds)
        for job, answer in zip(batch, answers, strict=True):
            if job.future is not None and not job.future.done():
                job.future.set_result(answer)
