"""The only module that imports Meta-World and MuJoCo, and that chooses how they draw without a display."""

import atexit
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from wam_video.errors import ConfigError, MissingDependencyError

BACKENDS = ("egl", "osmesa")
"""In the order in which they are tried."""
_PROBE = "import mujoco; c = mujoco.GLContext(16, 16); c.make_current(); c.free()"


@dataclass(frozen=True, kw_only=True)
class Simulator:
    """What the imports bring."""

    tasks: dict[str, type[Any]]
    """Task name -> environment class."""
    policies: dict[str, type[Any]]
    """Task name -> its scripted expert."""
    mujoco: ModuleType


def choose_backend(works: Callable[[str], str] | None = None) -> str:
    """Return the renderer to use: what `MUJOCO_GL` names, else EGL, else OSMesa.

    Args:
        works: Tells why a backend can't draw here, empty if it can; tried in a process of its own by default, because a
            failed OpenGL platform can't be exchanged for another in the same one.

    Raises:
        ConfigError: Neither works.
    """
    if named := os.environ.get("MUJOCO_GL", ""):
        return named
    reasons = {}
    for backend in BACKENDS:
        reason = (works or _why_not)(backend)
        if not reason:
            return backend
        reasons[backend] = reason
    details = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise ConfigError(
        f"Meta-World can't draw without a display here ({details}); install EGL (apt-get install libegl1 libegl-mesa0) or "
        "OSMesa (apt-get install libosmesa6)"
    )


def _why_not(backend: str) -> str:
    environment = {**os.environ, "MUJOCO_GL": backend}
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], check=False, env=environment, capture_output=True, text=True, timeout=120
    )
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if "Error" in line]
    return (lines or [f"exit code {done.returncode}"])[0].strip()[:120]


@lru_cache(maxsize=1)
def load_simulator() -> Simulator:
    """Import Meta-World with a renderer that works here.

    Raises:
        MissingDependencyError: It is not installed.
        ConfigError: Nothing can draw here.
    """
    if "mujoco" not in sys.modules:  # read once, at its import; child processes inherit the choice
        try:
            import importlib.util

            if importlib.util.find_spec("metaworld") is None or importlib.util.find_spec("mujoco") is None:
                raise ImportError("metaworld", name="metaworld")
            os.environ["MUJOCO_GL"] = choose_backend()
        except ImportError as error:
            raise MissingDependencyError("metaworld", "sim", "Meta-World") from error
    try:
        import mujoco
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        raise MissingDependencyError(error.name or "metaworld", "sim", "Meta-World") from error
    return Simulator(tasks=dict(ALL_V3_ENVIRONMENTS), policies=dict(ENV_POLICY_MAP), mujoco=mujoco)


class World:
    """One Meta-World task, with its goal visible to the expert, and pictures of it.

    Args:
        task: E.g. `reach-v3`.
    """

    def __init__(self, task: str) -> None:
        self._simulator = load_simulator()
        self.env = self._simulator.tasks[task]()
        # As the benchmark's multi-task mode has it: a start drawn at every reset from the seed, the goal in the
        # observation. The space is cached with the goal cut out; clipping to it would hide the goal from the expert.
        self.env._freeze_rand_vec = False
        self.env.seeded_rand_vec = True
        self.env._partially_observable = False
        self.env._set_task_called = True
        self.env.__dict__.pop("sawyer_observation_space", None)
        quality = self.env.model.vis.quality
        quality.shadowsize = quality.offsamples = 0  # 17 ms a frame on a CPU instead of 320
        self._renderers: dict[tuple[int, int], Any] = {}
        self.expert = self._simulator.policies[task]()

    def reset(self, seed: int) -> Float64[np.ndarray, " obs"]:
        """Begin an episode; return the full observation, which only the expert may see."""
        env = self.env
        env.seed(seed)
        env.reset()
        # the benchmark moves bodies and goal markers after its last forward pass: pictures and observations of the first
        # moment would show them where the episode before left them
        self._simulator.mujoco.mj_forward(env.model, env.data)
        for name, position in env._target_site_config:
            env._set_pos_site(name, position)
        observation = env._get_obs()
        observation[18:36] = observation[:18]  # the moment before is this one
        return observation

    def step(self, action: Float64[np.ndarray, " 4"]) -> tuple[Float64[np.ndarray, " obs"], float, dict[str, Any]]:
        """Act for one of the benchmark's steps (12.5 ms)."""
        observation, reward, _, _, info = self.env.step(action)
        return observation, float(reward), info

    def advise(self, observation: Float64[np.ndarray, " obs"]) -> Float64[np.ndarray, " 4"]:
        """Return the scripted expert's action."""
        with warnings.catch_warnings():  # it says that its gains are high, at every step
            warnings.simplefilter("ignore")
            return np.clip(self.expert.get_action(observation), -1.0, 1.0)

    def start_bytes(self) -> bytes:
        """Return positions, velocities and goal."""
        data = self.env.data
        return np.concatenate([data.qpos, data.qvel, np.ravel(self.env._target_pos)]).astype(np.float64).tobytes()

    def draw(self, camera: str, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
        """Draw one camera, without shadows, reflections and multisampling."""
        mujoco, model = self._simulator.mujoco, self.env.model
        if size not in self._renderers:
            model.vis.global_.offheight = max(model.vis.global_.offheight, size[0])
            model.vis.global_.offwidth = max(model.vis.global_.offwidth, size[1])
            self._renderers[size] = mujoco.Renderer(model, *size)
            # after MuJoCo's own, which ends EGL itself: what is registered last runs first
            atexit.register(self.close)
        renderer = self._renderers[size]
        renderer.update_scene(self.env.data, camera=camera)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = 0
        return renderer.render().copy()

    def close(self) -> None:
        """Free the contexts; left to the interpreter's end, EGL complains."""
        atexit.unregister(self.close)
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
        self.env.close()
