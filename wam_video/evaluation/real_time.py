"""A checkpoint that decides while its body acts, in simulated time: latency, decisions that are late, and seams.

The agent decides at every control step for the loop (`rollout`), and asks its model only when the next chunk is due: the answer
arrives `latency` steps later, some of them later still. What is done until then is `inference.chunk_player`'s.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wam_video.errors import ConfigError
from wam_video.evaluation.agents import ModelAgent
from wam_video.evaluation.rollout import LoopConfig, Plan, Row
from wam_video.inference.chunk_player import ChunkPlayer, PlayConfig


@dataclass(frozen=True, kw_only=True)
class RealTimeOptions:
    """How decisions and actions overlap."""

    late: str = "continue"
    """What happens when a decision is late: `hold`, `continue` or `slow`."""
    late_share: float = 0.0
    """Share of decisions that are."""
    late_steps: int = 4
    """By so many control steps."""
    blend: int = 0
    """Actions after a seam over which the old chunk goes over into the new."""
    ensemble: float | None = None
    """Weight of temporal ensembling, instead (`PlayConfig.ensemble`)."""

    def __post_init__(self) -> None:
        if not 0 <= self.late_share <= 1:
            raise ConfigError(f"late share is {self.late_share}; allowed: 0 to 1")
        if self.late_steps < 1:
            raise ConfigError(f"late steps is {self.late_steps}; allowed: 1 or more")
        self.play()

    def play(self, delay: int = 0, execute: int | None = None) -> PlayConfig:
        """Return how chunks follow each other."""
        return PlayConfig(delay=delay, execute=execute, late=self.late, blend=self.blend, ensemble=self.ensemble)


@dataclass(kw_only=True)
class _Body:
    """A row's."""

    player: ChunkPlayer
    row: Row
    arrives: int = 0
    chunk: np.ndarray | None = None
    decisions: int = 0


class RealTimeAgent:
    """A model behind a chunk player; the loop around it has no latency of its own.

    Args:
        model: What decides.
        loop: Whose latency and pace are simulated.
        options: What happens when a decision is late.

    Attributes:
        players: What each episode was played by, by the name of its start.
    """

    horizon = 1

    def __init__(self, model: ModelAgent, loop: LoopConfig, options: RealTimeOptions) -> None:
        self.name, self.pipe, self.model, self.options = model.name, model.pipe, model, options
        self.looks_back, self.calls = model.looks_back, model.calls
        self._latency = loop.latency
        self._play = options.play(loop.latency, loop.execute)
        if loop.latency + (loop.execute or 1) > model.horizon:
            raise ConfigError(
                f"{model.name} plans {model.horizon} actions; execute {loop.execute} and latency {loop.latency} must fit into them"
            )
        self._bodies: dict[int, _Body] = {}
        self.players: dict[str, ChunkPlayer] = {}

    def begin(self, row: Row) -> None:
        """Prepare for the episode that `row` has just begun."""
        player = ChunkPlayer(self._play)
        self.players[row.job.start_id(row.config.seed)] = player
        self._bodies[id(row)] = _Body(player=player, row=row)

    def decide(self, rows: Sequence[Row]) -> list[Plan]:
        """Return the action of this step for each row."""
        bodies = [self._bodies[id(row)] for row in rows]
        self._arrive(bodies)
        if due := [body for body in bodies if body.player.is_due]:
            before = [body.player.ask() for body in due]
            plans = self.model.decide([body.row for body in due], before)
            for body, plan in zip(due, plans, strict=True):
                body.chunk, body.arrives = plan.actions, body.row.step + self._latency + self._late(body)
            self._arrive(due)
        rest = [np.asarray(body.row.environment.hold(), np.float32) for body in bodies]
        return [Plan(actions=body.player.step(one)[None]) for body, one in zip(bodies, rest, strict=True)]

    def facts(self) -> dict[str, Any]:
        """Return what happened, over all episodes: steps and decisions of each kind, mean seam and stride of actions."""
        counts = sum((player.counts for player in self.players.values()), start=Counter[str]())
        seams, strides = (
            [x for player in self.players.values() for x in getattr(player, name)] for name in ("seams", "strides")
        )
        return {
            **dict(sorted(counts.items())),
            "seam_jump": round(float(np.mean(seams)), 6) if seams else None,
            "within_jump": round(float(np.mean(strides)), 6) if strides else None,
            "seams": len(seams),
            "late_policy": self.options.late,
            "blend": self.options.blend,
            "ensemble": self.options.ensemble,
        }

    def _arrive(self, bodies: Sequence[_Body]) -> None:
        for body in bodies:
            if body.chunk is not None and body.row.step >= body.arrives:
                body.player.receive(body.chunk)
                body.chunk = None

    def _late(self, body: _Body) -> int:
        """Return how much later than it should a decision comes; the same for every policy that is compared."""
        row = body.row
        body.decisions += 1
        rng = np.random.default_rng([row.config.seed, row.job.index, body.decisions, *row.job.task.encode(), 2])
        return self.options.late_steps if rng.random() < self.options.late_share else 0


def real_time(loop: LoopConfig) -> LoopConfig:
    """Return the loop around a `RealTimeAgent`: it asks at every step."""
    return replace(loop, execute=1, latency=0)
