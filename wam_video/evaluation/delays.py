"""What late decisions cost: the same starts with delays of 0 to d control steps, by how chunks are joined.

A policy decides while its body acts, in simulated time (`real_time`). Of each delay and each way to join chunks: the jump at a
seam of two chunks beside that between two actions of one chunk, and how the task went; differences to the first way are taken
episode by episode.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.data.simulation import Environment
from wam_video.errors import ConfigError
from wam_video.evaluation.agents import ModelAgent, ModelOptions
from wam_video.evaluation.intervals import estimate
from wam_video.evaluation.real_time import RealTimeAgent, RealTimeOptions, real_time
from wam_video.evaluation.rollout import Episode, Job, LoopConfig, roll
from wam_video.evaluation.success import success_rate
from wam_video.inference.chunk_player import ChunkPlayer
from wam_video.inference.pipeline import WAMPipeline

Progress = Callable[[int, int], None]
FIGURES = {
    "seam_jump": ("seam_sum", "seams"),
    "within_jump": ("within_sum", "withins"),
    "best_progress": ("progress", "episodes"),
    "mean_reward": ("reward", "steps"),
    "held_share": ("held", "steps"),
}
"""Each a sum of an episode over another: what is estimated of all of them."""
_SUMS = ("seam_sum", "seams", "within_sum", "withins", "progress", "episodes", "reward", "steps", "held")


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a chunk goes on from the one before."""

    name: str
    continuation: str | None = None
    """`prefix`, `guided` or `replace`; None: chunks know nothing of each other (naive asynchronous execution)."""
    blend: int = 0
    ensemble: float | None = None


