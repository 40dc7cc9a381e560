"""Probes: small regressions that say how much of something can be read out of features, fitted on other episodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Predictor = Callable[[Float[Tensor, "n p"]], Float[Tensor, "n q"]]

FOLDS = 5
LAMBDAS = tuple(10.0 ** (e / 2) for e in range(-16, 3))
"""Strengths of the ridge that cross-validation chooses from; a block of inputs has a mean square of 1."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Principal components of one block of inputs, scaled as a whole to a mean square of 1."""

    mean: Float[Tensor, " p"]
    components: Float[Tensor, "p k"]

    def __call__(self, x: Float[Tensor, "n p"]) -> Float[Tensor, "n k"]:
        """Return the coordinates of inputs."""
        return (x.double() - self.mean) @ self.components


def fit_projection(x: Float[Tensor, "n p"], most: int) -> Projection:
    """Return the components that carry most of the variance, as many as there are and at most `most`."""
    x = x.double()
    mean = x.mean(0)
    centred = x - mean
    if centred.shape[0] < centred.shape[1]:  # the same from the smaller side
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        values, vectors = values.flip(0), centred.T @ vectors.flip(1)
        vectors = vectors / values.clamp(min=1e-300).sqrt()
    else:
        values, vectors = torch.linalg.eigh(centred.T @ centred)
        values, vectors = values.flip(0), vectors.flip(1)
    kept = int((values > 1e-10 * values[0].clamp(min=1e-30)).sum().clamp(max=most))
    scale = (values[:kept].sum() / len(x)).sqrt() if kept else torch.ones((), dtype=torch.float64)
    return Projection(mean=mean, components=vectors[:, :kept] / scale)


def episode_folds(episodes: Sequence[str], folds: int = FOLDS) -> Int[Tensor, " n"]:
    """Return the fold of each window; all windows of an episode are in one."""
    names = sorted(set(episodes))
    place = {name: i % folds for i, name in enumerate(names)}
    return torch.tensor([place[name] for name in episodes])


def fit_ridge(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"], episodes: Sequence[str]) -> Predictor:
    """Return a ridge regression whose strength was chosen by cross-validation over episodes.

    Args:
        x: Inputs.
        y: Targets, each in units of its own deviation.
        episodes: Of each row.
    """
    folds = episode_folds(episodes)
    errors = torch.zeros(len(LAMBDAS), dtype=torch.float64)
    for fold in folds.unique().tolist():
        inside, held = folds != fold, folds == fold
        if not inside.any():  # a single episode can't be held out
            continue
        path = _RidgePath(x[inside], y[inside])
        errors += torch.stack([(path(strength)(x[held]) - y[held]).square().sum() for strength in LAMBDAS])
    return _RidgePath(x, y)(LAMBDAS[int(errors.argmin())] if bool(errors.any()) else LAMBDAS[-1])


class _RidgePath:
    """Solutions for every strength from one decomposition."""

    def __init__(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> None:
        self.x_mean, self.y_mean = x.mean(0), y.mean(0)
        centred = x - self.x_mean
        self.values, self.vectors = torch.linalg.eigh(centred.T @ centred)
        self.product = self.vectors.T @ (centred.T @ (y - self.y_mean))
        self.count = len(x)

    def __call__(self, strength: float) -> Predictor:
        weight = self.vectors @ (self.product / (self.values.clamp(min=0) + strength * self.count)[:, None])
        return lambda x: (x - self.x_mean) @ weight + self.y_mean


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """The network probe."""

    width: int = 256
    steps: int = 300
    every: int = 20
    """Steps between looks at the held-out fold."""
    patience: int = 4
    """Looks without improvement after which it stops."""
    lr: float = 1e-3
    weight_decay: float = 1e-2
    dropout: float = 0.1
    seed: int = 0


def fit_mlp(
    x: Float[Tensor, "n p"], y: Float[Tensor, "n q"], episodes: Sequence[str], config: MLPConfig | None = None
) -> Predictor:
    """Return a network of two hidden layers, stopped where a fifth of the training episodes is predicted best.

    It adds to the mean of the targets, from which it starts.

    Args:
        x: Inputs.
        y: Targets.
        episodes: Of each row.
        config: Sizes, steps and seed.
    """
    config = config or MLPConfig()
    held = episode_folds(episodes) == 0
    if bool(held.all()):
        held = torch.zeros_like(held)
    mean = y.mean(0)
    if x.shape[1] == 0:  # nothing changes in the features
        return lambda inputs: mean.expand(len(inputs), -1)
    x, target = x.float(), (y - mean).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        sizes = (x.shape[1], config.width, config.width)
        hidden = [
            layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.GELU(), nn.Dropout(config.dropout))
        ]
        last = nn.Linear(config.width, y.shape[1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        network = nn.Sequential(*hidden, last)
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        best, best_error, best_step = _copy(network), float("inf"), 0
        for step in range(config.steps + 1):
            if step % config.every == 0:
                error = _error(network, x[held], target[held]) if held.any() else -float(step)
                if error < best_error:
                    best, best_error, best_step = _copy(network), error, step
                if step - best_step >= config.patience * config.every:
                    break
            optimizer.zero_grad()
            F.mse_loss(network.train()(x[~held]), target[~held]).backward()
            optimizer.step()
        network.load_state_dict(best)
    network.eval().requires_grad_(False)
    return lambda inputs: network(inputs.float()).double() + mean


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@torch.no_grad()
def _error(network: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(F.mse_loss(network.eval()(x), y))
