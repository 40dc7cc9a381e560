"""Simulated worlds: the protocol of an environment, how one is found by name, and what may be disturbed in it.

An environment is a class of `data_pipelines/<name>` or of any installed package that declares an entry point in the group
`wam_video.environments`. Rollouts drive it with a policy; sources drive it with an expert and record episodes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from wam_video.data.schema import EmbodimentSpec
from wam_video.errors import ConfigError, WamError, one_of

ENTRY_POINT_GROUP = "wam_video.environments"

BUILT_IN = {
    "gym": "data_pipelines.gym:GymEnvironment",
    "metaworld": "data_pipelines.metaworld:MetaWorldEnvironment",
    "pusht": "data_pipelines.pusht:PushTEnvironment",
}
"""Found even when the package runs from a plain checkout that was never installed."""

Controller = Callable[[], Float32[np.ndarray, " da"]]
"""A scripted expert of the present episode: the next action, from what only the simulator knows."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one action led to."""

    reward: float
    success: bool
    """The goal is met now."""
    progress: float
    """How far the task has come, 0 to 1; 1 is success or as good."""
    done: bool = False
    """The world ended the episode by itself."""


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """How much an episode differs from those that a policy was trained on; 0 is nothing, 1 is a lot."""

    camera: float = 0.0
    """The camera is moved: at 1 by up to an eighth of the picture, 15 degrees and 15 % of the scale."""
    light: float = 0.0
    """Brighter or darker and tinted: at 1 by up to 50 %, and 20 % between the colours."""
    distractors: float = 0.0
    """Foreign coloured shapes in the picture: at 1 six of them."""
    start: float = 0.0
    """Random actions before the episode begins: at 1 for two seconds."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not 0 <= value <= 2:
                raise ConfigError(f"disturbance {f.name} is {value}; allowed: 0 (nothing) to 2, 1 is a lot")


class Environment(Protocol):
    """One world at a time: reset it to a task and a start, look, act.

    `__init__(what, size=(height, width), **options)` gets what stands after the colon of `NAME:WHAT`.
    """

    name: ClassVar[str]
    """What `--env` calls it."""
    looks_like: ClassVar[str]
    """One line for messages: what may stand after `--env`."""

    @property
    def spec(self) -> EmbodimentSpec:
        """The body; `fps` equals `action_rate`: a frame can be drawn before every action."""
        ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks asked for."""
        ...

    @property
    def max_steps(self) -> int:
        """Actions of an episode at most, as its benchmark has it."""
        ...

    def reset(self, task: str, seed: Sequence[int]) -> None:
        """Begin an episode; task and seed decide everything about its start."""
        ...

    @property
    def prompt(self) -> str:
        """The instruction."""
        ...

    def fingerprint(self) -> bytes:
        """Return what identifies the start just made: equal bytes, equal start."""
        ...

    def state(self) -> Float32[np.ndarray, " ds"]:
        """Return the proprioception now, in physical units."""
        ...

    def frames(self, size: tuple[int, int] | None = None) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Draw every view now, at the environment's size or at another."""
        ...

    def step(self, action: Float32[np.ndarray, " da"]) -> Outcome:
        """Carry out one action for `1 / action_rate` seconds; out of range means clipped."""
        ...

    def hold(self) -> Float32[np.ndarray, " da"]:
        """Return the action that keeps the body where it is."""
        ...

    def random(self, rng: np.random.Generator) -> Float32[np.ndarray, " da"]:
        """Draw an action uniformly from the allowed range."""
        ...

    def expert(self, rng: np.random.Generator) -> Controller | None:
        """Return a scripted expert for the episode just begun, or None if there is none."""
        ...

    def close(self) -> None:
        """Free windows and memory."""
        ...


@dataclass(frozen=True, kw_only=True)
class Thing:
    """Something that pictures show in a colour of its own, so that it can be found in them."""

    name: str
    colour: tuple[int, int, int]
    """Red, green, blue, 0 to 255."""
    place: tuple[float, float]
    """Its middle now: shares of the picture's width (to the right) and height (down)."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What can be found by colour in the pictures of one view."""

    view: str
    body: Thing
    """What the actions drive."""
    things: tuple[Thing, ...]
    """What moves only if it is pushed."""
    scenery: tuple[tuple[int, int, int], ...]
    """Colours of all that never moves; the first is the ground."""
    flat: bool = False
    """Seen from straight above: things keep their shape in the picture, whatever they do."""


@runtime_checkable
class GroundTruth(Protocol):
    """What an environment may declare besides, so that imagined pictures can be held against its physics."""

    def objects(self) -> Scene | None:
        """Return what is where now; None if this task shows nothing that a colour gives away."""
        ...

    def contacts(self) -> frozenset[str]:
        """Return the names of the things that the body touched during the last action."""
        ...

    def way_back(self, states: Float32[np.ndarray, "s ds"]) -> Float32[np.ndarray, "t da"]:
        """Return actions that lead the body back along the states that it came by; empty if that can't be done."""
        ...


def environment_targets() -> dict[str, str]:
    """Return `module:Class` of each environment by name: the built-in ones and those of installed packages."""
    found = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINT_GROUP)}
    return dict(sorted({**BUILT_IN, **found}.items()))


def open_environment(env: str, size: tuple[int, int], **options: Any) -> Environment:
    """Open `NAME` or `NAME:WHAT`, e.g. `pusht`, `metaworld:reach-v3`, `gym:ID`.

    Args:
        env: Which one.
        size: Height and width of its frames, pixels.
        options: Of that environment; see its README.

    Raises:
        ConfigError: Unknown environment, task or option.
        MissingDependencyError: The simulator is not installed.
    """
    name, _, what = env.partition(":")
    targets = environment_targets()
    if name not in targets:
        raise ConfigError(one_of("--env", name, targets))
    module, _, attribute = targets[name].partition(":")
    try:
        chosen = getattr(import_module(module), attribute)
    except WamError:
        raise
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"environment {name!r} ({targets[name]}) can't be imported: {error}") from error
    return chosen(what, size=size, **options)


def combine_seed(*parts: int) -> int:
    """Mix whole numbers into one 31-bit seed, for simulators that take a single one."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1)[0]) >> 1
