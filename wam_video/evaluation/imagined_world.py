"""A world model as an environment: forward in a loop, from the start of a simulated episode on.

The pictures are the model's. How far the task has come is read off them by a judge, and the body's state follows the actions
by a fitted linear model (`judge.py`): neither comes from the simulator, which makes the start and nothing else.

A forward call reads a chunk of actions, an environment is told one at a time. An agent may therefore tell its whole plan
before (`Foresight`): all worlds that decide together are imagined in one batch, and the model knows the plan to its end.
Actions that differ from what was told are imagined anew, from those carried out, the later ones unknown.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32, UInt8
from PIL import Image

from wam_video.data.schema import EmbodimentSpec
from wam_video.data.simulation import Controller, Environment, Outcome
from wam_video.errors import ConfigError
from wam_video.evaluation.agents import check_body
from wam_video.evaluation.moments import Frames, Moment, batch_of, look_ahead, look_back
from wam_video.evaluation.rollout import Agent, Plan, Row
from wam_video.evaluation.witness import Witness
from wam_video.inference.inputs import horizon
from wam_video.inference.pipeline import WAMPipeline

_NOISE = 17
"""Sets the world model's noise apart from the policies'."""


class Dreamer(Protocol):
    """What imagines: pictures that follow moments and the actions told with them."""

    steps: tuple[int, ...]
    """Of the pictures after a moment."""
    looks_back: tuple[int, ...]
    """Pictures that it reads, in steps before the moment."""

    def imagine(self, moments: Sequence[Moment], seeds: Sequence[int]) -> list[dict[int, Frames]]:
        """Return the pictures of each moment's future by step, all in one go; one noise seed each."""
        ...


class Judge(Protocol):
    """What reads a picture."""

    def progress(self, task: str, first: Frames, frames: Sequence[Frames]) -> list[float]:
        """Return how far the task has come in each picture of an episode that began with `first`, about 0 to 1."""
        ...

    def success(self, task: str, progress: float) -> bool:
        """Return whether that is far enough."""
        ...


class Motion(Protocol):
    """How actions move the body."""

    def __call__(
        self, states: Sequence[Float32[np.ndarray, " ds"]], action: Float32[np.ndarray, " da"]
    ) -> Float32[np.ndarray, " ds"]:
        """Return the state after an action, from the states so far."""
        ...


class WorldModel:
    """A checkpoint's forward mode as a dreamer.

    Raises:
        ConfigError: The checkpoint does not know this body or another shape of it, or imagines no pictures.
    """

    def __init__(self, pipe: WAMPipeline, spec: EmbodimentSpec, *, num_inference_steps: int | None = None) -> None:
        pipe.set_progress_bar_config(disable=True)
        self.pipe, self.spec, self.num_inference_steps = pipe, check_body(pipe, spec), num_inference_steps
        self.window = pipe.processor.window
        last = horizon(self.window, self.spec.name)
        ahead = look_ahead(self.window, self.spec)
        self.steps = tuple(step for step in ahead if 0 < step <= last)
        self.looks_back = look_back(self.window, self.spec)
        if not self.steps:
            raise ConfigError(
                f"the world model's window has {last} actions and future frames after {list(ahead)} actions, none of which they "
                "reach; give a model that predicts pictures"
            )

    def imagine(self, moments: Sequence[Moment], seeds: Sequence[int]) -> list[dict[int, Frames]]:
        """Run forward on all moments at once."""
        out = self.pipe.predict(
            batch_of(moments, self.window, self.spec, "imagined"),
            "forward",
            num_inference_steps=self.num_inference_steps,
            generator=list(seeds),
            output_type="pt",
        )
        if out.video is None:
            raise ConfigError(
                "the world model gives no video; it needs a checkpoint that was trained with future frames"
            )
        pixels = (torch.as_tensor(out.video).float().cpu() * 255).round().clamp(0, 255).to(torch.uint8)
        video = rearrange(pixels, "b v f c h w -> b f v h w c").numpy()
        views = self.spec.views[: self.window.max_views]
        return [
            {step: dict(zip(views, video[b, f], strict=True)) for f, step in enumerate(self.steps)}
            for b in range(len(moments))
        ]


