"""Closed loop: several worlds side by side, one batched decision for all that need one, a new episode wherever one ends.

Time is counted in control steps. A decision made on what is seen at step k gives a chunk whose action i belongs to step
k + i. With a latency of d steps its first d actions come too late and the chunk before goes on; where nothing is planned
the body holds still. The next decision is due `execute` steps after the last.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, UInt8

from wam_video.data.simulation import Disturbance, Environment, Outcome
from wam_video.errors import ConfigError
from wam_video.evaluation.disturb import Look, disturb_start, draw_look

Frames = dict[str, UInt8[np.ndarray, "h w 3"]]

_STARTS = 7
"""Sets the starts of rollouts apart from those of recorded data with the same seed."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How a closed loop runs."""

    rows: int = 8
    """Worlds side by side."""
    execute: int | None = None
    """Steps from one decision to the next; None: all of a chunk that is left after the latency."""
    latency: int = 0
    """Steps that pass before a decision takes effect."""
    deadline_s: float | None = None
    """A decision that takes longer by the clock is thrown away, and made again at the next step; None: there is no clock."""
    max_steps: int | None = None
    """None: the environment's own."""
    seed: int = 1000
    """Of starts and noise."""
    disturbance: Disturbance = field(default_factory=Disturbance)
    films: int = 0
    """Episodes of each task of which every frame is kept."""

    def __post_init__(self) -> None:
        for name, value, low in (
            ("rows", self.rows, 1),
            ("execute", 1 if self.execute is None else self.execute, 1),
            ("latency", self.latency, 0),
            ("max steps", 1 if self.max_steps is None else self.max_steps, 1),
            ("seed", self.seed, 0),
            ("films", self.films, 0),
        ):
            if value < low:
                raise ConfigError(f"{name} is {value}; allowed: {low} or more")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ConfigError(f"deadline is {self.deadline_s} s; it must be above 0, or left out")


@dataclass(frozen=True, kw_only=True)
class Job:
    """An episode to be played."""

    task: str
    index: int
    """Of the start within its task."""
    filmed: bool

    def start_id(self, seed: int) -> str:
        """Return the name of the start."""
        return f"{self.task}-{seed}-{self.index:04d}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a policy decided for one world."""

    actions: Float32[np.ndarray, "ta da"]
    imagined: dict[int, UInt8[np.ndarray, "h w 3"]] = field(default_factory=dict)
    """Pictures that it expects, first view, by steps from now."""


class Agent(Protocol):
    """What decides."""

    name: str
    horizon: int
    """Actions of a chunk."""
    looks_back: tuple[int, ...]
    """Frames that a decision reads, in steps before it (0 is now); empty for one that is blind."""

    def begin(self, row: "Row") -> None:
        """Prepare for the episode that `row` has just begun."""
        ...

    def decide(self, rows: Sequence["Row"]) -> list[Plan]:
        """Return a plan for each row, all in one go."""
        ...


@dataclass(frozen=True, kw_only=True)
class Episode:
    """How an episode went."""

    job: Job
    start_id: str
    start_hash: str
    outcomes: tuple[Outcome, ...]
    decisions: int
    late: int
    """Decisions that missed the deadline."""
    held: int
    """Steps at which nothing was planned."""
    prompt: str
    last_frame: UInt8[np.ndarray, "h w 3"]
    """First view at the end."""
    film: tuple[UInt8[np.ndarray, "h w 3"], ...]
    """First view at every step, undisturbed and larger; empty unless filmed."""
    seen: tuple[UInt8[np.ndarray, "h w 3"], ...]
    """The same as the policy saw it."""
    imagined: dict[int, UInt8[np.ndarray, "h w 3"]]
    """By step."""
    asked: tuple[int, ...]
    """Steps at which a decision was made."""

    @property
    def success_step(self) -> int | None:
        """Actions until the goal was first met; None if it never was."""
        return next((i + 1 for i, outcome in enumerate(self.outcomes) if outcome.success), None)

    def to_dict(self) -> dict[str, Any]:
        """Return what a record keeps."""
        return {
            "task": self.job.task,
            "start_id": self.start_id,
            "start_hash": self.start_hash,
            "success": self.success_step is not None,
            "success_step": self.success_step,
            "steps": len(self.outcomes),
            "best_progress": round(max(o.progress for o in self.outcomes), 6),
            "reward": round(float(sum(o.reward for o in self.outcomes)), 6),
            "decisions": self.decisions,
            "late_decisions": self.late,
            "held_steps": self.held,
        }


