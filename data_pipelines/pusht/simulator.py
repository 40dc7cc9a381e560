"""The one module that imports gym-pusht (and with it pygame, pymunk, OpenCV and shapely)."""

import contextlib
import io
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float

from data_pipelines.pusht import geometry as geo
from wam_video.errors import MissingDependencyError

_NEAR = 2.0
"""px between pusher and block at the ends of a step in which they touched."""


@dataclass(frozen=True, kw_only=True)
class Simulator:
    """What the imports bring."""

    env: type[Any]
    """`gym_pusht.envs.pusht.PushTEnv`."""
    pymunk: ModuleType
    cv2: ModuleType


@lru_cache(maxsize=1)
def load_simulator() -> Simulator:
    """Import gym-pusht.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pygame greets on import
            import cv2
            import pymunk
            from gym_pusht.envs.pusht import PushTEnv
    except ImportError as error:
        raise MissingDependencyError(error.name or "gym-pusht", "sim", "the PushT source") from error
    return Simulator(env=PushTEnv, pymunk=pymunk, cv2=cv2)


class Table:
    """One PushT environment, driven by poses: `step` in, pusher, block and coverage out."""

    def __init__(self, pusher: Float[np.ndarray, " 2"], block: Float[np.ndarray, " 3"]) -> None:
        self._env = load_simulator().env(obs_type="state")
        # The environment places the unturned block first and then turns it about its centre of gravity.
        turned = geo.rotation(block[2]) @ geo.CENTRE_OF_GRAVITY
        origin = block[:2] - geo.CENTRE_OF_GRAVITY + turned
        self._env.reset(seed=0, options={"reset_to_state": [*pusher, *origin, block[2]]})
        self._touched = False

    @property
    def pusher(self) -> Float[np.ndarray, " 2"]:
        """Centre of the pusher, px."""
        return np.array(self._env.agent.position)

    @property
    def block(self) -> Float[np.ndarray, " 3"]:
        """Pose of the block."""
        return np.array([*self._env.block.position, self._env.block.angle])

    @property
    def touched(self) -> bool:
        """Whether the pusher touched the block during the last step."""
        return self._touched

    def _gap(self) -> float:
        local = geo.to_block(self.pusher[None], self.block)
        return float(geo.surface_distance(local)[0]) - geo.PUSHER_RADIUS

    def step(self, action: Float[np.ndarray, " 2"]) -> tuple[float, float]:
        """Hold a target for 0.1 s; return the reward in [0, 1] and the share of the goal that is covered."""
        before = self._gap()
        _, reward, _, _, info = self._env.step(action)
        # the simulator counts contacts of the block with the walls, too
        self._touched = self._env.n_contact_points > 0 and min(before, self._gap()) < _NEAR
        return float(reward), float(info["coverage"])
