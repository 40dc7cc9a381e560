"""Real-time chunking against closed forms: the soft mask, and a field whose end is known."""

import math

import pytest
import torch

from wam_video.errors import ConfigError
from wam_video.flow.continuation import MAX_GUIDANCE, Continuation, check_continuation, soft_mask
from wam_video.flow.solvers import ClockPattern, Clocks, State, sample

STEPS = 6
GRID = torch.stack([torch.linspace(1, 0, 9, dtype=torch.float64)] * 2, dim=-1)


def field_to(data: torch.Tensor, slope: float = 0.0):
    """The exact field to a point; with a slope, one that keeps some of where it is (so that pulling it has an effect)."""

    def field(state: State, clocks: Clocks) -> State:
        t = clocks.actions[..., None].clamp(min=1e-3)
        end = data + slope * state.actions.mean(1, keepdim=True)
        return State(video=None, actions=(state.actions - end) / t)

    return field


def walk(field) -> torch.Tensor:
    start = State(video=None, actions=torch.randn(1, STEPS, 2, generator=torch.Generator().manual_seed(0)))
    free = torch.ones(1, STEPS, dtype=torch.bool)
    pattern = ClockPattern(video_free=None, video_held=None, actions_free=free, actions_held=torch.zeros(1, STEPS))
    return sample(field, start, pattern, GRID).actions


def continuation(name: str, committed: int = 2) -> Continuation:
    weight = (torch.arange(STEPS) < committed).float()[None, :, None].expand(1, STEPS, 2)
    target = torch.full((1, STEPS, 2), 3.0)
    return Continuation(name=name, target=target, weight=weight, noise=torch.zeros_like(target))


def test_the_soft_mask_is_that_of_the_paper() -> None:
    steps = torch.arange(5)
    mask = soft_mask((steps < 2)[None], ((steps >= 2) & (steps < 4))[None])[0]
    wanted = [c * (math.exp(c) - 1) / (math.e - 1) for c in (2 / 3, 1 / 3)]  # (H - s - i) / (H - s - d + 1)
    torch.testing.assert_close(mask, torch.tensor([1.0, 1.0, *wanted, 0.0]))


def test_guidance_is_the_gradient_step_of_equation_two() -> None:
    """At one clock, by hand: the expected chunk's jacobian is `slope / n` everywhere, for x - t v = data + slope mean(x)."""
    bend, t, slope = continuation("guided"), 0.8, 0.6
    x = torch.randn(1, STEPS, 2)
    field, clocks = field_to(torch.zeros(1, STEPS, 2), slope), Clocks(video=None, actions=torch.full((1, STEPS), t))
    plain, bent = (f(State(video=None, actions=x), clocks).actions for f in (field, bend.field(field)))
    error = (3.0 - slope * x.mean(1, keepdim=True)) * bend.weight
    pull = (error.sum(1, keepdim=True) * slope / STEPS).expand_as(x)
    share = (t**2 + (1 - t) ** 2) / (t * (1 - t))
    assert share < MAX_GUIDANCE
    torch.testing.assert_close(bent, plain - share * pull)


def test_guidance_pulls_towards_the_plan_and_without_weights_leaves_every_bit() -> None:
    field = field_to(torch.zeros(1, STEPS, 2), 0.6)
    free = walk(field)
    assert (walk(continuation("guided").field(field)) - 3).abs().mean() < (free - 3).abs().mean() - 0.1
    torch.testing.assert_close(walk(continuation("guided", 0).field(field)), free, rtol=0, atol=0)


def test_replacement_shows_the_network_the_plan_on_its_path() -> None:
    seen = []

    def field(state: State, clocks: Clocks) -> State:
        seen.append((float(clocks.actions[0, 0]), state.actions.clone()))
        return State(video=None, actions=torch.zeros_like(state.actions))

    walk(continuation("replace").field(field))
    assert len(seen) == len(GRID) - 1
    for t, actions in seen:
        torch.testing.assert_close(actions[:, :2], torch.full((1, 2, 2), (1 - t) * 3.0))


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(ConfigError, match=r"continuation is 'guide'.*Did you mean 'guided'"):
        check_continuation("guide")