class Frozen:
    """A broken dreamer: nothing ever moves."""

    def __init__(self, dreamer: Dreamer) -> None:
        self.steps, self.looks_back = dreamer.steps, dreamer.looks_back

    def imagine(self, moments: Sequence[Moment], seeds: Sequence[int]) -> list[dict[int, Frames]]:
        """Show the present picture again."""
        return [dict.fromkeys(self.steps, moment.pictures[0]) for moment in moments]


class Shuffled:
    """A broken dreamer: it is told actions that belong to another moment of other episodes.

    Args:
        dreamer: What it was.
        chunks: Actions of as many steps, from recorded episodes of the same tasks.
    """

    def __init__(self, dreamer: Dreamer, chunks: Float32[np.ndarray, "n ta da"]) -> None:
        self.dreamer, self.chunks = dreamer, chunks
        self.steps, self.looks_back = dreamer.steps, dreamer.looks_back

    def imagine(self, moments: Sequence[Moment], seeds: Sequence[int]) -> list[dict[int, Frames]]:
        """Imagine what follows other actions, drawn by the seed."""
        told = [
            Moment(
                pictures=m.pictures,
                state=m.state,
                prompt=m.prompt,
                key=m.key,
                actions=self.chunks[np.random.default_rng(seed).integers(len(self.chunks))],
            )
            for m, seed in zip(moments, seeds, strict=True)
        ]
        return self.dreamer.imagine(told, seeds)


