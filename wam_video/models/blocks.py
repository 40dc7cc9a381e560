"""One transformer block: adaptive-norm self-attention, cross-attention to text, feed-forward, with Wan's names."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.normalization import FP32LayerNorm
from jaxtyping import Float, Int
from torch import Tensor, nn

from wam_video.models.attention import Mask, WAMCrossAttention, WAMSelfAttention
from wam_video.models.rope import Rotary


class Stream(NamedTuple):
    """What a block is told about tokens that go through its layers together, besides the tokens themselves."""

    modulation: Float[Tensor, "b m 6 d"]
    """One row a clock slot."""
    slots: Int[Tensor, " n"]
    """The slot of each token."""
    rotary: Rotary


def gather_slots(per_slot: Float[Tensor, "b m d"], slots: Int[Tensor, " n"]) -> Float[Tensor, "b n d"]:
    """Give each token the row of its clock slot. A single slot broadcasts instead."""
    return per_slot if per_slot.shape[1] == 1 else per_slot.index_select(1, slots)


class WAMBlock(nn.Module):
    """A Wan block (diffusers `WanTransformerBlock`) whose six modulation vectors are looked up by clock slot.

    The table of modulations has one row a slot (`b m 6 d`, m = latent frames + actions + 1); only one `b n d` gather is
    alive at a time, never a dense `b n 6 d`. The tokens come as one stream, or (`gated`) as two that the layers treat
    alike but apart and that meet in self-attention only: see `WAMSelfAttention`.
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        num_heads: int,
        *,
        cross_attn_norm: bool = True,
        eps: float = 1e-6,
        added_kv_proj_dim: int | None = None,
        gated: bool = False,
    ) -> None:
        super().__init__()
        head_dim = dim // num_heads
        self.norm1 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.attn1 = WAMSelfAttention(dim, num_heads, head_dim, eps, gated=gated)
        self.attn2 = WAMCrossAttention(dim, num_heads, head_dim, eps, added_kv_proj_dim=added_kv_proj_dim)
        self.norm2 = FP32LayerNorm(dim, eps, elementwise_affine=True) if cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(dim, inner_dim=ffn_dim, activation_fn="gelu-approximate")
        self.norm3 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        xs: Sequence[Float[Tensor, "b n d"]],
        streams: Sequence[Stream],
        text: Float[Tensor, "b s d"],
        image: Float[Tensor, "b i d"] | None = None,
        mask: Mask | None = None,
    ) -> list[Float[Tensor, "b n d"]]:
        """Return each stream's tokens after one block; `mask` is that of self-attention (None: all see all)."""
        tables = [
            (self.scale_shift_table[:, None] + stream.modulation.float()).type_as(x).unbind(2)
            for x, stream in zip(xs, streams, strict=True)
        ]
        slots = [stream.slots for stream in streams]
        hs = [self._modulate(self.norm1(x), t[0], t[1], s) for x, t, s in zip(xs, tables, slots, strict=True)]
        hs = self.attn1(hs, [stream.rotary for stream in streams], mask)
        xs = [torch.addcmul(x, h, gather_slots(t[2], s)) for x, h, t, s in zip(xs, hs, tables, slots, strict=True)]
        hs = self.attn2([self.norm2(x) for x in xs], text, image)
        xs = [x + h for x, h in zip(xs, hs, strict=True)]
        hs = [self.ffn(self._modulate(self.norm3(x), t[3], t[4], s)) for x, t, s in zip(xs, tables, slots, strict=True)]
        return [torch.addcmul(x, h, gather_slots(t[5], s)) for x, h, t, s in zip(xs, hs, tables, slots, strict=True)]

    @staticmethod
    def _modulate(
        x: Float[Tensor, "b n d"],
        shift: Float[Tensor, "b m d"],
        scale: Float[Tensor, "b m d"],
        slots: Int[Tensor, " n"],
    ) -> Float[Tensor, "b n d"]:
        return torch.addcmul(gather_slots(shift, slots), x, gather_slots(1 + scale, slots))
