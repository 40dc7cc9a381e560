"""Yields simulated Meta-World episodes as any other source yields recordings."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_pipelines.metaworld.environment import MetaWorldOptions
from data_pipelines.metaworld.episode import BEHAVIOURS, Job, Recording, play
from data_pipelines.metaworld.simulator import load_simulator
from data_pipelines.metaworld.tasks import parse_tasks
from data_pipelines.options import build_options, parse_weights
from data_pipelines.workers import in_order
from wam_video.data.schema import Episode
from wam_video.data.video import ArrayView
from wam_video.errors import ConfigError

_SCHEME = "metaworld:"


@dataclass(frozen=True, kw_only=True)
class MetaWorldConfig:
    """What to simulate."""

    episodes: int = 20
    """Of each task."""
    seed: int = 0
    """Episode i of a task is the same whatever `episodes`, `workers` and the other tasks are."""
    max_steps: int = 250
    """Actions an episode has at most; it ends 0.3 s after success."""
    image_size: int = 128
    """Side of the frames, px."""
    fps: float = 20.0
    """Frames a second; the action rate must be a multiple."""
    views: tuple[str, ...] = ("corner4",)
    """Cameras; see the README."""
    action_repeat: int = 2
    """Steps of the benchmark (12.5 ms) for which an action is held."""
    noise: float = 0.0
    """Standard deviation of a smooth noise on every episode's motion; actions lie within -1 and 1."""
    behaviours: tuple[str, ...] = ("expert=0.6", "noisy=0.15", "clumsy=0.1", "interrupted=0.15")
    """`name=weight` of those that take part; names are those of `episode.BEHAVIOURS`."""
    workers: int = 1
    """Processes that simulate and draw; 1 stays in this one."""

    def __post_init__(self) -> None:
        options = self.options
        for name, low, high in (
            ("episodes", 1, 1_000_000),
            ("seed", 0, 2**31 - 1),
            ("max_steps", 1, 10_000),
            ("image_size", 16, 1024),
            ("noise", 0.0, 10.0),
            ("workers", 1, 256),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"option {name} of source 'metaworld' is {value}; allowed: {low} to {high}")
        if not 0 < self.fps <= options.action_rate or (options.action_rate / self.fps) % 1 > 1e-6:
            rates = ", ".join(f"{options.action_rate / k:g}" for k in (1, 2, 4, 8))
            raise ConfigError(
                f"option fps of source 'metaworld' is {self.fps:g} at {options.action_rate:g} actions a second, which "
                f"must be a multiple; give e.g. {rates}"
            )
        self.weights  # noqa: B018 - refuses unknown names

    @property
    def options(self) -> MetaWorldOptions:
        """How the benchmark is used."""
        return MetaWorldOptions(views=self.views, action_repeat=self.action_repeat)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each behaviour by name."""
        return parse_weights("behaviour of source 'metaworld'", self.behaviours, BEHAVIOURS)


class MetaWorldSource:
    """Simulated Meta-World: SOURCE is `metaworld:TASKS`, names with commas or a group: `easy`, `mt10`, `all`."""

    name: ClassVar[str] = "metaworld"
    looks_like: ClassVar[str] = "metaworld:reach,drawer-open or metaworld:easy, metaworld:mt10, metaworld:all"

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.tasks = parse_tasks(str(path).removeprefix(_SCHEME).strip("/"))
        self.config = build_options(MetaWorldConfig, self.name, options)
        load_simulator()  # fail here and not at the first episode

    @classmethod
    def matches(cls, path: str | Path) -> bool:
        """Return whether `path` starts with `metaworld:`."""
        return str(path).startswith(_SCHEME)

    @property
    def len_hint(self) -> int:
        """How many episodes there will be."""
        return self.config.episodes * len(self.tasks)

    @property
    def licence(self) -> str:
        """Meta-World's own licence; the data are made here."""
        return "MIT"

    @property
    def notes(self) -> tuple[str, ...]:
        """None: nothing is odd about data that we make."""
        return ()

    def episodes(self) -> Iterator[Episode]:
        """Yield every episode, task after task; the same ones whatever the number of workers."""
        jobs = [self._job(task, index) for task in self.tasks for index in range(self.config.episodes)]
        for job, recording in zip(jobs, in_order(play, jobs, self.config.workers), strict=True):
            yield _episode(job, recording, self.config)

    def _job(self, task: str, index: int) -> Job:
        c = self.config
        names = sorted(c.weights)
        shares = np.array([c.weights[name] for name in names])
        rng = np.random.default_rng([c.seed, index, *task.encode(), 1])
        return Job(
            task=task,
            seed=c.seed,
            index=index,
            behaviour=names[int(rng.choice(len(names), p=shares / shares.sum()))],
            noise=c.noise,
            max_steps=c.max_steps,
            frame_every=round(c.options.action_rate / c.fps),
            size=c.image_size,
            views=c.views,
            action_repeat=c.action_repeat,
        )


def _episode(job: Job, recording: Recording, config: MetaWorldConfig) -> Episode:
    return Episode(
        episode_id=f"{job.task}-seed{job.seed}-{job.index:06d}",
        embodiment=config.options.spec(config.fps),
        views={
            view: ArrayView(frames, np.arange(len(frames)) / config.fps) for view, frames in recording.frames.items()
        },
        actions=recording.actions,
        state=recording.state,
        prompts=(recording.prompt,),
        reward=recording.reward,
        success=recording.succeeded,
        extra={
            "task": job.task,
            "behaviour": job.behaviour,
            "outcome": recording.outcome,
            "best_reward": round(float(recording.reward.max()), 4),
            "nearest": round(float(recording.distances.min() / max(float(recording.distances[0]), 1e-6)), 4),
        },
    )
