"""One simulated episode: a pure function of its job, whichever process plays it."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, UInt8

from data_pipelines.metaworld.environment import MetaWorldEnvironment
from wam_video.data.simulation import Controller


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How an arm behaves that has the scripted expert's advice."""

    tremor: float = 0.0
    """Standard deviation of a smooth noise on the hand's motion, in the action's units."""
    interrupted: bool = False
    """From some moment on it wanders about and leaves the work unfinished."""


BEHAVIOURS: dict[str, Behaviour] = {
    "expert": Behaviour(),
    "noisy": Behaviour(tremor=0.4),
    "clumsy": Behaviour(tremor=1.2),
    "interrupted": Behaviour(tremor=0.1, interrupted=True),
}
"""From best to worst."""

_AFTERWARDS_S = 0.3
"""An episode goes on so long after its success."""
_INTERRUPTION_S = (0.1, 0.8)
"""When an interrupted arm leaves its work, drawn between these."""
_WANDERING_S = 0.8


@dataclass(frozen=True, kw_only=True)
class Job:
    """What decides an episode."""

    task: str
    seed: int
    index: int
    behaviour: str
    """Name in `BEHAVIOURS`."""
    noise: float
    """Added to the behaviour's own tremor."""
    max_steps: int
    frame_every: int
    """Actions between frames."""
    size: int
    """Side of the frames, px."""
    views: tuple[str, ...]
    action_repeat: int


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What happened in an episode of T actions."""

    frames: dict[str, UInt8[np.ndarray, "f h w 3"]]
    actions: Float32[np.ndarray, "t 4"]
    state: Float32[np.ndarray, "t1 4"]
    reward: Float32[np.ndarray, " t"]
    """The benchmark's, 0 to 10, at the last of the steps for which each action is held."""
    distances: Float32[np.ndarray, " t"]
    """Of the object to its goal, in the benchmark's own measure."""
    succeeded: bool
    prompt: str

    @property
    def outcome(self) -> str:
        """`success`, `near` (the object came more than half of the way) or `failure`."""
        if self.succeeded:
            return "success"
        return "near" if self.distances.min() <= 0.5 * self.distances[0] else "failure"


@lru_cache(maxsize=1)
def _environment(task: str, size: int, views: tuple[str, ...], action_repeat: int) -> MetaWorldEnvironment:
    return MetaWorldEnvironment(task, size=(size, size), views=",".join(views), action_repeat=action_repeat)


class _Arm:
    """Follows the expert's advice as well as its behaviour lets it."""

    def __init__(self, expert: Controller, behaviour: Behaviour, noise: float, rng: np.random.Generator) -> None:
        self._expert, self._behaviour, self._rng = expert, behaviour, rng
        self._tremor = float(np.hypot(behaviour.tremor, noise))
        self.leaves_at_s = rng.uniform(*_INTERRUPTION_S) if behaviour.interrupted else np.inf
        self._drift = np.append(rng.uniform(-1.0, 1.0, 3), rng.choice([-1.0, 1.0]))
        self._noise = np.zeros(3)

    def act(self, time_s: float) -> Float32[np.ndarray, " 4"]:
        """Return what it does at a time since the start."""
        # standard deviation 1 at rest: 0.8 ** 2 + 0.6 ** 2
        self._noise = 0.8 * self._noise + 0.6 * self._rng.standard_normal(3)
        if time_s < self.leaves_at_s:
            action = self._expert().astype(np.float64)
        else:
            self._drift[:3] = np.clip(self._drift[:3] + 0.1 * self._rng.standard_normal(3), -1.0, 1.0)
            action = self._drift.copy()
        action[:3] += self._tremor * self._noise
        return np.clip(action, -1.0, 1.0).astype(np.float32)


def play(job: Job) -> Recording:
    """Play one episode and draw it.

    Args:
        job: All that it depends on.
    """
    environment = _environment(job.task, job.size, job.views, job.action_repeat)
    rng = np.random.default_rng([job.seed, job.index, *job.task.encode()])
    environment.reset(job.task, [job.seed, job.index])
    arm = _Arm(environment.expert(rng), BEHAVIOURS[job.behaviour], job.noise, rng)
    rate = environment.spec.action_rate
    end = job.max_steps
    if np.isfinite(arm.leaves_at_s):
        end = min(end, round((arm.leaves_at_s + _WANDERING_S) * rate))
    frames = {view: [frame] for view, frame in environment.frames().items()}
    actions, states, outcomes, distances = [], [environment.state()], [], []
    succeeded = False
    while len(actions) < end:
        action = arm.act(len(actions) / rate)
        outcome = environment.step(action)
        actions.append(action)
        states.append(environment.state())
        outcomes.append(outcome)
        distances.append(environment.distance)
        if len(actions) % job.frame_every == 0:
            for view, frame in environment.frames().items():
                frames[view].append(frame)
        if outcome.success and not succeeded:
            succeeded = True
            end = min(end, len(actions) + round(_AFTERWARDS_S * rate))
    return Recording(
        frames={view: np.stack(seen) for view, seen in frames.items()},
        actions=np.array(actions, np.float32),
        state=np.array(states, np.float32),
        reward=np.array([outcome.reward for outcome in outcomes], np.float32),
        distances=np.array(distances, np.float32),
        succeeded=succeeded,
        prompt=environment.prompt,
    )
