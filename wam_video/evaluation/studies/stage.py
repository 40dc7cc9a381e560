"""A stage for plans: moments of simulated episodes that can be come back to, and what follows there from given actions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from wam_video.data.simulation import Environment, GroundTruth, Outcome, Scene
from wam_video.evaluation.moments import Frames, Moment

Action = Float32[np.ndarray, " da"]
Act = Callable[[int], Action]
"""The action at so many steps after the moment; it may look at the world."""

_STARTS = 13
"""Sets these starts apart from those of recorded data, rollouts and other studies with the same seed."""


class NotRepeatableError(Exception):
    """The same actions from the same start led somewhere else: plans can't be compared in such a world."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """A moment of an episode, after some actions of the expert (without one: of holding still)."""

    task: str
    seed: tuple[int, ...]
    episode: str
    lead: Float32[np.ndarray, "n da"]
    """Actions before it."""
    moment: Moment
    progress: float
    rest: Float32[np.ndarray, "ta da"] | None
    """What the expert does next; None without one."""
    is_last: bool
    """The expert reaches the goal with the last action of `rest`."""
    scene: Scene | None = None
    """What pictures show, where the world tells."""


@dataclass(frozen=True, kw_only=True)
class Performance:
    """What followed from actions."""

    frames: dict[int, Frames]
    """By steps after the moment, those that were asked for."""
    states: Float32[np.ndarray, "ta ds"]
    """After each action."""
    progress: float
    """At the end."""
    success: bool
    """The goal was met at some step."""
    scenes: dict[int, Scene | None]
    """What the pictures show, where the world tells."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Which moments are looked for."""

    seed: int
    horizon: int
    """Actions of a plan."""
    back: tuple[int, ...]
    """Pictures that a moment needs, in steps before it."""
    count: int = 4
    """Moments of an episode, evenly from its beginning to one plan before its end."""


class Stage:
    """Episodes of one world.

    Args:
        world: The simulator.
        config: Which moments.
    """

    def __init__(self, world: Environment, config: StageConfig) -> None:
        self.world, self.config = world, config

    def situations(self, index: int) -> list[Situation]:
        """Return the moments of one episode; none where it is over before a plan could be carried out.

        Args:
            index: Of the start; the tasks take turns.

        Raises:
            NotRepeatableError: The world does not come back to where it was.
        """
        task, seed = self.world.tasks[index % len(self.world.tasks)], (_STARTS, self.config.seed, index)
        actions, states, outcomes, has_expert = self._episode(task, seed)
        horizon, first = self.config.horizon, max(1, *self.config.back)
        last = len(actions) - horizon if has_expert else first
        if last < first:
            return []
        places = sorted({round(float(x)) for x in np.linspace(first, last, self.config.count)})
        drawn = self._draw(task, seed, actions, {at - back for at in places for back in self.config.back})
        return [
            Situation(
                task=task,
                seed=seed,
                episode=f"{task}-{index}",
                lead=actions[:at],
                moment=Moment(
                    pictures={back: drawn[at - back][0] for back in self.config.back},
                    state=states[at],
                    prompt=self.world.prompt,
                    key=f"{task}-{self.config.seed}-{index}@{at}",
                ),
                progress=outcomes[at - 1].progress,
                rest=actions[at : at + horizon] if has_expert else None,
                is_last=has_expert and outcomes[-1].success and at + horizon == len(actions),
                scene=drawn[at][1],
            )
            for at in places
        ]

    def perform(self, situation: Situation, act: Act, film: Sequence[int] = ()) -> Performance:
        """Go to a moment and act for the length of a plan, or until the world ends the episode.

        Args:
            situation: Where.
            act: What is done.
            film: Steps after the moment at which pictures are drawn.

        Raises:
            NotRepeatableError: The world does not come back to where it was.
        """
        world = self.world
        for _ in self._replay(situation.task, situation.seed, situation.lead):
            pass
        if not np.allclose(world.state(), situation.moment.state, rtol=1e-4, atol=1e-5):
            raise NotRepeatableError
        frames, scenes, states, success = {}, {}, [], False
        outcome = Outcome(reward=0.0, success=False, progress=situation.progress)
        for step in range(self.config.horizon):
            if not outcome.done:
                outcome = world.step(act(step))
            success = success or outcome.success
            states.append(world.state())
            if step + 1 in film:
                frames[step + 1], scenes[step + 1] = world.frames(), self._scene()
        return Performance(
            frames=frames, scenes=scenes, states=np.stack(states), progress=outcome.progress, success=success
        )

    def _episode(self, task: str, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, list[Outcome], bool]:
        """Play an episode and return its actions, its states (one more) and outcomes, and whether an expert played."""
        world = self.world
        world.reset(task, seed)
        expert = world.expert(np.random.default_rng([*seed, 1]))
        limit = world.max_steps if expert else max(1, *self.config.back)
        actions, states, outcomes = [], [world.state()], list[Outcome]()
        while len(actions) < limit and not (outcomes and (outcomes[-1].success or outcomes[-1].done)):
            actions.append(np.asarray(expert() if expert else world.hold(), np.float32))
            outcomes.append(world.step(actions[-1]))
            states.append(world.state())
        return np.stack(actions), np.stack(states), outcomes, expert is not None

    def _draw(
        self, task: str, seed: tuple[int, ...], actions: np.ndarray, steps: set[int]
    ) -> dict[int, tuple[Frames, Scene | None]]:
        """Play an episode again, up to the last of the steps that are wanted, and draw those."""
        played = self._replay(task, seed, actions[: max(steps)])
        return {step: (self.world.frames(), self._scene()) for step in played if step in steps}

    def _scene(self) -> Scene | None:
        return self.world.objects() if isinstance(self.world, GroundTruth) else None

    def _replay(self, task: str, seed: tuple[int, ...], actions: np.ndarray) -> Iterator[int]:
        self.world.reset(task, seed)
        yield 0
        for step, action in enumerate(actions):
            self.world.step(action)
            yield step + 1
