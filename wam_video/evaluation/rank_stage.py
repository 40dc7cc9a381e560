"""The stage of `wam-video rank`: simulated worlds, a world model, and policies that can be played in both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from wam_video.data.normalize import recorded_actions
from wam_video.data.simulation import Environment, open_environment
from wam_video.errors import ConfigError
from wam_video.evaluation.agents import Control, ModelAgent
from wam_video.evaluation.imagined_world import WorldModel
from wam_video.evaluation.rollout import Agent, Episode, Job, LoopConfig, roll
from wam_video.evaluation.variants import Trembling, Variant, action_limits, describe
from wam_video.evaluation.witness import Track, Witness
from wam_video.inference import loading
from wam_video.inference.opening import Acting, open_checkpoint
from wam_video.inference.pipeline import WAMPipeline
from wam_video.tensors import Mode

MIN_POLICIES = 6
"""Of fewer, no order can be told from chance."""
_JUDGE_SEED = 500_000
"""Added to the seed of the starts that the judge learns on."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """What is ranked, and in what."""

    world_model: str
    """Checkpoint folder or Hub id; its forward mode is the world."""
    policies: tuple[Variant, ...]
    env: str
    env_options: Mapping[str, str] = field(default_factory=dict[str, str])
    episodes: int = 8
    """Starts of each task."""
    judge_episodes: int = 4
    """Other starts of each task, for each policy and the expert."""
    execute: int | None = None
    """Actions from one decision to the next; None: as many as the world model has pictures for."""
    max_steps: int | None = None
    """Actions of an episode at most; None: the environment's own."""
    rows: int = 8
    """Worlds side by side."""
    steps: int | None = None
    """Of the world model, from noise to data; None: its own."""
    seed: int = 1000
    films: int = 6
    device: str = "cpu"

    def __post_init__(self) -> None:
        if len(self.policies) < MIN_POLICIES:
            raise ConfigError(
                f"there are {len(self.policies)} policies; a ranking needs {MIN_POLICIES} or more, which differ a lot: add variants "
                "such as NAME=FOLDER:noise=1"
            )
        for name, low in (("episodes", 2), ("judge_episodes", 1), ("rows", 1), ("films", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: {low} or more")


class Stage:
    """The simulated worlds of a run, and what can be played in them."""

    def __init__(self, config: RankConfig) -> None:
        self.config, self.pipes = config, dict[str, Acting]()
        pipe = self.pipe(config.world_model)
        if not isinstance(pipe, WAMPipeline) or Mode.FORWARD in pipe.unanswered():
            raise ConfigError(
                f"the world model {config.world_model!r} does not answer mode 'forward'; give a checkpoint that does"
            )
        self.size = _size(pipe, "the world model")
        first = open_environment(config.env, self.size, **config.env_options)
        self.model = WorldModel(pipe, first.spec, num_inference_steps=config.steps)
        self.every = self.model.steps[0]
        self.pace = self.model.steps[-1] if config.execute is None else config.execute
        if self.pace % self.every or not 0 < self.pace <= self.model.steps[-1]:
            raise ConfigError(
                f"execute is {self.pace}; the world model has pictures after {list(self.model.steps)} actions: allowed are these"
            )
        if (limit := config.max_steps or first.max_steps) < self.every:
            raise ConfigError(
                f"max_steps is {limit}; the world model draws its first picture after {self.every} actions: allowed are as many or more"
            )
        self.tasks, self.spec = first.tasks, first.spec
        count = min(config.rows, config.episodes * len(self.tasks))
        more = [open_environment(config.env, self.size, **config.env_options) for _ in range(count - 1)]
        self.worlds: list[Environment] = [first, *more]
        first.reset(self.tasks[0], [0])
        self.limits = action_limits(first)
        self.agents = {variant.name: self._agent(variant) for variant in config.policies}

    def pipe(self, folder: str) -> Acting:
        """Return a checkpoint, loaded once."""
        if folder not in self.pipes:
            self.pipes[folder] = open_checkpoint(folder).to(self.config.device)
        return self.pipes[folder]

    def _agent(self, variant: Variant) -> Agent:
        pipe = self.pipe(variant.folder)
        if (size := _size(pipe, f"policy {variant.name!r}")) != self.size:
            raise ConfigError(
                f"policy {variant.name!r} reads pictures of {size[0]}x{size[1]}, the world model makes {self.size[0]}x{self.size[1]}; "
                "give policies that read those"
            )
        agent = ModelAgent(variant.name, pipe, self.spec, variant.options(self.config.device))
        if agent.horizon < self.pace:
            raise ConfigError(
                f"policy {variant.name!r} plans {agent.horizon} actions and {self.pace} are carried out; give a smaller execute, "
                f"of {list(self.model.steps)}"
            )
        return Trembling(agent, variant.noise * action_scale(pipe, self.spec.name), self.limits)

    def play(
        self, agent: Agent, worlds: Sequence[Environment], *, seed: int, episodes: int
    ) -> list[tuple[Episode, Track]]:
        """Roll out and return each episode with what was watched of it, in the order of the starts."""
        watched = [Witness(world, self.every) for world in worlds]
        loop = LoopConfig(
            rows=len(worlds),
            execute=min(self.pace, agent.horizon),
            max_steps=self.config.max_steps,
            seed=seed,
        )
        jobs = [Job(task=task, index=i, filmed=False) for task in self.tasks for i in range(episodes)]
        played = roll(watched, agent, jobs, loop)
        tracks = {(track.task, track.seed[-1]): track for world in watched for track in world.tracks}
        return [(episode, tracks[episode.job.task, episode.job.index]) for episode in played]

    def lessons(self, on_progress: Progress) -> list[Track]:
        """Play the starts that the judge learns on: every policy, and the expert steady and trembling."""
        config, tracks = self.config, list[Track]()
        agents = list(self.agents.values())
        if self.worlds[0].expert(np.random.default_rng(0)) is not None:
            spread = action_scale(self.model.pipe, self.spec.name)
            agents += [Trembling(Control("expert"), amount * spread, self.limits) for amount in (0.0, 0.5)]
        for i, agent in enumerate(agents):
            found = self.play(agent, self.worlds, seed=config.seed + _JUDGE_SEED + i, episodes=config.judge_episodes)
            tracks += [track for _, track in found]
            on_progress("episodes to judge by", i + 1, len(agents))
        return tracks

    def close(self) -> None:
        """Close the worlds."""
        for world in self.worlds:
            world.close()

    def facts(self, folder: str) -> dict[str, Any]:
        """Return what a record says of a checkpoint."""
        path: Path = loading.resolve(folder)
        return {
            "path": str(path),
            "model_hash": loading.model_hash(path),
            "num_parameters": sum(p.numel() for p in self.pipe(folder).transformer.parameters()),
        }

    def policy_facts(self, variant: Variant) -> dict[str, Any]:
        """Return what a record says of a policy."""
        pipe = self.pipe(variant.folder)
        return {
            "name": variant.name,
            **self.facts(variant.folder),
            "variant": describe(variant),
            "clocks": pipe.sampling_facts(variant.steps, variant.path),
            "action_noise_std": variant.noise,
        }


def action_scale(pipe: Acting, body: str) -> Float[np.ndarray, " da"]:
    """Return the standard deviation of each dimension of the actions that a checkpoint was trained on."""
    return np.asarray(recorded_actions(pipe.processor.config["stats"][body])["std"], np.float64)


def _size(pipe: Acting, what: str) -> tuple[int, int]:
    window = pipe.processor.window
    if window.height is None or window.width is None:
        raise ConfigError(f"{what} does not say what size of pictures it reads; give a checkpoint whose window does")
    return window.height, window.width
