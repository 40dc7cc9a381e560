"""Yields simulated PushT episodes as any other source yields recordings."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml
from jaxtyping import Float, UInt8

from data_pipelines.options import build_options, parse_weights
from data_pipelines.pusht.episode import Recording, simulate
from data_pipelines.pusht.pusher import SKILLS
from data_pipelines.pusht.render import render
from data_pipelines.pusht.simulator import load_simulator
from data_pipelines.workers import in_order
from wam_video.data.schema import EmbodimentSpec, Episode
from wam_video.errors import ConfigError, DataError

PROMPTS = (
    "push the grey T onto the green target",
    "move the grey block until it covers the green T",
    "slide the T-shaped block into the green goal",
    "align the grey T with the green outline",
)
RATE = 10.0
"""Control steps and frames per second."""
EMBODIMENT = EmbodimentSpec(
    name="pusht",
    action_dim=2,
    state_dim=2,
    views=("top",),
    fps=RATE,
    action_rate=RATE,
    action_names=("target_x", "target_y"),
    action_units=("px", "px"),
    state_names=("pusher_x", "pusher_y"),
    description="PushT: a round pusher on a 512 x 512 px table, driven by absolute target positions",
)
_SCHEME = "pusht:"


@dataclass(frozen=True, kw_only=True)
class PushTConfig:
    """What to simulate."""

    episodes: int = 400
    seed: int = 0
    """Episode i is the same whatever `episodes` and `workers` are."""
    max_steps: int = 100
    """Control steps (0.1 s) an episode has at most; it ends earlier on success."""
    image_size: int = 96
    """Side of the frames, px."""
    skills: tuple[str, ...] = ("expert=0.35", "steady=0.25", "clumsy=0.15", "lazy=0.1", "explorer=0.15")
    """`name=weight` of each skill that takes part; names are those of `pusher.SKILLS`."""
    workers: int = 1
    """Processes that simulate; 1 stays in this one."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("episodes", 1, 1_000_000),
            ("seed", 0, 2**31 - 1),
            ("max_steps", 1, 10_000),
            ("image_size", 16, 1024),
            ("workers", 1, 256),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"option {name} of source 'pusht' is {value}; allowed: {low} to {high}")
        self.skill_weights  # noqa: B018 - refuses unknown names

    @property
    def skill_weights(self) -> dict[str, float]:
        """Weight of each skill by name.

        Raises:
            ConfigError: An unknown skill or a weight that is no number >= 0.
        """
        return parse_weights("skill of source 'pusht'", self.skills, SKILLS)


class PushTView:
    """The camera above the table (a `schema.ViewSource`): frames are drawn from poses when they are read."""

    def __init__(self, recording: Recording, image_size: int) -> None:
        self.image_size = image_size
        self._pusher, self._block = recording.pusher, recording.block

    @property
    def times(self) -> Float[np.ndarray, " f"]:
        """Seconds of each frame."""
        return np.arange(len(self._pusher)) / RATE

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Draw every frame in order."""
        for pusher, block in zip(self._pusher, self._block, strict=True):
            yield render(pusher.astype(np.float64), block.astype(np.float64), self.image_size)


class PushTSource:
    """Simulated PushT: SOURCE is `pusht:`, `pusht:episodes=200,seed=1` or a YAML file with the options of `PushTConfig`."""

    name: ClassVar[str] = "pusht"
    looks_like: ClassVar[str] = "pusht: or pusht:episodes=200,seed=1, or a file *.pusht.yaml with such options"

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.config = build_options(PushTConfig, self.name, {**_read_options(str(path)), **options})
        load_simulator()  # fail here and not at the first episode

    @classmethod
    def matches(cls, path: str | Path) -> bool:
        """Return whether `path` starts with `pusht:` or ends in `.pusht.yaml`."""
        return str(path).startswith(_SCHEME) or str(path).endswith((".pusht.yaml", ".pusht.yml"))

    @property
    def len_hint(self) -> int:
        """How many episodes there will be."""
        return self.config.episodes

    @property
    def licence(self) -> str:
        """gym-pusht's own licence; the data are made here."""
        return "Apache-2.0"

    @property
    def notes(self) -> tuple[str, ...]:
        """None: nothing is odd about data that we make."""
        return ()

    def episodes(self) -> Iterator[Episode]:
        """Yield every episode in order; the same ones whatever the number of workers."""
        for index, recording in enumerate(self._recordings()):
            yield _episode(index, recording, self.config)

    def _recordings(self) -> Iterator[Recording]:
        c = self.config
        jobs = ((c.seed, index, c.max_steps, c.skill_weights) for index in range(c.episodes))
        return in_order(_play, jobs, c.workers)


def _play(job: tuple[int, int, int, dict[str, float]]) -> Recording:
    return simulate(*job)


def _episode(index: int, recording: Recording, config: PushTConfig) -> Episode:
    first = index % len(PROMPTS)
    return Episode(
        episode_id=f"seed{config.seed}-{index:06d}",
        embodiment=EMBODIMENT,
        views={"top": PushTView(recording, config.image_size)},
        actions=recording.actions,
        state=recording.pusher,
        prompts=PROMPTS[first:] + PROMPTS[:first],
        reward=recording.reward,
        success=recording.succeeded,
        extra={
            "skill": recording.skill,
            "coverage": round(float(recording.coverage.max()), 4),
            "block_pose": np.round(recording.block.astype(np.float64), 3).tolist(),
        },
    )


def _read_options(path: str) -> dict[str, Any]:
    """Return the options that SOURCE itself states."""
    if path.startswith(_SCHEME):
        options = {}
        for item in path.removeprefix(_SCHEME).strip("/").split(","):
            key, equals, value = item.partition("=")
            if item and not equals:
                raise ConfigError(f"source {path!r} has {item!r}; write pusht:episodes=200,seed=1")
            if item:
                options[key] = value
        return options
    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: can't be read as YAML ({error}); give a file with options, or pusht:") from error
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise DataError(f"{path}: holds a {type(options).__name__}; write one option a line, e.g. episodes: 200")
    skills = options.get("skills")
    if isinstance(skills, dict):
        options["skills"] = tuple(f"{name}={weight}" for name, weight in skills.items())
    elif skills is not None and not isinstance(skills, str):
        raise DataError(
            f"{path}: skills is {skills!r}; write a mapping of names to weights, e.g. {{expert: 1, lazy: 1}}"
        )
    return options
