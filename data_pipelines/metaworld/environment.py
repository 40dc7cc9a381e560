"""Meta-World as a world to act in: fifty tasks, one body, the cameras that the benchmark has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, UInt8

from data_pipelines.metaworld.simulator import World, load_simulator
from data_pipelines.metaworld.tasks import PROMPTS, parse_tasks
from data_pipelines.options import build_options
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.simulation import Controller, Outcome, combine_seed
from wam_video.errors import ConfigError, one_of

BASE_RATE = 80.0
"""The benchmark's own steps a second."""
CAMERAS = ("corner4", "corner2", "corner3", "corner", "topview", "gripperPOV", "behindGripper")
_UPSIDE_DOWN = frozenset({"corner", "corner2", "corner3", "corner4"})
"""These cameras hang on their heads: their pictures are turned by half a turn."""


@dataclass(frozen=True, kw_only=True)
class MetaWorldOptions:
    """How the benchmark is used."""

    views: tuple[str, ...] = ("corner4",)
    """Cameras, of `CAMERAS`."""
    action_repeat: int = 2
    """Steps of the benchmark (12.5 ms) for which an action is held: 2 is 40 actions a second. The scripted experts succeed as
    often as at 1 (198 and 199 of 200 episodes of 50 tasks; 190 at 4)."""

    def __post_init__(self) -> None:
        for view in self.views:
            if view not in CAMERAS:
                raise ConfigError(one_of("view of Meta-World", view, CAMERAS))
        if not self.views or not 1 <= self.action_repeat <= 16:
            raise ConfigError(
                f"Meta-World has views {self.views} and action_repeat {self.action_repeat}; give a view, and 1 to 16"
            )

    @property
    def action_rate(self) -> float:
        """Actions a second."""
        return BASE_RATE / self.action_repeat

    def spec(self, fps: float | None = None) -> EmbodimentSpec:
        """Return the body as these options drive it."""
        return EmbodimentSpec(
            name="metaworld"
            if self.action_repeat == MetaWorldOptions.action_repeat
            else f"metaworld-{self.action_rate:g}hz",
            action_dim=4,
            state_dim=4,
            views=self.views,
            fps=fps or self.action_rate,
            action_rate=self.action_rate,
            action_names=("dx", "dy", "dz", "grip"),
            action_units=("normalised",) * 4,
            state_names=("hand_x", "hand_y", "hand_z", "gripper_opening"),
            description="Meta-World's Sawyer arm: motion of the hand and effort of the gripper, both within -1 and 1",
        )


class MetaWorldEnvironment:
    """`--env metaworld:TASKS`: names with commas, or `easy`, `mt10`, `all`; progress is a tenth of the reward."""

    name: ClassVar[str] = "metaworld"
    looks_like: ClassVar[str] = "metaworld:reach-v3,push-v3 or metaworld:easy, :mt10, :all"

    def __init__(self, what: str = "", *, size: tuple[int, int] = (128, 128), **options: Any) -> None:
        self.options = build_options(MetaWorldOptions, self.name, options)
        self.tasks = parse_tasks(what)
        self.size = size
        load_simulator()  # fail here and not at the first episode
        self.max_steps = 500 // self.options.action_repeat
        self._task = self.tasks[0]
        self._world: World | None = None
        self._observation = np.zeros(0)
        self.distance = 0.0
        """Of the object to its goal in the benchmark's own measure, after the last action."""

    @property
    def spec(self) -> EmbodimentSpec:
        """The arm, with a frame before every action."""
        return self.options.spec()

    @property
    def prompt(self) -> str:
        """The instruction of the present task."""
        return PROMPTS[self._task]

    @property
    def world(self) -> World:
        """The simulator of this episode."""
        if self._world is None:
            raise ConfigError("environment 'metaworld' was not reset; call reset(task, seed) first")
        return self._world

    def reset(self, task: str, seed: Sequence[int]) -> None:
        """Draw object and goal; another task loads another scene (half a second)."""
        if self._world is None or task != self._task:
            self.close()
            self._task, self._world = task, World(task)
        self._observation = self.world.reset(combine_seed(*seed))

    def fingerprint(self) -> bytes:
        """Return positions, velocities and goal."""
        return self._task.encode() + self.world.start_bytes()

    def state(self) -> Float32[np.ndarray, " ds"]:
        """Return where the hand is (m) and how far the gripper is open (0 to 1)."""
        return self._observation[:4].astype(np.float32)

    def frames(self, size: tuple[int, int] | None = None) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Draw the cameras, upright."""
        drawn = {view: self.world.draw(view, size or self.size) for view in self.options.views}
        return {v: np.ascontiguousarray(x[::-1, ::-1]) if v in _UPSIDE_DOWN else x for v, x in drawn.items()}

    def step(self, action: Float32[np.ndarray, " da"]) -> Outcome:
        """Hold an action; it succeeded if the benchmark says so at any of its steps."""
        success, reward = False, 0.0
        for _ in range(self.options.action_repeat):
            # the benchmark refuses to go on after its own limit; how long an episode lasts is the caller's business
            self.world.env.curr_path_length = 0
            self._observation, reward, info = self.world.step(np.clip(action, -1.0, 1.0))
            success = success or bool(info["success"])
            self.distance = float(info["obj_to_target"])
        return Outcome(reward=reward, success=success, progress=1.0 if success else min(1.0, max(0.0, reward / 10.0)))

    def hold(self) -> Float32[np.ndarray, " da"]:
        """Return no motion and no effort."""
        return np.zeros(4, np.float32)

    def random(self, rng: np.random.Generator) -> Float32[np.ndarray, " da"]:
        """Draw from the whole range."""
        return rng.uniform(-1.0, 1.0, 4).astype(np.float32)

    def expert(self, rng: np.random.Generator) -> Controller:
        """Return the benchmark's scripted policy, which sees object and goal."""
        return lambda: self.world.advise(self._observation).astype(np.float32)

    def close(self) -> None:
        """Free the scene."""
        if self._world is not None:
            self._world.close()
            self._world = None
