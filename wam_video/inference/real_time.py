"""Acting without waiting: the next chunk is decided in a thread while the last one is carried out.

    policy = RealTimePolicy(ask_client(client), PlayConfig(delay=3, execute=8, late="hold"))
    while True:                                     # the robot's own loop, at its own rate
        robot.apply(policy.step(robot.observe))

`ask_client` and `ask_session` make the asking half from a connection to `wam-video serve` or from a session of `pipe.stream()`.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from jaxtyping import Float

from wam_video.inference.chunk_player import Before, ChunkPlayer, PlayConfig
from wam_video.log import get_logger

if TYPE_CHECKING:
    from wam_video.inference.client import Client

_LOG = get_logger(__name__)
_KEPT = 10_000
"""Latencies that are kept for the figures."""


class Ask(Protocol):
    """Decides: an observation, and the plan before, become a chunk. Called in a thread, one call at a time."""

    def __call__(self, observation: Any, before: Before) -> Float[np.ndarray, "ta da"]:
        """Return the chunk whose first action belongs to the observation."""
        ...


class RealTimePolicy:
    """A policy whose `step` never waits but for the first chunk of an episode.

    Args:
        ask: Decides.
        config: How chunks follow each other, and what happens when one is late.
        rest: Returns what keeps the robot where it is; None: its last target again.
        pool: Where decisions are made; None: a thread of its own.

    Attributes:
        player: What it plays; `player.counts` says what happened.
    """

    def __init__(
        self,
        ask: Ask,
        config: PlayConfig,
        rest: Callable[[], Float[np.ndarray, " da"]] | None = None,
        pool: Executor | None = None,
    ) -> None:
        self.player = ChunkPlayer(config)
        self._ask, self._rest = ask, rest
        self._own = ThreadPoolExecutor(1, thread_name_prefix="wam-video-decision") if pool is None else None
        self._pool = pool or self._own
        self._future: Future[tuple[Float[np.ndarray, "ta da"], float]] | None = None
        self._seconds: list[float] = []

    def step(self, observe: Callable[[], Any]) -> Float[np.ndarray, " da"]:
        """Return what to do in this control step.

        Args:
            observe: Returns what is seen now; called only when a decision begins.

        Raises:
            WamError: What the decision before raised; the next call asks again.
        """
        player = self.player
        self._take(wait=False)
        if player.is_due:
            self._begin(observe())
            self._take(wait=player.is_empty and self._rest is None)
        late = player.counts["late"]
        action = player.step(None if self._rest is None else self._rest())
        if player.counts["late"] > late:
            _LOG.warning(
                "decision %d takes longer than its %d steps: %s until it comes (%d late so far)",
                player.counts["asked"], player.config.delay, player.config.late, player.counts["late"],
            )  # fmt: skip
        return action

    def reset(self) -> None:
        """Begin an episode: a decision that is under way is waited for and thrown away."""
        if self._future is not None:
            self._future.exception()
        self._future = None
        self.player.reset()

    def close(self) -> None:
        """End the thread."""
        self.reset()
        if self._own is not None:
            self._own.shutdown()

    def facts(self) -> dict[str, Any]:
        """Return what happened so far: counts of steps and decisions, latencies in milliseconds, mean seam and stride."""
        player, ms = self.player, 1000 * np.asarray(self._seconds)
        quantiles = {f"p{q}_ms": round(float(np.quantile(ms, q / 100)), 3) for q in (50, 95, 99)} if len(ms) else {}
        return {**player.counts, **quantiles, "seam": _mean(player.seams), "stride": _mean(player.strides)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, observation: Any) -> None:
        before = self.player.ask()

        def work() -> tuple[Float[np.ndarray, "ta da"], float]:
            began = perf_counter()
            return self._ask(observation, before), perf_counter() - began

        assert self._pool is not None, "there is a pool until the end"
        self._future = self._pool.submit(work)

    def _take(self, *, wait: bool) -> None:
        future = self._future
        if future is None or not (wait or future.done()):
            return
        self._future = None
        try:
            chunk, seconds = future.result()
        except BaseException:
            self.player.fail()
            raise
        self._seconds = [*self._seconds[-_KEPT:], seconds]
        self.player.receive(chunk)


def ask_client(client: "Client") -> Ask:
    """Return what asks a server: it is told which actions were carried out and which are committed.

    The actions themselves rather than their number, for they need not be those of the server's last answer: a late chunk is entered
    where the old one was left, a seam may be smoothed, and a server that was started again has given no answer yet.
    """

    def ask(observation: Mapping[str, Any], before: Before) -> Float[np.ndarray, "ta da"]:
        told = {name: part for name in ("done", "committed") if len(part := getattr(before, name))}
        told["executed"] = told.pop("done", 0)
        return client.infer({**observation, **told})["actions"]

    return ask


def ask_session(session: Any, **options: Any) -> Ask:
    """Return what asks a session of `pipe.stream()` of one row.

    Args:
        session: Of a network without chunks, or one whose frames come as they should; observations are the arguments of `observe`
            without a batch axis: `{"frames": ..., "state": ...}`.
        options: Of `StreamSession.act`.
    """

    def ask(observation: Mapping[str, Any], before: Before) -> Float[np.ndarray, "ta da"]:
        done = {"actions": before.done} if len(before.done) else {}
        session.observe(**{name: np.asarray(value)[None] for name, value in {**observation, **done}.items()})
        told: dict[str, Any] = {"committed_actions": before.committed[None]} if len(before.committed) else {}
        if len(before.planned) and options.get("continuation") == "guided":
            told["planned_actions"] = before.planned[None]
        return np.asarray(session.act(**told, **options).actions)[0]

    return ask


def _mean(values: list[float]) -> float | None:
    return round(float(np.mean(values)), 6) if values else None
