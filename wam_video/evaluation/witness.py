"""An environment that is watched: what it showed, where the body was and what came of each action is kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, UInt8

from wam_video.data.schema import EmbodimentSpec
from wam_video.data.simulation import Controller, Environment, Outcome
from wam_video.evaluation.moments import Frames


@dataclass(kw_only=True)
class Track:
    """One episode as it was watched."""

    task: str
    seed: tuple[int, ...]
    pictures: dict[int, Frames] = field(default_factory=dict)
    """By step: every so many steps, and the last."""
    states: list[Float32[np.ndarray, " ds"]] = field(default_factory=list)
    """Before each action, and after the last."""
    actions: list[Float32[np.ndarray, " da"]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        """Whether the goal was ever met."""
        return any(outcome.success for outcome in self.outcomes)

    def progress(self, step: int) -> float:
        """Return how far the task had come after so many actions; nothing is known of the start, which counts as 0."""
        return 0.0 if step == 0 else self.outcomes[step - 1].progress


class Witness:
    """An environment, watched; it is otherwise what it is.

    Args:
        inner: The environment.
        every: Steps from one kept picture to the next.
    """

    name: ClassVar[str] = "witness"
    looks_like: ClassVar[str] = "witness"

    def __init__(self, inner: Environment, every: int) -> None:
        self.inner, self.every = inner, every
        self.tracks: list[Track] = []

    @property
    def spec(self) -> EmbodimentSpec:
        """The body."""
        return self.inner.spec

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return self.inner.tasks

    @property
    def max_steps(self) -> int:
        """Actions of an episode at most."""
        return self.inner.max_steps

    @property
    def prompt(self) -> str:
        """The instruction."""
        return self.inner.prompt

    def reset(self, task: str, seed: Sequence[int]) -> None:
        """Begin an episode and a track."""
        self.inner.reset(task, seed)
        self.tracks.append(Track(task=task, seed=tuple(seed), states=[self.inner.state()]))
        self.tracks[-1].pictures[0] = self.inner.frames()

    def fingerprint(self) -> bytes:
        """Return what identifies the start."""
        return self.inner.fingerprint()

    def state(self) -> Float32[np.ndarray, " ds"]:
        """Return the proprioception."""
        return self.inner.state()

    def frames(self, size: tuple[int, int] | None = None) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Draw every view now; a kept picture is not drawn twice."""
        track = self.tracks[-1] if self.tracks else None
        if size is None and track is not None and (kept := track.pictures.get(len(track.actions))) is not None:
            return dict(kept)
        return self.inner.frames(size)

    def step(self, action: Float32[np.ndarray, " da"]) -> Outcome:
        """Carry out one action and keep what came of it."""
        outcome, track = self.inner.step(action), self.tracks[-1]
        track.actions.append(np.asarray(action, np.float32))
        track.states.append(self.inner.state())
        track.outcomes.append(outcome)
        step = len(track.actions)
        if step % self.every == 0 or outcome.success or outcome.done:
            track.pictures[step] = self.inner.frames()
        return outcome

    def hold(self) -> Float32[np.ndarray, " da"]:
        """Return the action that keeps the body where it is."""
        return self.inner.hold()

    def random(self, rng: np.random.Generator) -> Float32[np.ndarray, " da"]:
        """Draw an action."""
        return self.inner.random(rng)

    def expert(self, rng: np.random.Generator) -> Controller | None:
        """Return the expert."""
        return self.inner.expert(rng)

    def close(self) -> None:
        """Free the environment."""
        self.inner.close()
