"""One transformer block: adaptive-norm self-attention, cross-attention to text, feed-forward, with Wan's names."""

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.normalization import FP32LayerNorm
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wam_video.models.attention import WAMAttention
from wam_video.models.rope import Rotary


def gather_slots(per_slot: Float[Tensor, "b m d"], slots: Int[Tensor, " n"]) -> Float[Tensor, "b n d"]:
    """Give each token the row of its clock slot. A single slot broadcasts instead."""
    return per_slot if per_slot.shape[1] == 1 else per_slot.index_select(1, slots)


class WAMBlock(nn.Module):
    """A Wan block (diffusers `WanTransformerBlock`) whose six modulation vectors are looked up by clock slot.

    The table of modulations has one row a slot (`b m 6 d`, m = latent frames + actions + 1); only one `b n d` gather is
    alive at a time, never a dense `b n 6 d`.
    """

    def __init__(
        self, dim: int, ffn_dim: int, num_heads: int, *, cross_attn_norm: bool = True, eps: float = 1e-6
    ) -> None:
        super().__init__()
        head_dim = dim // num_heads
        self.norm1 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.attn1 = WAMAttention(dim, num_heads, head_dim, eps)
        self.attn2 = WAMAttention(dim, num_heads, head_dim, eps)
        self.norm2 = FP32LayerNorm(dim, eps, elementwise_affine=True) if cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(dim, inner_dim=ffn_dim, activation_fn="gelu-approximate")
        self.norm3 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        text: Float[Tensor, "b s d"],
        modulation: Float[Tensor, "b m 6 d"],
        slots: Int[Tensor, " n"],
        rotary: Rotary,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens after one block; `mask` is that of self-attention (None: every token sees every token)."""
        table = (self.scale_shift_table[:, None] + modulation.float()).type_as(x)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = table.unbind(2)
        h = torch.addcmul(gather_slots(shift, slots), self.norm1(x), gather_slots(1 + scale, slots))
        x = torch.addcmul(x, self.attn1(h, rotary=rotary, mask=mask), gather_slots(gate, slots))
        x = x + self.attn2(self.norm2(x), context=text)
        h = torch.addcmul(gather_slots(ffn_shift, slots), self.norm3(x), gather_slots(1 + ffn_scale, slots))
        return torch.addcmul(x, self.ffn(h), gather_slots(ffn_gate, slots))
