"""Order measures on made-up tables of success, where the right figures are known."""

import math

import pytest
import torch

from wam_video.evaluation.intervals import BootstrapConfig
from wam_video.evaluation.ranking import advantage, measure, mmrv, pearson, spearman

REAL = torch.tensor([0.1, 0.3, 0.5, 0.6, 0.8, 0.9])


def table(rates: torch.Tensor, starts: int = 40) -> torch.Tensor:
    """Successes of each start and policy with exactly these rates."""
    return (torch.arange(starts)[:, None] < (rates * starts).round()[None]).double()


def test_the_right_order_violates_nothing_whatever_the_scale() -> None:
    assert mmrv(REAL, REAL.square()) == 0
    assert spearman(REAL, REAL.square()) == pytest.approx(1.0)
    assert pearson(REAL, 0.2 + 0.5 * REAL) == pytest.approx(1.0)


def test_one_swap_costs_what_the_two_policies_differ_by() -> None:
    judged = REAL[[0, 1, 3, 2, 4, 5]]  # the third and the fourth are taken for each other
    assert mmrv(REAL, judged) == pytest.approx(2 * 0.1 / 6)
    far = REAL[[5, 1, 2, 3, 4, 0]]  # the best is taken for the worst
    # the ends are off by 0.8 from each other; each of the others by its distance from the farther end
    assert mmrv(REAL, far) == pytest.approx((0.8 + 0.6 + 0.4 + 0.5 + 0.7 + 0.8) / 6)


def test_the_reverse_order_is_as_wrong_as_can_be() -> None:
    worst = torch.maximum(REAL - REAL[0], REAL[-1] - REAL).mean()
    assert mmrv(REAL, -REAL) == pytest.approx(float(worst))
    assert pearson(REAL, -REAL) == pytest.approx(-1.0)


def test_where_all_look_alike_there_is_no_correlation_but_a_violation() -> None:
    flat = torch.full_like(REAL, 0.4)
    assert math.isnan(pearson(REAL, flat))
    # a policy that is really better than another is never judged so: its distance from the worst
    assert mmrv(REAL, flat) == pytest.approx(float((REAL - REAL[0]).mean()))


def test_equal_scores_share_their_rank() -> None:
    assert spearman(torch.tensor([0.0, 0.5, 0.5, 1.0]), torch.tensor([1.0, 2.0, 2.0, 3.0])) == pytest.approx(1.0)


def test_intervals_draw_the_starts_again_the_same_for_all() -> None:
    real, starts = table(REAL), [f"s{i}" for i in range(40)]
    generator = torch.Generator().manual_seed(0)
    noise = (torch.rand(40, 6, generator=generator) < 0.5).double()
    good, bad = measure(real, [real, noise], starts, BootstrapConfig())
    assert good["pearson"].value == pytest.approx(1.0)
    assert good["mmrv"].value == good["mmrv"].high == 0
    assert bad["mmrv"].low > 0.05
    assert good["mmrv"].num_episodes == 40
    assert advantage(real, real, noise, starts, BootstrapConfig()).low > 0.05
    assert advantage(real, noise, real, starts, BootstrapConfig()).high < 0
    assert measure(real, [noise], starts, BootstrapConfig()) == measure(real, [noise], starts, BootstrapConfig())


def test_a_figure_that_is_not_defined_is_none() -> None:
    real = table(REAL)
    (flat,) = measure(real, [torch.zeros_like(real)], [f"s{i}" for i in range(40)], BootstrapConfig())
    assert flat["pearson"].value is None
    assert flat["mmrv"].value == pytest.approx(float((REAL - REAL[0]).mean()))


def test_policies_that_did_alike_have_no_order_to_be_wrong_about() -> None:
    real = torch.ones(40, 6)
    (found,) = measure(real, [table(REAL)], [f"s{i}" for i in range(40)], BootstrapConfig())
    assert [e.value for e in found.values()] == [None] * 3


def test_the_last_digits_of_a_judge_are_no_order() -> None:
    flat = 0.4 + 1e-5 * REAL
    assert math.isnan(pearson(REAL, flat))
    assert mmrv(REAL, flat) == mmrv(REAL, torch.full_like(REAL, 0.4))
