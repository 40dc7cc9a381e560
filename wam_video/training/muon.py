"""Muon for the matrices of the blocks, AdamW for everything else, as one optimizer."""

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """Step the matrices with `torch.optim.Muon` and the rest with `torch.optim.AdamW`; groups and state are common.

    Muon orthogonalises the momentum of a matrix, so that all its directions move alike (Jordan et al. 2024). Its updates
    are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982, section 2.2), so both take rates of one kind.

    Args:
        matrices: Groups of matrices (two axes): `params`, `lr`, `weight_decay`.
        rest: Groups of everything else.
        betas: Of AdamW.
        eps: Of AdamW.
    """

    def __init__(
        self,
        matrices: Sequence[dict[str, Any]],
        rest: Sequence[dict[str, Any]],
        *,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self._parts: list[torch.optim.Optimizer] = []
        super().__init__([*matrices, *rest], {"lr": 0.0, "weight_decay": 0.0})
        if matrices:
            self._parts.append(torch.optim.Muon([dict(g) for g in matrices], adjust_lr_fn="match_rms_adamw"))
        if rest:
            self._parts.append(torch.optim.AdamW([dict(g) for g in rest], betas=betas, eps=eps, fused=True))
        # The parts work on this object's groups and state, so that whoever reads or sets either here reaches them.
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        for part in self._parts:
            part.state = self.state

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step both parts."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter is a matrix of a transformer block, which is what Muon is meant for; no adapter's factor."""
    return parameter.ndim == 2 and "blocks." in name and ".lora_" not in name
