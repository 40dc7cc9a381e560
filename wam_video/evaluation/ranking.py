"""How well one set of scores of policies tells another: Pearson's r, Spearman's rho and the mean maximum rank violation.

A policy's score is its mean over starts, and all policies met the same starts; intervals draw these starts again.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.evaluation.intervals import BootstrapConfig, Estimate, estimate

MEASURES = ("pearson", "spearman", "mmrv")
_ALIKE = 1e-3
"""Scores from 0 to 1 that are closer than this count as equal: no order is read out of a judge's last digits."""


def pearson(real: Float[Tensor, "*n p"], judged: Float[Tensor, "*n p"]) -> Float[Tensor, "*n"]:
    """Return the correlation over policies; NaN where all scores of one side are alike."""
    a, b = (x - x.mean(dim=-1, keepdim=True) for x in (real.double(), judged.double()))
    size = (a.square().mean(dim=-1) * b.square().mean(dim=-1)).sqrt()
    known = (a.abs().amax(dim=-1) > _ALIKE) & (b.abs().amax(dim=-1) > _ALIKE)
    return torch.where(known, (a * b).mean(dim=-1) / size.clamp(min=1e-30), torch.nan)


def spearman(real: Float[Tensor, "*n p"], judged: Float[Tensor, "*n p"]) -> Float[Tensor, "*n"]:
    """Return the correlation of ranks; equal scores share their mean rank."""
    return pearson(_ranks(real), _ranks(judged))


def _ranks(x: Float[Tensor, "*n p"]) -> Float[Tensor, "*n p"]:
    gap = x.double()[..., :, None] - x.double()[..., None, :]
    return (gap > _ALIKE).double().sum(-1) + 0.5 * (gap.abs() <= _ALIKE).double().sum(-1)


def mmrv(real: Float[Tensor, "*n p"], judged: Float[Tensor, "*n p"]) -> Float[Tensor, "*n"]:
    """Return the mean maximum rank violation of SimplerEnv (Li et al. 2024): 0 where the order is right.

    For each policy the largest real difference from another one whose order against it is judged wrongly; their mean:
    (1 / N) sum_i max_j |R_i - R_j| [(S_i > S_j) != (R_i > R_j)].
    """
    r, s = (x.double()[..., :, None] - x.double()[..., None, :] for x in (real, judged))
    return (r.abs() * ((s > _ALIKE) != (r > _ALIKE))).amax(dim=-1).mean(dim=-1)


def measure(
    real: Float[Tensor, "e p"],
    judged: Sequence[Float[Tensor, "e p"]],
    starts: Sequence[str],
    config: BootstrapConfig,
) -> list[dict[str, Estimate]]:
    """Return every measure of each set of judged scores, the same draws for all; None where the policies did all alike.

    Args:
        real: Score of each start and policy.
        judged: The same as judged, one table each.
        starts: Name of each start.
        config: Draws.
    """
    found = estimate(_stack(real, judged), starts, lambda sums: _vector(sums).flatten(start_dim=-2), config)
    values = iter(found)
    return [{name: next(values) for name in MEASURES} for _ in judged]


def advantage(
    real: Float[Tensor, "e p"],
    better: Float[Tensor, "e p"],
    worse: Float[Tensor, "e p"],
    starts: Sequence[str],
    config: BootstrapConfig,
) -> Estimate:
    """Return how much smaller the rank violation of one set of judged scores is than that of another."""
    column = MEASURES.index("mmrv")

    def difference(sums: Tensor) -> Tensor:
        both = _vector(sums)[..., column]
        return both[..., 1:] - both[..., :1]

    return estimate(_stack(real, [better, worse]), starts, difference, config)[0]


def _stack(real: Float[Tensor, "e p"], judged: Sequence[Float[Tensor, "e p"]]) -> Float[Tensor, "e k p"]:
    return torch.stack([torch.ones_like(real), real, *judged], dim=1).double()


def _vector(sums: Float[Tensor, "*n k p"]) -> Float[Tensor, "*n j m"]:
    means = sums[..., 1:, :] / sums[..., :1, :]
    real, judged = means[..., :1, :].expand_as(means[..., 1:, :]), means[..., 1:, :]
    # of policies that all did alike no order can be wrong, which is no merit
    differ = real.amax(dim=-1) - real.amin(dim=-1) > _ALIKE
    violation = torch.where(differ, mmrv(real, judged), torch.nan)
    return torch.stack([pearson(real, judged), spearman(real, judged), violation], dim=-1)
