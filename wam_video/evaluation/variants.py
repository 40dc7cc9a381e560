"""Policies of one family: a checkpoint, and what becomes of it with fewer steps, another path or trembling actions."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from wam_video.data.simulation import Environment
from wam_video.errors import ConfigError, one_of
from wam_video.evaluation.agents import ModelOptions
from wam_video.evaluation.rollout import Agent, Plan, Row

_TREMBLE = 29
"""Sets the noise of actions apart from all other noise."""
_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A policy: a checkpoint and how it decides."""

    name: str
    folder: str
    steps: int | None = None
    """From noise to data; None: the checkpoint's own."""
    path: str | None = None
    """What it does with the future video: `unknown`, `absent` or `joint`; None: the checkpoint's own."""
    noise: float = 0.0
    """Added to each action, in standard deviations of the recorded actions: a worse policy, by as much as is wanted."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps of policy {self.name!r} is {self.steps}; allowed: 1 or more")
        if not 0 <= self.noise < 100:
            raise ConfigError(f"noise of policy {self.name!r} is {self.noise}; allowed: 0 (none) to below 100")

    def options(self, device: str) -> ModelOptions:
        """Return how the checkpoint decides."""
        return ModelOptions(num_inference_steps=self.steps, policy_path=self.path, device=device)


_KINDS: dict[str, type] = {"steps": int, "path": str, "noise": float}


def parse_variant(text: str) -> Variant:
    """Read `NAME=FOLDER` or `NAME=FOLDER:steps=1,path=absent,noise=0.3`.

    Raises:
        ConfigError: It is something else, or an option is unknown or out of range.
    """
    name, equals, rest = text.partition("=")
    folder, colon, tail = rest.rpartition(":")
    if not colon or "=" not in tail:
        folder, tail = rest, ""
    if not equals or not name or "/" in name or not folder:
        raise ConfigError(f"--policy is {text!r}; give NAME=FOLDER or NAME=FOLDER:steps=1,path=absent,noise=0.3")
    settings: dict[str, Any] = {}
    for pair in filter(None, tail.split(",")):
        key, _, value = pair.partition("=")
        if key not in _KINDS:
            raise ConfigError(one_of(f"option of policy {name!r}", key, _KINDS))
        try:
            settings[key] = _KINDS[key](value)
        except ValueError as error:
            raise ConfigError(
                f"{key} of policy {name!r} is {value!r}; give a number, e.g. {'4' if key == 'steps' else '0.3'}"
            ) from error
    return Variant(name=name, folder=folder, **settings)


def parse_variants(texts: Sequence[str]) -> tuple[Variant, ...]:
    """Read several.

    Raises:
        ConfigError: One is malformed, or two have the same name.
    """
    variants = tuple(parse_variant(text) for text in texts)
    names = [variant.name for variant in variants]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--policy has the name {name!r} twice; give each one its own: NAME=FOLDER")
    return variants


def describe(variant: Variant) -> str:
    """Return what is special about it, empty if nothing."""
    shown = {f.name: getattr(variant, f.name) for f in fields(variant) if f.name in _KINDS}
    return ", ".join(
        f"{key}={value:g}" if key == "noise" else f"{key}={value}" for key, value in shown.items() if value
    )


class Trembling:
    """An agent whose actions tremble, and stay within what the environment carries out.

    Args:
        agent: What it was.
        scale: Standard deviation of what is added to each dimension, physical units.
        limits: Lowest and highest action; an environment clips what is beyond, a world model would not.
    """

    def __init__(self, agent: Agent, scale: np.ndarray, limits: tuple[np.ndarray, np.ndarray]) -> None:
        self.agent, self.scale, self.limits = agent, np.asarray(scale, np.float32), limits
        self.name, self.horizon, self.looks_back = agent.name, agent.horizon, agent.looks_back

    def begin(self, row: Row) -> None:
        """As the agent does."""
        self.agent.begin(row)

    def decide(self, rows: Sequence[Row]) -> list[Plan]:
        """Decide, then add noise that depends on the start and the step only."""
        plans = []
        for plan, row in zip(self.agent.decide(rows), rows, strict=True):
            actions = np.clip(plan.actions + self._noise(row, plan.actions.shape), *self.limits).astype(np.float32)
            plans.append(Plan(actions=actions, imagined=plan.imagined))
        return plans

    def _noise(self, row: Row, shape: tuple[int, ...]) -> np.ndarray:
        parts = [_TREMBLE, row.config.seed, row.job.index, row.step, *row.job.task.encode()]
        return np.random.default_rng(parts).standard_normal(shape) * self.scale


def action_limits(world: Environment) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest action that an environment draws at random, which it does from the whole range.

    Args:
        world: One that was reset.
    """
    rng = np.random.default_rng(_TREMBLE)
    drawn = np.stack([world.random(rng) for _ in range(_DRAWS)])
    return drawn.min(axis=0), drawn.max(axis=0)
