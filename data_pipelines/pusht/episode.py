"""One simulated episode: a pure function of (options, index)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data_pipelines.pusht import geometry as geo
from data_pipelines.pusht.pusher import SKILLS, Pusher
from data_pipelines.pusht.pushes import corners
from data_pipelines.pusht.simulator import Table

SUCCESS = 0.95
"""Share of the goal that must be covered, as in gym-pusht."""
_AFTERWARDS = 5
"""Steps that an episode goes on after its success: the pusher retires."""
_NEAR_GOAL = 0.25
"""Share of episodes that start with the block near its goal, so that the last corrections are seen too."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What happened in an episode of T steps."""

    actions: Float[np.ndarray, "t 2"]
    """Targets, px."""
    pusher: Float[np.ndarray, "t1 2"]
    """Centre before each action and after the last, px."""
    block: Float[np.ndarray, "t1 3"]
    """Pose at the same times."""
    reward: Float[np.ndarray, " t"]
    """In [0, 1]: the coverage as a share of `SUCCESS`, after each action."""
    coverage: Float[np.ndarray, " t"]
    """Share of the goal that the block covers after each action."""
    skill: str
    """Name in `SKILLS`."""

    @property
    def succeeded(self) -> bool:
        """Whether the goal was covered at any time."""
        return bool((self.coverage > SUCCESS).any())


def draw_start(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a pusher and a block that do not touch each other or a wall."""
    near = rng.random() < _NEAR_GOAL
    while True:
        if near:
            offset = rng.normal(0.0, 1.0, 3) * [40.0, 40.0, 0.5]
            block = geo.GOAL_POSE + offset
        else:
            block = np.array([*rng.uniform(60.0, 452.0, 2), rng.uniform(-np.pi, np.pi)])
        pusher = rng.uniform(30.0, 482.0, 2)
        reach = corners(block)
        clear = geo.surface_distance(geo.to_block(pusher[None], block))[0] > geo.CLEARANCE
        if clear and reach.min() > 25.0 and reach.max() < geo.WORKSPACE - 25.0:
            return pusher, block


def simulate(seed: int, index: int, max_steps: int, skills: dict[str, float]) -> Recording:
    """Play one episode.

    Args:
        seed: Of the data set.
        index: Of the episode; seed and index decide everything.
        max_steps: Control steps at 10 Hz at most; fewer on success.
        skills: Weight of each skill of `SKILLS`.

    Returns:
        Actions, poses and rewards; frames are drawn from the poses when they are needed.
    """
    rng = np.random.default_rng([seed, index])
    names = sorted(skills)
    weights = np.array([skills[name] for name in names], dtype=np.float64)
    skill = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    table = Table(*draw_start(rng))
    player = Pusher(SKILLS[skill], rng)
    actions, pusher, block, reward, coverage = [], [table.pusher], [table.block], [], []
    left = None
    while len(actions) < max_steps and left != 0:
        # float32 before the simulator sees it: the stored action is the one that was carried out
        action = player.act(pusher[-1], block[-1], retire=left is not None).astype(np.float32)
        gained, covered = table.step(action.astype(np.float64))
        actions.append(action)
        pusher.append(table.pusher)
        block.append(table.block)
        reward.append(gained)
        coverage.append(covered)
        if left is not None:
            left -= 1
        elif covered > SUCCESS:
            left = _AFTERWARDS
    return Recording(
        actions=np.array(actions, dtype=np.float32),
        pusher=np.array(pusher, dtype=np.float32),
        block=np.array(block, dtype=np.float32),
        reward=np.array(reward, dtype=np.float32),
        coverage=np.array(coverage, dtype=np.float32),
        skill=skill,
    )
