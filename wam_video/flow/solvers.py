"""One sampling loop that walks any path across the noise square, with any number of steps and one of three solvers.

The ODE is dx/dt = v(x, t), integrated from t = 1 towards 0 along a grid of (t_video, t_action); where a clock stands still
its tokens don't move. Clocks are per token: a token may be held at a clock of its own (a given frame or a committed
action at 0, a missing one at 1) whatever the path does. The loop itself never synchronises with the device.

Solvers: `euler`; `heun` (Heun's second-order method, two evaluations a step, Karras et al. 2022, algorithm 1 without
churn; the step onto t = 0 is Euler's, for a sample prediction has no velocity there); `ab2` (two-step Adams-Bashforth with
variable steps, one evaluation a step).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wam_video.errors import ConfigError, one_of
from wam_video.flow.path import expand_clock

Solver = Literal["euler", "heun", "ab2"]

LATENT_FRAME_AXIS = 3
"""Of `b v c t h w`."""
ACTION_AXIS = 1
"""Of `b ta da`."""


@dataclass(frozen=True, kw_only=True)
class State:
    """A point on the way: noisy latents and actions; None where a modality is absent."""

    video: Float[Tensor, "b v c t h w"] | None
    actions: Float[Tensor, "b ta da"] | None


@dataclass(frozen=True, kw_only=True)
class Clocks:
    """A clock for each latent frame and each action; None where the modality is absent."""

    video: Float[Tensor, "b t"] | None
    actions: Float[Tensor, "b ta"] | None
    point: tuple[float, float] | None = None
    """The path's own clocks, known to the host."""


@dataclass(frozen=True, kw_only=True)
class ClockPattern:
    """Which tokens follow the path, and at which clock the others are held."""

    video_free: Bool[Tensor, "b t"] | None
    video_held: Float[Tensor, "b t"] | None
    """Clock of the frames that are not free: 0 for a given one, 1 for a missing one."""
    actions_free: Bool[Tensor, "b ta"] | None
    actions_held: Float[Tensor, "b ta"] | None

    def at(self, point: Float[Tensor, " 2"], known: Float[Tensor, " 2"] | None = None) -> Clocks:
        """Return every token's clock when the path is at `point`; `known` is the same on the host."""

        def clock(free: Tensor | None, held: Tensor | None, t: Tensor) -> Tensor | None:
            return None if free is None or held is None else torch.where(free, t.to(held), held)

        return Clocks(
            video=clock(self.video_free, self.video_held, point[0]),
            actions=clock(self.actions_free, self.actions_held, point[1]),
            point=None if known is None else (float(known[0]), float(known[1])),
        )

    def part(self, frames: slice, actions: slice) -> "ClockPattern":
        """Return the pattern of some of the frames and actions."""

        def cut(held: Tensor | None, where: slice) -> Tensor | None:
            return None if held is None else held[:, where]

        return ClockPattern(
            video_free=cut(self.video_free, frames),
            video_held=cut(self.video_held, frames),
            actions_free=cut(self.actions_free, actions),
            actions_held=cut(self.actions_held, actions),
        )


Field = Callable[[State, Clocks], State]
"""A velocity field: the velocities of a state at its clocks, as a `State`."""


def sample(
    field: Field,
    start: State,
    pattern: ClockPattern,
    grid: Float[Tensor, "steps 2"],
    *,
    solver: str = "euler",
    on_step: Callable[[int, State], None] | None = None,
) -> State:
    """Integrate `field` along `grid` and return the state at its end.

    Args:
        field: The velocity field. One call a step; two with `heun`, but for steps in which a modality arrives at 0.
        start: Noise where something is generated or unknown, data where it is given.
        pattern: The clock pattern over tokens.
        grid: Points (t_video, t_action) from the start to the end of the path, one more than steps.
        solver: `euler`, `heun` or `ab2`.
        on_step: Called after each step with its index and the state (progress, callbacks).

    Raises:
        ConfigError: There is no such solver.
    """
    if solver not in Solver.__args__:
        raise ConfigError(one_of("solver", solver, Solver.__args__))
    grid_on_device = grid.to(_device(start))
    state, previous = start, None
    for i in range(len(grid) - 1):
        now, then = (pattern.at(grid_on_device[k], grid[k]) for k in (i, i + 1))
        v = field(state, now)
        slope = v
        if solver == "heun" and not _arrives(grid, i):
            slope = _mean(v, field(_advance(state, v, now, then), then))
        elif solver == "ab2" and previous is not None:
            slope = _extrapolate(v, previous, grid[i - 1 : i + 2])
        state, previous = _advance(state, slope, now, then), v
        if on_step is not None:
            on_step(i, state)
    return state


def num_calls(grid: Float[Tensor, "steps 2"], solver: str) -> int:
    """Return how often `sample` calls its field along `grid`."""
    steps = range(len(grid) - 1)
    return len(steps) + (sum(not _arrives(grid, i) for i in steps) if solver == "heun" else 0)


def _arrives(grid: Float[Tensor, "steps 2"], i: int) -> bool:
    """Say whether a modality reaches t = 0 in step `i`, or the path ends."""
    return i == len(grid) - 2 or bool(((grid[i] > 0) & (grid[i + 1] == 0)).any())


def _device(state: State) -> torch.device:
    present = state.video if state.video is not None else state.actions
    return present.device if present is not None else torch.device("cpu")


def _advance(state: State, slope: State, now: Clocks, then: Clocks) -> State:
    def step(x: Tensor | None, v: Tensor | None, t0: Tensor | None, t1: Tensor | None, axis: int) -> Tensor | None:
        if x is None or v is None or t0 is None or t1 is None:
            return x
        dt = expand_clock(t1 - t0, x, axis).to(x)
        # A token whose clock stands still keeps its bits, whatever the network says of it.
        return torch.where(dt == 0, x, x + dt * v)

    return State(
        video=step(state.video, slope.video, now.video, then.video, LATENT_FRAME_AXIS),
        actions=step(state.actions, slope.actions, now.actions, then.actions, ACTION_AXIS),
    )


def _mean(a: State, b: State) -> State:
    return _combine(a, b, 0.5, 0.5, 0.5, 0.5)


def _extrapolate(v: State, previous: State, points: Float[Tensor, "3 2"]) -> State:
    """Weigh the last two slopes for a step of another length than the one before (Hairer et al. 1993, III.5)."""
    steps = points[1:] - points[:-1]
    ratio = [float(after) / float(before) if before != 0 else 0.0 for before, after in zip(*steps, strict=True)]
    return _combine(v, previous, 1 + ratio[0] / 2, -ratio[0] / 2, 1 + ratio[1] / 2, -ratio[1] / 2)


def _combine(a: State, b: State, av: float, bv: float, aa: float, ba: float) -> State:
    def mix(x: Tensor | None, y: Tensor | None, p: float, q: float) -> Tensor | None:
        return None if x is None or y is None else p * x + q * y

    return State(video=mix(a.video, b.video, av, bv), actions=mix(a.actions, b.actions, aa, ba))


def guided(conditional: State, unconditional: State, scale_video: float, scale_action: float) -> State:
    """Mix two velocities, each modality with its own scale: `u + s (c - u)` (Ho and Salimans 2022, eq. 6, as w = s - 1)."""
    return _combine(conditional, unconditional, scale_video, 1 - scale_video, scale_action, 1 - scale_action)
