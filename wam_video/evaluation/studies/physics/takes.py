"""Takes: what a simulator shows from one start under several known action sequences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, UInt8

from wam_video.data.simulation import Environment, GroundTruth, Scene

KINDS = ("push", "stray", "hold", "back", "again")
"""push: what the expert does; stray: towards a random action; hold: nothing; back: half a push and the way back; again: the
expert once more from the same start, by other random numbers, as a scene is filmed twice."""
_STARTS = 11
"""Sets these starts apart from those of recorded data and rollouts with the same seed."""

Action = Float32[np.ndarray, " da"]


@dataclass(frozen=True, kw_only=True)
class Take:
    """A simulated stretch of time, with s moments and an action between each two."""

    start: str
    kind: str
    prompt: str
    now: int
    """Moment at which the actions begin that belong to the kind; those before are the same in all takes of a start but `again`."""
    views: dict[str, UInt8[np.ndarray, "s h w 3"]]
    states: Float32[np.ndarray, "s ds"]
    actions: Float32[np.ndarray, "t da"]
    scenes: tuple[Scene | None, ...]
    touched: tuple[frozenset[str], ...]
    """Things touched during each action."""
    turn: int | None = None
    """Moment at which the way back begins."""


@dataclass(kw_only=True)
class _Reel:
    """A take while it is recorded."""

    frames: list[dict[str, np.ndarray]]
    states: list[np.ndarray]
    actions: list[np.ndarray]
    scenes: list[Scene | None]
    touched: list[frozenset[str]]


def record_takes(world: Environment, index: int, *, seed: int, history: int, length: int) -> list[Take]:
    """Simulate all kinds of takes from one start, which lies shortly before the expert first touches something.

    Args:
        world: The simulator; a task of its own for each index, in turn.
        index: Of the start.
        seed: Of everything random.
        history: Moments before `now`.
        length: Actions from `now` on.

    Returns:
        Fewer takes where the world has no expert (no `again`) or knows no way back; none where it ends before.
    """
    task = world.tasks[index % len(world.tasks)]
    studio = _Studio(world, task, (seed, _STARTS, index))
    reel = studio.explore(history, length)
    first = next((i for i, touched in enumerate(reel.touched) if touched), history)
    lead = int(studio.rng("lead").integers(2, max(3, length // 3)))
    now = max(history, first - lead)
    if len(reel.actions) < now + length:
        return []
    before, total = reel.actions[:now], now + length
    pushed = np.stack(reel.actions[now : now + length])
    takes = [("push", lambda: studio.follow(pushed)), ("stray", lambda: studio.stray(length)), ("hold", studio.hold)]
    turn = now + length // 2
    back = _back(world, reel, now, turn, pushed)
    if back is not None:
        takes.append(("back", lambda: studio.follow(back)))
    found = [studio.take(kind, now, total, plan, before) for kind, plan in takes]
    if studio.has_expert:
        found.append(studio.take("again", now, total, lambda: studio.expert("again")))
    return [replace(take, turn=turn) if take.kind == "back" else take for take in found if take is not None]


def _back(world: Environment, reel: _Reel, now: int, turn: int, pushed: np.ndarray) -> np.ndarray | None:
    if not isinstance(world, GroundTruth) or not any(any(touched) for touched in reel.touched[now:turn]):
        return None  # nothing was pushed: there is nothing to leave behind
    way = world.way_back(np.stack(reel.states[now : turn + 1]))
    return np.concatenate([pushed[: turn - now], way]) if len(way) else None


class _Studio:
    """Replays one start."""

    def __init__(self, world: Environment, task: str, seed: tuple[int, ...]) -> None:
        self.world, self.task, self.seed = world, task, seed
        self.has_expert = False

    def rng(self, what: str) -> np.random.Generator:
        return np.random.default_rng([*self.seed, *what.encode()])

    def _begin(self) -> _Reel:
        self.world.reset(self.task, self.seed)
        return _Reel(
            frames=[self.world.frames()], states=[self.world.state()], actions=[], scenes=[self._scene()], touched=[]
        )

    def _scene(self) -> Scene | None:
        return self.world.objects() if isinstance(self.world, GroundTruth) else None

    def _step(self, reel: _Reel, action: Action) -> bool:
        done = self.world.step(action).done
        reel.actions.append(np.asarray(action, np.float32))
        reel.frames.append(self.world.frames())
        reel.states.append(self.world.state())
        reel.scenes.append(self._scene())
        reel.touched.append(self.world.contacts() if isinstance(self.world, GroundTruth) else frozenset())
        return not done

    def explore(self, history: int, length: int) -> _Reel:
        """Let the expert (without one: random targets) act until it has touched something and a take has passed."""
        reel = self._begin()
        act = self.expert("explore")
        grounded = isinstance(self.world, GroundTruth)
        wait = self.world.max_steps // 2 if grounded else history
        while self._step(reel, act()):
            first = next((i for i, touched in enumerate(reel.touched) if touched), None)
            if len(reel.actions) >= max(history, wait if first is None else first) + length:
                break
        return reel

    def take(
        self,
        kind: str,
        now: int,
        total: int,
        plan: Callable[[], Callable[[], Action]],
        before: Sequence[np.ndarray] = (),
    ) -> Take | None:
        """Record `total` actions: first those given, then what the plan makes of the moment after them."""
        reel = self._begin()
        alive = all(self._step(reel, action) for action in before)
        act = plan()
        while alive and len(reel.actions) < total:
            alive = self._step(reel, act())
        if len(reel.actions) < total:
            return None
        return Take(
            start=f"{self.task}-{self.seed[-1]}",
            kind=kind,
            prompt=self.world.prompt,
            now=now,
            views={view: np.stack([f[view] for f in reel.frames]) for view in reel.frames[0]},
            states=np.stack(reel.states),
            actions=np.stack(reel.actions),
            scenes=tuple(reel.scenes),
            touched=tuple(reel.touched),
        )

    def expert(self, what: str) -> Callable[[], Action]:
        expert = self.world.expert(self.rng(what))
        self.has_expert = expert is not None
        if expert is not None:
            return expert
        rng, hold = self.rng(what), self.world.hold()
        target = self.world.random(rng)
        return lambda: (hold + target) / 2

    def follow(self, actions: np.ndarray) -> Callable[[], Action]:
        rest = iter(actions)
        return lambda: next(rest, actions[-1])

    def hold(self) -> Callable[[], Action]:
        action = self.world.hold()
        return lambda: action

    def stray(self, length: int) -> Callable[[], Action]:
        here, there = self.world.hold(), self.world.random(self.rng("stray"))
        ramp = np.arange(1, length + 1, dtype=np.float32)[:, None] / length
        return self.follow((here + (there - here) * ramp).astype(np.float32))
