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
    """Whose layers the tokens go through: 0 is the trunk, 1 its expert (`models.expert`)."""
    total: int = 0
    """Tokens of the stream, over all the processes that share them (`models.sequence_parallel`)."""


class Prompt(NamedTuple):
    """What cross-attention reads, projected to a tower's width."""

    text: Float[Tensor, "b s d"]
    image: Float[Tensor, "b i d"] | None = None


class Surroundings(NamedTuple):
    """What the streams of a call share."""

    prompts: Sequence[Prompt]
    """Of each tower; none where a memory has their keys and values."""
    masks: Masks | None = None
    """Of self-attention; None: all see all."""


def gather_slots(per_slot: Float[Tensor, "b m d"], slots: Int[Tensor, " n"]) -> Float[Tensor, "b n d"]:
    """Give each token the row of its clock slot. A single slot broadcasts instead."""
    return per_slot if per_slot.shape[1] == 1 else per_slot.index_select(1, slots)


class Tower(nn.Module):
    """The layers of a Wan block (diffusers `WanTransformerBlock`, same keys) that tokens go through on their own.

    Args:
        dim: Width of the tokens.
        ffn_dim: Hidden width of the feed-forward layer.
        heads: Heads of each attention.
        head_dim: Channels of a head; heads times this is the width inside attention, which need not be `dim`.
        cross_attn_norm: LayerNorm before cross-attention.
        eps: Of the norms.
        added_kv_proj_dim: Width of the image context, if there is one: `dim`.
        gated: See `WAMSelfAttention`.
        cross_attention: Whether the tokens read the prompt.
    """

    def __init__(  # noqa: PLR0913 - the sizes of a block, each by its name
        self,
        dim: int,
        ffn_dim: int,
        heads: int,
        head_dim: int,
        *,
        cross_attn_norm: bool = True,
        eps: float = 1e-6,
        added_kv_proj_dim: int | None = None,
        gated: bool = False,
        cross_attention: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.attn1 = WAMSelfAttention(dim, heads, head_dim, eps, gated=gated)
        self.attn2 = self.norm2 = None
        if cross_attention:
            self.attn2 = WAMCrossAttention(dim, heads, head_dim, eps, added_kv_proj_dim=added_kv_proj_dim)
            self.norm2 = FP32LayerNorm(dim, eps, elementwise_affine=True) if cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(dim, inner_dim=ffn_dim, activation_fn="gelu-approximate")
        self.norm3 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def finish(
        self,
        x: Float[Tensor, "b n d"],
        context: Context | None,
        table: Sequence[Float[Tensor, "b m d"]],
        stream: Stream,
    ) -> Float[Tensor, "b n d"]:
        """Return tokens after cross-attention and feed-forward, which concern one stream only."""
        if self.attn2 is not None and self.norm2 is not None and context is not None:
            x = x + self.attn2(self.norm2(x), context)
        h = self.ffn(modulate(self.norm3(x), table[3], table[4], stream.slots))
        return torch.addcmul(x, h, gather_slots(table[5], stream.slots))


class WAMBlock(Tower):
    """A block of the trunk, in which the towers of its depth meet; six modulation vectors are looked up by clock slot.

    The table of modulations has one row a slot (`b m 6 d`, m = latent frames + state + actions + 1); only one `b n d`
    gather is alive at a time, never a dense `b n 6 d`. The tokens come as one stream, or as several that meet in
    self-attention only (see `WAMSelfAttention`), each going through the layers of its tower: the block's own, or an expert's.
    """

    def forward(
        self,
        xs: Sequence[Float[Tensor, "b n d"]],
        streams: Sequence[Stream],
        around: Surroundings,
        memory: LayerMemory | None = None,
        expert: Tower | None = None,
    ) -> list[Float[Tensor, "b n d"]]:
        """Return each stream's tokens after one block; with a `memory`, its keys and values are seen too."""
        towers = [self if expert is None or stream.tower == 0 else expert for stream in streams]
        tables = [
            (tower.scale_shift_table[:, None] + stream.modulation.float()).type_as(x).unbind(2)
            for tower, x, stream in zip(towers, xs, streams, strict=True)
        ]
        hs = [
            modulate(tower.norm1(x), table[0], table[1], stream.slots)
            for tower, x, table, stream in zip(towers, xs, tables, streams, strict=True)
        ]
        layers = [tower.attn1 for tower in towers]
        rotaries, counts = [stream.rotary for stream in streams], [stream.total for stream in streams]
        hs = self.attn1(hs, rotaries, around.masks, layers=layers, memory=memory, counts=counts)
        contexts: dict[int, Context | None] = {}
        for tower, stream in zip(towers, streams, strict=True):  # once a tower, whatever the number of its streams
            if stream.tower not in contexts:
                contexts[stream.tower] = _context(tower, stream.tower, around, memory)
        return [
            tower.finish(
                torch.addcmul(x, h, gather_slots(table[2], stream.slots)), contexts[stream.tower], table, stream
            )
            for tower, x, h, table, stream in zip(towers, xs, hs, tables, streams, strict=True)
        ]


def _context(tower: Tower, index: int, around: Surroundings, memory: LayerMemory | None) -> Context | None:
    """Return the keys and values of the prompt, if the tower reads it."""
    if tower.attn2 is None:
        return None
    return tower.attn2.context(*around.prompts[index]) if memory is None else memory.context(index)


def modulate(
    x: Float[Tensor, "b n d"],
    shift: Float[Tensor, "b m d"],
    scale: Float[Tensor, "b m d"],
    slots: Int[Tensor, " n"],
) -> Float[Tensor, "b n d"]:
    """Return `x * (1 + scale) + shift`, each token with the row of its clock slot."""
    return torch.addcmul(gather_slots(shift, slots), x, gather_slots(1 + scale, slots))
