"""A gymnasium environment as a world to act in; a YAML file says where pictures, state and success are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml
from jaxtyping import Float32, UInt8

from data_pipelines.gym.simulator import make
from data_pipelines.options import build_options
from wam_video.data.schema import EmbodimentSpec, check_name
from wam_video.data.simulation import Outcome, combine_seed
from wam_video.data.video import resize
from wam_video.errors import ConfigError, DataError, one_of

_RENDER = "render"


@dataclass(frozen=True, kw_only=True)
class GymMapping:
    """Where things are in an environment's observation and info; names with dots go into nested dictionaries."""

    embodiment: str
    """Name of the body, that of the data."""
    rate: float
    """Actions a second."""
    views: dict[str, str]
    """Camera name -> place of its picture (uint8 `h w 3`) in the observation, or `render` for what `env.render()` draws."""
    state: str = ""
    """Place of the proprioception in the observation; empty if there is none, `.` if the observation is it."""
    success: str = "info.is_success"
    """Place of a truth value: `info.KEY`, or `terminated` where an episode ends by success only."""
    progress: str = ""
    """Place of a figure from 0 to 1 in the info, e.g. `info.coverage`; empty: success only."""
    prompt: str = ""
    max_steps: int = 400
    imports: list[str] = field(default_factory=list)
    """Packages that register the environment."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of its constructor."""
    wrappers: list[str] = field(default_factory=list)
    """`MODULE:CLASS` of what is put around it, innermost first: for one that speaks in batches or tensors."""
    hold: list[float] | str = "zero"
    """The action that keeps the body still: `zero`, `state` (its first numbers), or the numbers themselves."""


@dataclass(frozen=True, kw_only=True)
class GymOptions:
    """Options of the environment."""

    mapping: str = ""
    """YAML file with the fields of `GymMapping`."""


