"""Long sequences over several processes: each holds a share of the tokens, and in attention a share of the heads.

DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv 2309.14509). Between the ways in and out every process of a group has its own
tokens of the same samples, so that the memory of activations is divided; before attention an all-to-all hands each process
all tokens of its heads, and after it gives the tokens back. Masks are of tokens and not of heads, so they stay as they are.

A parameter's gradient is the sum of those of the group, for each saw its own tokens; the same holds for what comes after the
tokens are put together again, if each process has the whole loss divided by the size of the group.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


class SequenceGroup:
    """The processes that share the tokens of the same samples.

    Args:
        group: Of processes, from `torch.distributed`.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    def shares(self, count: int) -> list[int]:
        """Return how many of `count` tokens each process has: the first ones one more where it does not come out even."""
        return [count // self.size + (rank < count % self.size) for rank in range(self.size)]

    def own(self, x: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
        """Return this process's tokens, which lie on axis `dim` of `x`."""
        return x.split(self.shares(x.shape[dim]), dim=dim)[self.rank]

    def heads(self, x: Float[Tensor, " heads"]) -> Float[Tensor, " h"]:
        """Return what belongs to this process's heads."""
        return x.chunk(self.size)[self.rank]

    def gather(self, x: Float[Tensor, "b n d"], count: int) -> Float[Tensor, "b m d"]:
        """Return the tokens of all processes, `count` in all, on each of them."""
        sent = rearrange(x, "b n d -> n b d").repeat(self.size, 1, 1)
        shares = self.shares(count)
        return rearrange(self._exchange(sent, [x.shape[1]] * self.size, shares), "n b d -> b n d")

    def to_heads(self, x: Float[Tensor, "b n heads k"], count: int) -> Float[Tensor, "b m h k"]:
        """Return all `count` tokens with this process's heads, from its own tokens with all heads."""
        sent = rearrange(x, "b n (s h) k -> (s n) b h k", s=self.size)
        return rearrange(self._exchange(sent, [x.shape[1]] * self.size, self.shares(count)), "n b h k -> b n h k")

    def to_tokens(self, x: Float[Tensor, "b m h k"]) -> Float[Tensor, "b n heads k"]:
        """Return this process's tokens with all heads: the way back of `to_heads`."""
        shares = self.shares(x.shape[1])
        got = self._exchange(rearrange(x, "b n h k -> n b h k"), shares, [shares[self.rank]] * self.size)
        return rearrange(got, "(s n) b h k -> b n (s h) k", s=self.size)

    def _exchange(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        out: Tensor = _AllToAll.apply(x.contiguous(), list(sent), list(received), self._group)  # type: ignore[assignment]
        return out


class _AllToAll(torch.autograd.Function):
    """Rows to and from every process; the gradient goes the same ways back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        out = x.new_empty(sum(received), *x.shape[1:])
        dist.all_to_all_single(out, x, received, sent, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = gradients[0].contiguous()
        back = gradient.new_empty(sum(ctx.sent), *gradient.shape[1:])
        dist.all_to_all_single(back, gradient, ctx.sent, ctx.received, group=ctx.group)
        return back, None, None, None
