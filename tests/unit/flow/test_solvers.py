"""The one sampling loop: exact solutions, orders of convergence, held tokens."""

import math

import pytest
import torch

from wam_video.errors import ConfigError
from wam_video.flow.modes import MODES, POLICY_PATHS, PathConfig, Role, path_grid
from wam_video.flow.solvers import ClockPattern, Clocks, State, guided, num_calls, sample
from wam_video.tensors import Mode


def pattern(frames: int = 2, actions: int = 3, batch: int = 1) -> ClockPattern:
    return ClockPattern(
        video_free=torch.ones(batch, frames, dtype=torch.bool),
        video_held=torch.zeros(batch, frames, dtype=torch.float64),
        actions_free=torch.ones(batch, actions, dtype=torch.bool),
        actions_held=torch.zeros(batch, actions, dtype=torch.float64),
    )


def state(value: float = 1.0) -> State:
    return State(
        video=torch.full((1, 1, 1, 2, 1, 1), value, dtype=torch.float64),
        actions=torch.full((1, 3, 1), value, dtype=torch.float64),
    )


def exponential(s: State, clocks: Clocks) -> State:
    """dx/dt = x, whose solution from t = 1 to 0 is x / e."""
    return s


def solve(solver: str, steps: int, mode: Mode = Mode.JOINT, shift: float = 1.0) -> State:
    grid = path_grid(MODES[mode], PathConfig(num_inference_steps=steps, shift_video=shift))
    return sample(exponential, state(), pattern(), grid, solver=solver)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("ab2", 2)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_solvers_converge_at_their_order(solver: str, order: int, shift: float) -> None:
    errors = [abs(solve(solver, steps, shift=shift).video.mean().item() - math.exp(-1)) for steps in (40, 80)]
    # Heun ends on an Euler step and ab2 starts on one: one step of second-order local error keeps the order.
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2"])
def test_a_constant_velocity_is_integrated_exactly_in_one_step(solver: str) -> None:
    noise, data = state(2.0), state(0.5)
    field = lambda s, c: State(video=noise.video - data.video, actions=noise.actions - data.actions)  # noqa: E731
    grid = path_grid(MODES[Mode.JOINT], PathConfig(num_inference_steps=1))
    end = sample(field, noise, pattern(), grid, solver=solver)
    torch.testing.assert_close(end.video, data.video)
    torch.testing.assert_close(end.actions, data.actions)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("solver", ["euler", "heun", "ab2"])
def test_what_a_mode_does_not_generate_keeps_its_bits(mode: Mode, solver: str) -> None:
    start, end, spec = state(), solve(solver, 3, mode), MODES[mode]
    assert torch.equal(start.video, end.video) == (spec.video is not Role.GENERATE)
    assert torch.equal(start.actions, end.actions) == (spec.actions is not Role.GENERATE)


def test_held_tokens_keep_their_bits_and_their_clock() -> None:
    seen = []

    def field(s: State, clocks: Clocks) -> State:
        seen.append(clocks)
        return s

    held = ClockPattern(
        video_free=torch.tensor([[False, True]]),
        video_held=torch.zeros(1, 2, dtype=torch.float64),
        actions_free=torch.tensor([[False, True, False]]),
        actions_held=torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64),
    )
    grid = path_grid(MODES[Mode.JOINT], PathConfig(num_inference_steps=4))
    end = sample(field, state(), held, grid)
    assert end.video[0, 0, 0, 0] == 1 and end.video[0, 0, 0, 1] != 1
    assert end.actions[0, 0] == 1 and end.actions[0, 2] == 1 and end.actions[0, 1] != 1
    assert all(c.video[0, 0] == 0 and c.actions[0, 0] == 0 and c.actions[0, 2] == 1 for c in seen)


def test_absent_modalities_stay_absent() -> None:
    alone = State(video=None, actions=state().actions)
    no_video = ClockPattern(
        video_free=None, video_held=None, actions_free=pattern().actions_free, actions_held=pattern().actions_held
    )
    end = sample(lambda s, c: s, alone, no_video, path_grid(POLICY_PATHS["absent"], PathConfig()))
    assert end.video is None and end.actions.mean() < 1


