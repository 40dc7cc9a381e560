"""The scripted pusher: plans a push, walks round the block to where it starts, pushes, plans again.

Its action is the target that the simulator's controller chases: a carrot that runs along the planned path with bounded
speed and acceleration, so the pusher follows smoothly some two control steps behind. Skill changes the choice of push, the
aim, the speed and the tremor of the hand.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data_pipelines.pusht import geometry as geo
from data_pipelines.pusht.pushes import APPROACH, Planner, Push, push_table


@dataclass(frozen=True, kw_only=True)
class Skill:
    """How well a pusher plays."""

    lookahead: int = 0
    """First pushes judged with a second one in mind."""
    step_cost: float = 0.6
    """px of pose error that a control step is worth: higher means nearer and shorter pushes."""
    choices: int = 1
    """Picks at random from this many best pushes."""
    explore: float = 0.0
    """Share of pushes that have no purpose."""
    aim: float = 0.0
    """px by which the path misses, standard deviation."""
    tremor: float = 0.5
    """px of smooth noise on the action, standard deviation."""
    speed: float = 26.0
    """px a step on the way; pushing is slower."""
    push_speed: float = 8.0
    """px a step while pushing."""
    pause: float = 0.0
    """Chance to rest for some steps before a push."""


SKILLS: dict[str, Skill] = {
    "expert": Skill(lookahead=40),
    "steady": Skill(lookahead=12, aim=1.0, tremor=1.0, speed=22.0, push_speed=7.0),
    "clumsy": Skill(choices=4, explore=0.1, aim=4.0, tremor=3.0),
    "lazy": Skill(step_cost=1.5, choices=2, aim=2.0, tremor=1.0, speed=16.0, push_speed=5.5, pause=0.2),
    "explorer": Skill(explore=1.0, aim=2.0, tremor=1.5, push_speed=9.0),
}
"""From best to aimless."""

_ACCELERATION = 6.0
"""Largest change of the carrot's speed, px a step per step."""
_ARRIVED = 5.0
"""Distance to the end of a push at which the next is planned, px."""
_TOUCHED = 2.0
"""Movement of the block on the way at which the plan is made again, px."""


class Pusher:
    """Closed-loop policy from poses to targets; all randomness from the generator given.

    Args:
        skill: Of this pusher.
        rng: Consumed in order, one pusher per generator.
    """

    def __init__(self, skill: Skill, rng: np.random.Generator) -> None:
        self.skill = skill
        self.rng = rng
        self.planner = Planner(push_table(), skill.step_cost, skill.lookahead)
        self._path: list[np.ndarray] = []
        self._carrot = np.full(2, np.nan)  # set to the pusher's position by the first action
        self._speed = 0.0
        self._noise = np.zeros(2)
        self._rest = 0
        self._planned_for = np.zeros(3)

    def act(
        self, pusher: Float[np.ndarray, " 2"], block: Float[np.ndarray, " 3"], retire: bool = False
    ) -> Float[np.ndarray, " 2"]:
        """Return the next target, px.

        Args:
            pusher: Its centre, px.
            block: Pose of the block.
            retire: The work is done: go away from the block and stay there.
        """
        if np.isnan(self._carrot).any():
            self._carrot = pusher.copy()
        if retire:
            self._path = self._path if self._rest < 0 else [self._away(pusher, block)]
            self._rest = -1
        elif self._must_plan(pusher, block):
            self._plan(pusher, block)
        if self._rest > 0:
            self._rest -= 1
        else:
            self._advance()
        self._noise = 0.8 * self._noise + 0.6 * self.skill.tremor * self.rng.standard_normal(2)
        return np.clip(self._carrot + self._noise, 0.0, geo.WORKSPACE)

    def _must_plan(self, pusher: np.ndarray, block: np.ndarray) -> bool:
        if not self._path:
            return bool(np.linalg.norm(pusher - self._carrot) < _ARRIVED)
        on_the_way = len(self._path) > 1
        return on_the_way and bool(np.linalg.norm((block - self._planned_for)[:2]) > _TOUCHED)

    def _plan(self, pusher: np.ndarray, block: np.ndarray) -> None:
        skill, rng = self.skill, self.rng
        push: Push | None = None
        if rng.random() >= skill.explore:
            best = self.planner.candidates(pusher, block, skill.choices)
            push = best[int(rng.integers(len(best)))] if best else None
        push = push or self.planner.random(pusher, block, rng)
        if push is None:  # nothing can be pushed from here: walk towards the middle and look again
            self._path = [self._away(pusher, block)]
        else:
            path = push.path.copy()
            path[-2:] += skill.aim * rng.standard_normal(2)
            self._path = list(np.clip(path, *geo.PUSHER_BOUNDS))
        self._planned_for = block.copy()
        if rng.random() < skill.pause:
            self._rest = int(rng.integers(2, 8))

    def _away(self, pusher: np.ndarray, block: np.ndarray) -> np.ndarray:
        centre = geo.to_world(geo.CENTRE_OF_GRAVITY[None], block)[0]
        local = geo.to_block(pusher[None], block)
        step = np.eye(2)
        slope = geo.surface_distance(local + step) - geo.surface_distance(local - step)
        outward = geo.rotation(block[2]) @ slope + 1e-3 * (pusher - centre)
        target = pusher + 60.0 * outward / max(float(np.linalg.norm(outward)), 1e-6)
        return np.clip(target, *geo.PUSHER_BOUNDS)

    def _advance(self) -> None:
        """Move the carrot along the path for one control step; slow down in time for the push and its end."""
        if not self._path:
            self._speed = 0.0
            return
        pushing = len(self._path) == 1
        points = np.array([self._carrot, *self._path])
        remaining = float(np.linalg.norm(np.diff(points[: len(points) - 1], axis=0), axis=1).sum())
        if pushing:
            limit = self.skill.push_speed
        else:
            limit = min(self.skill.speed, self.skill.push_speed + 0.35 * max(0.0, remaining - APPROACH / 2))
        self._speed = float(np.clip(limit, self._speed - _ACCELERATION, self._speed + _ACCELERATION))
        left = self._speed
        while self._path and left > 0:
            way = self._path[0] - self._carrot
            distance = float(np.linalg.norm(way))
            if distance <= left:
                self._carrot = self._path.pop(0).copy()
                left -= distance
            else:
                self._carrot = self._carrot + way * (left / distance)
                left = 0.0