@dataclass(frozen=True, kw_only=True)
class DelaysConfig:
    """What is measured."""

    delays: tuple[int, ...]
    """Control steps that a decision takes."""
    ways: tuple[Way, ...]
    episodes: int = 8
    """Of each task."""
    execute: int | None = None
    """Actions from one question to the next, where the delay leaves so many; None, and else: all that it leaves."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    options: ModelOptions = field(default_factory=ModelOptions)

    def __post_init__(self) -> None:
        names = [way.name for way in self.ways]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"ways are {', '.join(names) or 'none'}; give at least one, each once")
        if not self.delays or min(self.delays) < 0 or len(set(self.delays)) != len(self.delays):
            raise ConfigError(f"delays are {list(self.delays)}; give at least one of 0 or more, each once")
        if self.execute is not None and self.execute < 1:
            raise ConfigError(
                f"execute is {self.execute}; allowed: 1 or more, or leave it out for all that a delay leaves"
            )
        if self.episodes < 1:
            raise ConfigError(f"episodes is {self.episodes}; allowed: 1 or more")


def pace(horizon: int, delay: int, execute: int | None) -> int | None:
    """Return the steps from one question to the next; None: all that the delay leaves of a chunk.

    With a delay above half of the horizon the next question is asked as soon as the answer is there, for one decision is made
    at a time, and the body holds still where its chunk ends before.
    """
    return execute if execute is not None and max(delay, 1) <= execute <= horizon - delay else None


def measure(
    pipe: WAMPipeline, worlds: Sequence[Environment], config: DelaysConfig, on_cell: Progress = lambda done, total: None
) -> dict[str, Any]:
    """Play every delay with every way on the same starts, and return the figures as JSON-able numbers.

    Raises:
        ConfigError: A chunk of this model is too short for a delay, or the model does not know the body.
    """
    spec = worlds[0].spec
    horizon = ModelAgent("model", pipe, spec, config.options).horizon
    if max(config.delays) >= horizon:
        raise ConfigError(
            f"delays reach {max(config.delays)}, but a chunk has {horizon} actions: all of them would be past when they are "
            f"known; allowed: up to {horizon - 1}"
        )
    cells, total = [], len(config.delays) * len(config.ways)
    for delay in config.delays:
        first: Float[Tensor, "e k"] | None = None
        for way in config.ways:
            execute = pace(horizon, delay, config.execute)
            episodes, players = _play(pipe, worlds, config, way, replace(config.loop, latency=delay, execute=execute))
            sums = torch.tensor([_sums(*each) for each in zip(episodes, players, strict=True)], dtype=torch.float64)
            ids = [episode.start_id for episode in episodes]
            cell = {
                "delay": delay,
                "delay_s": round(delay / spec.action_rate, 4),
                "way": way.name,
                "execute": execute,
                "success": success_rate(sum(e.success_step is not None for e in episodes), len(episodes)).to_dict(),
                "figures": _estimates(sums, ids),
                "seams": int(sums[:, _SUMS.index("seams")].sum()),
                "decisions": sum(player.counts["asked"] for player in players),
            }
            first = sums if first is None else first
            if first is not sums:
                cell["difference"] = _differences(sums, first, ids)
            cells.append(cell)
            on_cell(len(cells), total)
    return {
        "embodiment": spec.name,
        "action_rate": spec.action_rate,
        "action_horizon": horizon,
        "tasks": list(worlds[0].tasks),
        "episodes": config.episodes * len(worlds[0].tasks),
        "max_steps": config.loop.max_steps or worlds[0].max_steps,
        "seed": config.loop.seed,
        "execute": config.execute,
        "sampling": pipe.sampling_facts(config.options.num_inference_steps, config.options.policy_path),
        "ways": [asdict(way) for way in config.ways],
        "cells": cells,
    }


def _play(
    pipe: WAMPipeline, worlds: Sequence[Environment], config: DelaysConfig, way: Way, loop: LoopConfig
) -> tuple[list[Episode], list[ChunkPlayer]]:
    options = replace(
        config.options, continuation=way.continuation, condition_on_committed=way.continuation is not None
    )
    model = ModelAgent(way.name, pipe, worlds[0].spec, options)
    agent = RealTimeAgent(model, loop, RealTimeOptions(blend=way.blend, ensemble=way.ensemble))
    jobs = [Job(task=task, index=i, filmed=False) for task in worlds[0].tasks for i in range(config.episodes)]
    episodes = roll(worlds[: len(jobs)], agent, jobs, real_time(loop))
    return episodes, [agent.players[episode.start_id] for episode in episodes]


def _sums(episode: Episode, player: ChunkPlayer) -> list[float]:
    steps = len(episode.outcomes)
    found = {
        "seam_sum": sum(player.seams),
        "seams": len(player.seams),
        "within_sum": sum(player.strides),
        "withins": len(player.strides),
        "progress": max(o.progress for o in episode.outcomes),
        "episodes": 1,
        "reward": sum(o.reward for o in episode.outcomes),
        "steps": steps,
        "held": player.counts["held"],
    }
    return [float(found[name]) for name in _SUMS]


def _shares(sums: Float[Tensor, "*n k"]) -> Float[Tensor, "*n m"]:
    return torch.stack([sums[..., _SUMS.index(a)] / sums[..., _SUMS.index(b)] for a, b in FIGURES.values()], dim=-1)


def _estimates(sums: Float[Tensor, "e k"], ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    return _named(estimate(sums, ids, _shares))


def _differences(
    sums: Float[Tensor, "e k"], others: Float[Tensor, "e k"], ids: Sequence[str]
) -> dict[str, Mapping[str, Any]]:
    both = torch.stack([sums, others], dim=1)
    return _named(estimate(both, ids, lambda s: _shares(s[..., 0, :]) - _shares(s[..., 1, :])))


def _named(found: Sequence[Any]) -> dict[str, Mapping[str, Any]]:
    def short(x: float | None) -> float | None:
        return None if x is None else float(f"{x:.5g}")

    return {
        name: {"value": short(one.value), "low": short(one.low), "high": short(one.high)}
        for name, one in zip(FIGURES, found, strict=True)
    }