@pytest.mark.parametrize("mode", list(Mode))
def test_every_path_ends_at_data_for_what_it_generates(mode: Mode) -> None:
    spec, grid = (
        MODES[mode],
        path_grid(MODES[mode], PathConfig(num_inference_steps=5, shift_video=4.0, shift_action=2.0)),
    )
    for role, clock in zip((spec.video, spec.actions), grid.T, strict=True):
        start, end = {Role.GIVEN: (0, 0), Role.GENERATE: (1, 0), Role.UNKNOWN: (1, 1)}[role]
        assert clock[0] == start and clock[-1] == end and (clock.diff() <= 0).all()


def test_leading_actions_finish_first_and_stay_below_the_video_clock() -> None:
    grid = path_grid(MODES[Mode.JOINT], PathConfig(num_inference_steps=8, action_lead=2.0))
    assert (grid[:, 0] >= grid[:, 1]).all() and grid[4, 1] == 0 and grid[4, 0] == 0.5


def test_guidance_scales_each_modality_on_its_own() -> None:
    mixed = guided(state(3.0), state(1.0), 2.0, 1.0)
    assert (mixed.video == 5.0).all() and (mixed.actions == 3.0).all()


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'euler'"):
        sample(exponential, state(), pattern(), path_grid(MODES[Mode.JOINT], PathConfig()), solver="eular")


def test_a_policy_that_imagines_stops_when_its_actions_are_done() -> None:
    path = PathConfig(num_inference_steps=50, action_lead=5.0)
    whole, policy = (path_grid(spec, path) for spec in (MODES[Mode.JOINT], POLICY_PATHS["joint"]))
    assert len(policy) == 11 and torch.equal(policy, whole[:11])
    assert policy[-1, 1] == 0 and policy[-1, 0] == 0.8


def test_the_video_may_come_first_and_stay_unfinished_in_a_policy() -> None:
    path = PathConfig(num_inference_steps=4, video_steps=2, video_stop=0.4)
    policy = path_grid(POLICY_PATHS["joint"], path)
    assert policy[:, 0].tolist() == pytest.approx([1, 0.7, 0.4, 0.4, 0.4, 0.4, 0.4])
    assert policy[:, 1].tolist() == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25, 0])
    assert path_grid(MODES[Mode.JOINT], path)[2].tolist() == [0, 1]  # who asks for the video gets all of it
    for mode in (Mode.POLICY, Mode.FORWARD, Mode.INVERSE, Mode.VIDEO):
        assert torch.equal(path_grid(MODES[mode], path), path_grid(MODES[mode], PathConfig(num_inference_steps=4)))


def test_an_imagined_video_may_stay_noisy_along_the_diagonal() -> None:
    path = PathConfig(num_inference_steps=2, video_stop=0.8, shift_video=5.0)
    assert path_grid(POLICY_PATHS["joint"], path)[:, 0].tolist() == pytest.approx([1, 0.8 + 0.2 * 5 / 6, 0.8])
    assert path_grid(MODES[Mode.JOINT], path)[-1].tolist() == [0, 0]


@pytest.mark.parametrize("settings", [{"video_steps": 4}, {"action_lead": 2.0}, {}])
def test_no_solver_asks_for_a_velocity_at_the_moment_that_a_modality_arrives(settings: dict[str, float]) -> None:
    calls = 0

    def towards_a_sample(s: State, clocks: Clocks) -> State:
        nonlocal calls
        calls += 1
        t_video, t_action = (clock.clamp(min=1e-3).min() for clock in (clocks.video, clocks.actions))
        return State(
            video=(s.video - torch.tanh(s.video) / 2) / t_video,
            actions=(s.actions - torch.tanh(s.actions) / 2) / t_action,
        )

    ends = {}
    for solver in ("euler", "heun", "ab2"):
        grid, calls = path_grid(MODES[Mode.JOINT], PathConfig(num_inference_steps=8, **settings)), 0
        ends[solver] = sample(towards_a_sample, state(), pattern(), grid, solver=solver)
        assert calls == num_calls(grid, solver)
    for solver in ("heun", "ab2"):
        assert (ends[solver].video - ends["euler"].video).abs().max() < 0.1
        assert (ends[solver].actions - ends["euler"].actions).abs().max() < 0.1
