"""The bootstrap over episodes."""

import math

import pytest
import torch

from wam_video.evaluation.intervals import BootstrapConfig, Estimate, draw_counts, estimate


def _mean(sums: torch.Tensor) -> torch.Tensor:
    return sums[..., :1] / sums[..., 1:]


def _estimate(sums: torch.Tensor, episodes: list[str], config: BootstrapConfig | None = None) -> Estimate:
    (result,) = estimate(sums, episodes, _mean, config)
    return result


def _sums(values: torch.Tensor) -> torch.Tensor:
    return torch.stack([values, torch.ones_like(values)], dim=-1)


def test_the_interval_of_a_mean_is_about_its_standard_error() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    result = _estimate(_sums(values), [f"e{i}" for i in range(400)])
    half = 1.96 * values.std().item() / math.sqrt(400)
    assert result.value == pytest.approx(values.mean().item())
    assert result.high - result.low == pytest.approx(2 * half, rel=0.1)


def test_windows_of_one_episode_do_not_count_as_independent() -> None:
    """Ten copies of each episode's window give the interval of the episodes, not one that is sqrt(10) narrower."""
    values = torch.randn(40, generator=torch.Generator().manual_seed(0))
    names = [f"e{i:02d}" for i in range(40)]
    once = _estimate(_sums(values), names)
    tenfold = _estimate(_sums(values.repeat(10)), names * 10)
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))
    assert (tenfold.num_windows, tenfold.num_episodes) == (400, 40)


def test_the_order_of_windows_does_not_matter_and_the_seed_does() -> None:
    values = torch.randn(30, generator=torch.Generator().manual_seed(0))
    names = [f"e{i % 7}" for i in range(30)]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    first = _estimate(_sums(values), names)
    other = _estimate(_sums(values[order]), [names[i] for i in order])
    assert (first.low, first.high) == pytest.approx((other.low, other.high))
    assert _estimate(_sums(values), names, BootstrapConfig(seed=1)).low != first.low


def test_one_episode_has_no_interval_and_an_undefined_score_no_value() -> None:
    one = _estimate(_sums(torch.ones(5)), ["a"] * 5)
    assert (one.value, one.low, one.high) == (1.0, None, None)
    nothing = _estimate(torch.zeros(4, 2), ["a", "b", "c", "d"])
    assert (nothing.value, nothing.low) == (None, None)


def test_each_draw_draws_as_many_episodes_as_there_are() -> None:
    counts = draw_counts(9, BootstrapConfig(num_draws=20))
    assert counts.shape == (20, 9)
    assert torch.equal(counts.sum(1), torch.full((20,), 9))
