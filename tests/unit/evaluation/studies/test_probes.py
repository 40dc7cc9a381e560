"""Probes read what is there and nothing else, and are the same every time."""

import pytest
import torch

from wam_video.evaluation.studies.probes import (
    LAMBDAS,
    MLPConfig,
    episode_folds,
    fit_mlp,
    fit_projection,
    fit_ridge,
)

_EPISODES = [f"e{i // 10}" for i in range(400)]


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_components_keep_distances_and_have_unit_mean_square(
    shape: tuple[int, int], generator: torch.Generator
) -> None:
    x = 5 + 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    found = fit_projection(x, 100)(x)
    assert found.shape[1] == min(shape[0] - 1, shape[1])
    assert found.square().sum(1).mean().item() == pytest.approx(1.0)
    ratio = torch.pdist(found) / torch.pdist(x)
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-6)
    assert fit_projection(x, 3)(x).shape[1] == 3


def test_constant_inputs_have_no_components() -> None:
    assert fit_projection(torch.ones(9, 4), 100)(torch.ones(9, 4)).shape == (9, 0)


def test_ridge_is_the_closed_form_at_the_strength_that_other_episodes_prefer(generator: torch.Generator) -> None:
    x = torch.randn(400, 3, generator=generator, dtype=torch.float64) / 3**0.5
    true = torch.tensor([[1.0, -2.0], [0.0, 3.0], [0.5, 0.5]], dtype=torch.float64)
    exact = fit_ridge(x, x @ true + 7, _EPISODES)
    assert torch.allclose(exact(x), x @ true + 7, atol=1e-5)
    y = x @ true + torch.randn(400, 2, generator=generator, dtype=torch.float64)
    predict, c = fit_ridge(x, y, _EPISODES), x - x.mean(0)
    closed = [
        c @ torch.linalg.solve(c.T @ c + k * 400 * torch.eye(3), c.T @ (y - y.mean(0))) + y.mean(0) for k in LAMBDAS
    ]
    assert min((predict(x) - each).abs().max().item() for each in closed) < 1e-9


def test_without_a_relation_the_mean_is_predicted(generator: torch.Generator) -> None:
    x = torch.randn(400, 60, generator=generator, dtype=torch.float64) / 60**0.5
    y = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    for predict in (fit_ridge(x, y, _EPISODES), fit_mlp(x, y, _EPISODES, MLPConfig(width=32, steps=100))):
        fresh = torch.randn(400, 60, generator=generator, dtype=torch.float64) / 60**0.5
        assert predict(fresh).std(0).max().item() < 0.3


def test_the_network_probe_reads_what_is_not_linear_and_repeats_itself(generator: torch.Generator) -> None:
    x = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    y = (x[:, :1] * x[:, 1:]).tanh()
    fit = [fit_mlp(x, y, _EPISODES, MLPConfig(width=64, steps=300, lr=3e-3))(x) for _ in range(2)]
    assert torch.equal(*fit)
    assert (fit[0] - y).square().mean() < 0.3 * y.var()
    assert (fit_ridge(x, y, _EPISODES)(x) - y).square().mean() > 0.8 * y.var()


def test_an_episode_is_never_split() -> None:
    folds = episode_folds(_EPISODES)
    assert {len(set(folds[i : i + 10].tolist())) for i in range(0, 400, 10)} == {1}
    assert len(set(folds.tolist())) == 5