class Row:
    """One world with what is known of its present episode."""

    def __init__(self, environment: Environment, config: LoopConfig, film_size: tuple[int, int]) -> None:
        self.environment, self.config = environment, config
        self._film_size = film_size
        self.limit = config.max_steps or environment.max_steps

    def start(self, job: Job, agent: Agent) -> None:
        """Begin an episode; its start depends on the seed, the task and the index only."""
        seed, world = self.config.seed, self.environment
        world.reset(job.task, [_STARTS, seed, job.index])
        rng = np.random.default_rng([_STARTS, seed, job.index, *job.task.encode()])
        self.look: Look = draw_look(self.config.disturbance, rng)
        disturb_start(world, self.config.disturbance, rng)
        described = repr((world.spec, self.look, self.config.disturbance)).encode()
        self.job, self.start_hash = job, hashlib.sha256(world.fingerprint() + described).hexdigest()[:16]
        self.rng = np.random.default_rng([_STARTS, seed, job.index, *job.task.encode(), 1])
        self.step, self.decisions, self.late, self.held, self.due = 0, 0, 0, 0, 0
        self.committed: dict[int, np.ndarray] = {}
        self.history: dict[int, Frames] = {}
        self.imagined: dict[int, np.ndarray] = {}
        self.asked: list[int] = []
        self.outcomes: list[Outcome] = []
        self.film: list[np.ndarray] = []
        self.seen: list[np.ndarray] = []
        agent.begin(self)
        self.watch(agent)

    @property
    def first_view(self) -> str:
        """The camera that films show."""
        return self.environment.spec.views[0]

    def watch(self, agent: Agent) -> None:
        """Draw the picture of now if a decision will read it, and the film's."""
        if self._is_needed(agent):
            drawn = self.environment.frames()
            self.history[self.step] = {view: self.look(frame) for view, frame in drawn.items()}
        for old in [s for s in self.history if s < self.step - max(agent.looks_back, default=0)]:
            del self.history[old]
        if self.job.filmed:
            self.film.append(self.environment.frames(self._film_size)[self.first_view])
            if self.step in self.history:
                self.seen.append(self.history[self.step][self.first_view])

    def _is_needed(self, agent: Agent) -> bool:
        """Whether a decision at the step that is due, or at one that follows at the usual pace, looks back to now."""
        if not agent.looks_back:
            return False
        if self.job.filmed or self.config.deadline_s is not None:
            return True
        pace = execution_steps(agent, self.config)
        return any((self.step + back - self.due) % pace == 0 for back in agent.looks_back)

    def receive(self, plan: Plan, pace: int) -> None:
        """Take a decision into the plan."""
        latency = self.config.latency
        for i in range(latency, len(plan.actions)):
            self.committed[self.step + i] = plan.actions[i]
        self.imagined.update({self.step + i: frame for i, frame in plan.imagined.items()})
        self.asked.append(self.step)
        self.due = self.step + pace

    def miss(self) -> None:
        """A decision came too late."""
        self.late += 1
        self.due = self.step + 1

    def advance(self, agent: Agent) -> None:
        """Carry out what is planned for this step."""
        action = self.committed.pop(self.step, None)
        if action is None:
            action = self.environment.hold()
            self.held += 1
        self.outcomes.append(self.environment.step(action))
        self.step += 1
        self.watch(agent)

    @property
    def is_over(self) -> bool:
        """Whether the episode has ended: success, the world's own end, or no time left."""
        last = self.outcomes[-1]
        return last.success or last.done or self.step >= self.limit

    def result(self) -> Episode:
        """Return how the episode went."""
        film = tuple(self.film)
        return Episode(
            job=self.job,
            start_id=self.job.start_id(self.config.seed),
            start_hash=self.start_hash,
            outcomes=tuple(self.outcomes),
            decisions=self.decisions,
            late=self.late,
            held=self.held,
            prompt=self.environment.prompt,
            last_frame=self.environment.frames()[self.first_view],
            film=film,
            seen=tuple(self.seen),
            imagined=self.imagined,
            asked=tuple(self.asked),
        )


def execution_steps(agent: Agent, config: LoopConfig) -> int:
    """Return the steps from one decision to the next.

    Raises:
        ConfigError: A chunk is too short for them and the latency.
    """
    pace = (agent.horizon - config.latency) if config.execute is None else config.execute
    if not 1 <= pace <= agent.horizon - config.latency:
        raise ConfigError(
            f"{agent.name} plans {agent.horizon} actions; execute {config.execute} and latency {config.latency} must leave at "
            f"least one step and fit into them"
        )
    return pace


def roll(
    worlds: Sequence[Environment],
    agent: Agent,
    jobs: Iterable[Job],
    config: LoopConfig,
    *,
    film_size: tuple[int, int] = (192, 192),
    clock: Callable[[], float] = time.perf_counter,
    on_episode: Callable[[Episode], None] = lambda episode: None,
) -> list[Episode]:
    """Play episodes in closed loop.

    Args:
        worlds: One environment a row; all of the same kind.
        agent: What decides, for all rows that need a decision at once.
        jobs: Episodes, in the order in which rows take them.
        config: How.
        film_size: Height and width of kept frames.
        clock: Seconds, for the deadline.
        on_episode: Called as each one ends.

    Returns:
        The episodes in the order of `jobs`.
    """
    pace, todo = execution_steps(agent, config), list(jobs)
    waiting, done = deque(enumerate(todo)), {}
    places: dict[int, int] = {}
    active: list[Row] = []
    for row in [Row(world, config, film_size) for world in worlds[: len(todo)]]:
        places[id(row)], job = waiting.popleft()
        row.start(job, agent)
        active.append(row)
    while active:
        if asking := [row for row in active if row.step >= row.due]:
            _ask(agent, asking, pace, config, clock)
        for row in list(active):
            row.advance(agent)
            if not row.is_over:
                continue
            done[places[id(row)]] = episode = row.result()
            on_episode(episode)
            if waiting:
                places[id(row)], job = waiting.popleft()
                row.start(job, agent)
            else:
                active.remove(row)
    return [done[i] for i in range(len(todo))]


def _ask(agent: Agent, asking: Sequence[Row], pace: int, config: LoopConfig, clock: Callable[[], float]) -> None:
    before = clock()
    plans = agent.decide(asking)
    took = clock() - before
    late = config.deadline_s is not None and took > config.deadline_s
    for row, plan in zip(asking, plans, strict=True):
        row.decisions += 1
        if late:
            row.miss()
        else:
            row.receive(plan, pace)
