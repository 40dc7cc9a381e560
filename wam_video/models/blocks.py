"""One transformer block: adaptive-norm self-attention, cross-attention to text, feed-forward, with Wan's names."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.normalization import FP32LayerNorm
from jaxtyping import Float, Int
from torch import Tensor, nn

from wam_video.models.attention import Context, LayerMemory, WAMCrossAttention, WAMSelfAttention
from wam_video.models.masks import Masks
from wam_video.models.rope import Rotary


class Stream(NamedTuple):
    """What a block is told about tokens that go through its layers together, besides the tokens themselves."""

    modulation: Float[Tensor, "b m 6 d"]
    """One row a clock slot."""
    slots: Int[Tensor, " n"]
    """The slot of each token."""
    rotary: Rotary
    tower: int = 0
    """Whose layers the tokens go through: 0 is the block's own."""


class Surroundings(NamedTuple):
    """What the streams of a call share."""

    text: Float[Tensor, "b s d"] | None
    """None where a memory has its keys and values."""
    image: Float[Tensor, "b i d"] | None = None
    masks: Masks | None = None
    """Of self-attention; None: all see all."""


def gather_slots(per_slot: Float[Tensor, "b m d"], slots: Int[Tensor, " n"]) -> Float[Tensor, "b n d"]:
    """Give each token the row of its clock slot. A single slot broadcasts instead."""
    return per_slot if per_slot.shape[1] == 1 else per_slot.index_select(1, slots)


class WAMBlock(nn.Module):
    """A Wan block (diffusers `WanTransformerBlock`) whose six modulation vectors are looked up by clock slot.

    The table of modulations has one row a slot (`b m 6 d`, m = latent frames + state + actions + 1); only one `b n d`
    gather is alive at a time, never a dense `b n 6 d`. The tokens come as one stream, or as several that meet in
    self-attention only (see `WAMSelfAttention`), each going through the layers of a `tower`: today there is one, the trunk.
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
        around: Surroundings,
        memory: LayerMemory | None = None,
    ) -> list[Float[Tensor, "b n d"]]:
        """Return each stream's tokens after one block; with a `memory`, its keys and values are seen too."""
        towers = [self.tower(stream.tower) for stream in streams]
        tables = [
            (tower.scale_shift_table[:, None] + stream.modulation.float()).type_as(x).unbind(2)
            for tower, x, stream in zip(towers, xs, streams, strict=True)
        ]
        hs = [
            self._modulate(tower.norm1(x), table[0], table[1], stream.slots)
            for tower, x, table, stream in zip(towers, xs, tables, streams, strict=True)
        ]
        layers = [tower.attn1 for tower in towers]
        hs = self.attn1(hs, [stream.rotary for stream in streams], around.masks, layers=layers, memory=memory)
        contexts = self._contexts([stream.tower for stream in streams], around, memory)
        return [
            tower.finish(
                torch.addcmul(x, h, gather_slots(table[2], stream.slots)), contexts[stream.tower], table, stream
            )
            for tower, x, h, table, stream in zip(towers, xs, hs, tables, streams, strict=True)
        ]

    @property
    def num_towers(self) -> int:
        """Towers that this block has."""
        return 1

    def tower(self, index: int) -> "WAMBlock":
        """Return the layers of a tower."""
        if index:
            raise ValueError(f"there is no tower {index}")
        return self

    def finish(
        self, x: Float[Tensor, "b n d"], context: Context, table: Sequence[Float[Tensor, "b m d"]], stream: Stream
    ) -> Float[Tensor, "b n d"]:
        """Return tokens after cross-attention and feed-forward, which concern one stream only."""
        x = x + self.attn2(self.norm2(x), context)
        h = self.ffn(self._modulate(self.norm3(x), table[3], table[4], stream.slots))
        return torch.addcmul(x, h, gather_slots(table[5], stream.slots))

    def _contexts(self, towers: Sequence[int], around: Surroundings, memory: LayerMemory | None) -> dict[int, Context]:
        """Return the keys and values of the prompt for each tower, once for all its streams."""
        if memory is not None:
            return {index: memory.context(index) for index in towers}
        if around.text is None:
            raise ValueError("a block needs the prompt, or a memory that has it")
        return {i: self.tower(i).attn2.context(around.text, around.image) for i in dict.fromkeys(towers)}

    @staticmethod
    def _modulate(
        x: Float[Tensor, "b n d"],
        shift: Float[Tensor, "b m d"],
        scale: Float[Tensor, "b m d"],
        slots: Int[Tensor, " n"],
    ) -> Float[Tensor, "b n d"]:
        return torch.addcmul(gather_slots(shift, slots), x, gather_slots(1 + scale, slots))