def read_mapping(path: str) -> GymMapping:
    """Read the file that says where things are.

    Raises:
        DataError: It can't be read.
        ConfigError: A field is unknown, missing or of another type.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(
            f"mapping {path!r} can't be read as YAML ({error}); see data_pipelines/gym/README.md"
        ) from error
    known = [f.name for f in fields(GymMapping)]
    if not isinstance(values, dict):
        raise ConfigError(f"mapping {path!r} holds a {type(values).__name__}; write fields: {', '.join(known)}")
    for key in values:
        if key not in known:
            raise ConfigError(one_of(f"field of mapping {path!r}", key, known))
    try:
        mapping = GymMapping(**values)
    except TypeError as error:
        raise ConfigError(f"mapping {path!r}: {error}; embodiment, rate and views are needed") from error
    if not isinstance(mapping.views, dict) or not mapping.views or not float(mapping.rate) > 0:
        raise ConfigError(
            f"mapping {path!r} has views {mapping.views!r} and rate {mapping.rate!r}; give a view and a rate above 0"
        )
    for view in mapping.views:
        check_name("view", view)
    return mapping


class GymEnvironment:
    """`--env gym:ID --env-option mapping=FILE.yaml`: any registered environment that gives pictures."""

    name: ClassVar[str] = "gym"
    looks_like: ClassVar[str] = "gym:ID with --env-option mapping=FILE.yaml"

    def __init__(self, what: str, *, size: tuple[int, int] = (128, 128), **options: Any) -> None:
        settings = build_options(GymOptions, "gym", options)
        if not what or not settings.mapping:
            raise ConfigError(
                "environment 'gym' needs an id and a mapping: --env gym:gym_pusht/PushT-v0 --env-option mapping=FILE.yaml"
            )
        self.id, self.size, self.mapping = what, size, read_mapping(settings.mapping)
        arguments = dict(self.mapping.arguments)
        if _RENDER in self.mapping.views.values():
            arguments.setdefault("render_mode", "rgb_array")
        self._env = make(what, self.mapping.imports, arguments, self.mapping.wrappers)
        self._box = self._env.action_space
        if len(getattr(self._box, "shape", ()) or ()) != 1:
            raise ConfigError(
                f"environment 'gym:{what}' has actions {self._box}; this library needs a vector (Box of one axis)"
            )
        self._observation, _ = self._env.reset(seed=0)
        self._state_dim = len(self.state())
        self.max_steps = int(self.mapping.max_steps)
        self.frames()  # a wrong place is told now

    @property
    def spec(self) -> EmbodimentSpec:
        """The body that the mapping describes."""
        m = self.mapping
        return EmbodimentSpec(
            name=m.embodiment, action_dim=self._box.shape[0], state_dim=self._state_dim, views=tuple(m.views),
            fps=float(m.rate), action_rate=float(m.rate), description=f"gymnasium {self.id}",
        )  # fmt: skip

    @property
    def tasks(self) -> tuple[str, ...]:
        """The one there is, called by the last part of its id."""
        return ("".join(c if c.isalnum() or c in "-_" else "-" for c in self.id.split("/")[-1]),)

    @property
    def prompt(self) -> str:
        """The instruction of the mapping."""
        return self.mapping.prompt

    def reset(self, task: str, seed: Sequence[int]) -> None:
        """Begin an episode with the environment's own draw of a start."""
        self._observation, _ = self._env.reset(seed=combine_seed(*seed))

    def fingerprint(self) -> bytes:
        """Return pictures and state: all that is known of a start."""
        return self.state().tobytes() + b"".join(frame.tobytes() for frame in self.frames().values())

    def state(self) -> Float32[np.ndarray, " ds"]:
        """Return the proprioception as one vector."""
        if not self.mapping.state:
            return np.zeros(0, np.float32)
        return np.ravel(_find(self._observation, self.mapping.state, "observation")).astype(np.float32)

    def frames(self, size: tuple[int, int] | None = None) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Return every view, resized as stored data are."""
        h, w = size or self.size
        return {view: resize(self._picture(view, place), h, w) for view, place in self.mapping.views.items()}

    def _picture(self, view: str, place: str) -> np.ndarray:
        found = self._env.render() if place == _RENDER else _find(self._observation, place, "observation")
        picture = np.asarray(found)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ConfigError(
                f"view {view!r} of environment 'gym:{self.id}' is {picture.dtype} of shape {picture.shape}; it must be uint8 'h w 3'"
            )
        return picture

    def step(self, action: Float32[np.ndarray, " da"]) -> Outcome:
        """Carry out one action, clipped to the environment's range."""
        clipped = np.clip(action, self._box.low, self._box.high).astype(self._box.dtype)
        self._observation, reward, terminated, truncated, info = self._env.step(clipped)
        known = {"info": info, "terminated": terminated}
        success = bool(_find(known, self.mapping.success, "result"))
        progress = float(success)
        if self.mapping.progress:
            progress = min(1.0, max(0.0, float(_find(known, self.mapping.progress, "result"))))
        return Outcome(reward=float(reward), success=success, progress=progress, done=bool(terminated or truncated))

    def hold(self) -> Float32[np.ndarray, " da"]:
        """Return what the mapping calls holding still."""
        if self.mapping.hold == "zero":
            return np.zeros(self._box.shape, np.float32)
        if self.mapping.hold == "state":
            return self.state()[: self._box.shape[0]]
        return np.asarray(self.mapping.hold, np.float32)

    def random(self, rng: np.random.Generator) -> Float32[np.ndarray, " da"]:
        """Draw from the range, which an unbounded one has not: -1 to 1 then."""
        low = np.where(np.isfinite(self._box.low), self._box.low, -1.0)
        high = np.where(np.isfinite(self._box.high), self._box.high, 1.0)
        return rng.uniform(low, high).astype(np.float32)

    def expert(self, rng: np.random.Generator) -> None:
        """None: gymnasium knows no experts."""

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _find(where: Any, place: str, what: str) -> Any:
    """Follow a name with dots."""
    if place == ".":
        return where
    for part in place.split("."):
        if not isinstance(where, Mapping) or part not in where:
            allowed = [str(key) for key in where] if isinstance(where, Mapping) else []
            raise ConfigError(one_of(f"place {place!r} in the {what}: {part!r}", part, allowed))
        where = where[part]
    return where