class ImaginedWorld:
    """An environment whose pictures are imagined (`data.simulation.Environment`).

    Args:
        world: Makes the starts; it never moves.
        dreamer: Imagines.
        judge: Says how far the task has come, at the steps that have a picture.
        motion: Says where the body is.
    """

    name: ClassVar[str] = "imagined"
    looks_like: ClassVar[str] = "imagined"

    def __init__(self, world: Environment, dreamer: Dreamer, judge: Judge, motion: Motion) -> None:
        self.world, self.dreamer, self.judge, self.motion = world, dreamer, judge, motion
        self.task, self.seed = "", tuple[int, ...]()
        self._clear()

    def _clear(self) -> None:
        self.pictures: dict[int, Frames] = {}
        self.states: list[np.ndarray] = []
        self.step_number = self.anchor = 0
        self.carried_out: list[np.ndarray] = []
        """Actions since the moment that was last imagined from."""
        self._told: np.ndarray | None = None
        self._ahead: Mapping[int, tuple[Frames, float]] = {}
        self._progress = 0.0

    @property
    def spec(self) -> EmbodimentSpec:
        """The body."""
        return self.world.spec

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return self.world.tasks

    @property
    def max_steps(self) -> int:
        """Actions of an episode at most."""
        return self.world.max_steps

    @property
    def prompt(self) -> str:
        """The instruction."""
        return self.world.prompt

    def reset(self, task: str, seed: Sequence[int]) -> None:
        """Take the start's picture and state from the simulated world."""
        self.world.reset(task, seed)
        self.task, self.seed = task, tuple(seed)
        self._clear()
        self.pictures[0] = self.world.frames()
        self.states.append(self.world.state())

    def fingerprint(self) -> bytes:
        """Return the start's, which is the simulated one's."""
        return self.world.fingerprint()

    def state(self) -> Float32[np.ndarray, " ds"]:
        """Return where the actions have brought the body."""
        return self.states[-1]

    def frames(self, size: tuple[int, int] | None = None) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Return the newest picture."""
        newest = self.pictures[max(self.pictures)]
        if size is None:
            return dict(newest)
        height, width = size
        return {
            view: np.asarray(Image.fromarray(x).resize((width, height), Image.Resampling.BILINEAR))
            for view, x in newest.items()
        }

    def moment(self, plan: Float32[np.ndarray, "n da"] | None) -> Moment:
        """Return what is known at the moment to imagine from, with the actions that follow it."""
        return Moment(
            pictures={self.anchor - step: frames for step, frames in self.pictures.items() if step <= self.anchor},
            state=self.states[self.anchor],
            prompt=self.prompt,
            key=f"{self.task}@{self.anchor}",
            actions=plan,
        )

    def noise_seed(self) -> int:
        """Return the seed of the present moment's noise: that of the start and the step, and of nothing else."""
        parts = [_NOISE, *self.seed, self.anchor, *self.task.encode()]
        return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)

    def begin_moment(self) -> None:
        """Imagine from now on.

        Raises:
            ConfigError: There is no picture of now.
        """
        if self.step_number not in self.pictures:
            raise ConfigError(
                f"a decision is made after {self.step_number} actions, of which the world model has no picture; it has one every "
                f"{self.dreamer.steps[0]}: give an execution interval that is a multiple"
            )
        self.anchor, self.carried_out, self._told, self._ahead = self.step_number, [], None, {}

    def receive(self, plan: Float32[np.ndarray, "n da"], pictures: Mapping[int, Frames]) -> None:
        """Take in what was imagined for a plan."""
        judged = self.judge.progress(self.task, self.pictures[0], list(pictures.values()))
        self._told = np.asarray(plan, np.float32)
        self._ahead = {step: (frames, p) for (step, frames), p in zip(pictures.items(), judged, strict=True)}

    def step(self, action: Float32[np.ndarray, " da"]) -> Outcome:
        """Carry out one action in the imagination."""
        self.carried_out.append(np.asarray(action, np.float32))
        self.states.append(self.motion(self.states, self.carried_out[-1]))
        self.step_number += 1
        ahead = self.step_number - self.anchor
        if ahead not in self.dreamer.steps:  # no picture, so nothing new is known
            return Outcome(reward=0.0, success=False, progress=self._progress)
        done = np.stack(self.carried_out)
        if self._told is None or not np.array_equal(self._told[:ahead], done):
            self.receive(done, self.dreamer.imagine([self.moment(done)], [self.noise_seed()])[0])
        self.pictures[self.step_number], progress = self._ahead[ahead]
        self._progress = min(1.0, max(0.0, progress))
        if ahead == self.dreamer.steps[-1] or self._told is None or ahead == len(self._told):
            self.begin_moment()  # nothing more is known of what comes
        success = self.judge.success(self.task, progress)
        return Outcome(reward=0.0, success=success, progress=self._progress)

    def hold(self) -> Float32[np.ndarray, " da"]:
        """Return the action that keeps the body where it started."""
        return self.world.hold()

    def random(self, rng: np.random.Generator) -> Float32[np.ndarray, " da"]:
        """Draw an action."""
        return self.world.random(rng)

    def expert(self, rng: np.random.Generator) -> Controller | None:
        """There is none: the expert would have to see what only the simulator knows."""
        return None

    def close(self) -> None:
        """Nothing to free: the simulated world is the caller's."""


class Foresight:
    """An agent in imagined worlds: the dreamer hears of its plans, all rows at once.

    Args:
        agent: What decides.
        dreamer: Of the worlds.
    """

    def __init__(self, agent: Agent, dreamer: Dreamer) -> None:
        self.agent, self.dreamer = agent, dreamer
        self.name, self.horizon, self.looks_back = agent.name, agent.horizon, agent.looks_back

    def begin(self, row: Row) -> None:
        """As the agent does."""
        self.agent.begin(row)

    def decide(self, rows: Sequence[Row]) -> list[Plan]:
        """Decide, then imagine what follows."""
        plans = self.agent.decide(rows)
        worlds = [_imagined(row.environment) for row in rows]
        for world in worlds:
            world.begin_moment()
        chunks = [np.asarray(plan.actions, np.float32) for plan in plans]
        moments = [world.moment(chunk) for world, chunk in zip(worlds, chunks, strict=True)]
        pictures = self.dreamer.imagine(moments, [world.noise_seed() for world in worlds])
        for world, chunk, ahead in zip(worlds, chunks, pictures, strict=True):
            world.receive(chunk, ahead)
        return plans


def _imagined(environment: Environment) -> ImaginedWorld:
    inner = environment.inner if isinstance(environment, Witness) else environment
    if not isinstance(inner, ImaginedWorld):
        raise ConfigError(f"environment {environment.name!r} is not imagined; foresight is for imagined worlds")
    return inner
