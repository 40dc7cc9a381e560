"""What a call of the network costs, on paper: parameters by part, floating point operations, bytes of keys and values.

Pure arithmetic on a `WAMTransformer`'s sizes and a call's token counts; nothing runs. One multiply-add is two operations and
only matrix products, convolutions and attention count, as in torch's `FlopCounterMode`, whose numbers these are. What the
counts mean for memory and time is `training/plan.py`'s and `inference/plan.py`'s; machines are in `models/devices.py`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from wam_video.errors import ConfigError
from wam_video.models.masks import AttentionConfig, Modality, TokenMeta, dense_mask
from wam_video.models.shapes import NetworkShape, TowerShape
from wam_video.models.tokens import TokenLayout

PARTS = {
    "patch_embedding": "video in and out",
    "proj_out": "video in and out",
    "condition_embedder": "time and text embedding",
    "action_embedder": "actions and state",
    "action_proj_out": "actions and state",
    "state_embedder": "actions and state",
    "no_state": "actions and state",
    "registers": "learned tokens and tables",
    "view_embedding": "learned tokens and tables",
    "scale_shift_table": "learned tokens and tables",
    "attn1": "self-attention",
    "attn2": "cross-attention",
    "ffn": "feed-forward",
}
"""Name of a parameter's module, inside a block or outside, -> the part that it is counted under; others: `other`."""

EXPERT = "action expert"
"""The part of everything in the expert's tower."""


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Return the parameters of a network by part, largest first; a network on the meta device will do."""
    counts: dict[str, int] = {}
    for name, parameter in network.named_parameters():
        path = name.split(".")
        if path[0] == "expert":
            counts[EXPERT] = counts.get(EXPERT, 0) + parameter.numel()
            continue
        part = PARTS.get(
            path[2] if path[0] == "blocks" else path[0], "norms and modulation" if "blocks" in path else "other"
        )
        if path[0] == "blocks" and path[2] == "scale_shift_table":
            part = "norms and modulation"
        counts[part] = counts.get(part, 0) + parameter.numel()
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


class TowerCall(NamedTuple):
    """What a call brings to a tower."""

    shape: TowerShape
    tokens: int
    slots: int


@dataclass(frozen=True, kw_only=True)
class Call:
    """The tokens that one sample brings to one call of the network."""

    video: int
    others: int
    """State, action and register tokens."""
    actions: int
    slots: int
    """Clock slots (`TokenLayout.num_slots`)."""
    side_slots: int = 0
    """Those of them that are not video's."""
    text: int
    """Text tokens."""
    image: int = 0
    """Image tokens."""
    past: int = 0
    """Tokens that are only keys and values, from a cache."""
    pairs: int | None = None
    """Query-key pairs that self-attention computes; None: every query sees the past and every other."""
    state: int = 1
    """States to embed."""
    clean_video: int = 0
    """Video tokens that are not read out."""
    clean_actions: int = 0
    """Action tokens beside `actions` that are embedded, but not read out."""
    text_cached: bool = False
    """Whether the keys and values of text and image were computed before."""

    @property
    def context(self) -> int:
        """Tokens of cross-attention."""
        return self.text + self.image

    @property
    def queries(self) -> int:
        """Tokens that go through the blocks."""
        return self.video + self.others

    @property
    def attended(self) -> int:
        """Query-key pairs of self-attention."""
        return self.queries * (self.queries + self.past) if self.pairs is None else self.pairs


def towers(shape: NetworkShape, call: Call) -> list[TowerCall]:
    """Return what a call brings to each tower that it goes through."""
    if shape.expert is None:
        return [TowerCall(shape.trunk, call.queries, call.slots)]
    parts = [
        TowerCall(shape.trunk, call.video, call.slots - call.side_slots),
        TowerCall(shape.expert, call.others, call.side_slots),
    ]
    return [part for part in parts if part.tokens]


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating point operations of a call, by kind."""

    linear: int
    """Matrix products of the blocks."""
    self_attention: int
    """Scores and sums over values."""
    cross_attention: int
    ends: int
    """Embeddings and read-out."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear + self.self_attention + self.cross_attention + self.ends


def whole(layout: TokenLayout, text: int, image: int = 0) -> Call:
    """Return the call that computes every token of a layout: training, or a step without a cache."""
    return Call(
        video=layout.num_video,
        others=layout.num_tokens - layout.num_video,
        actions=layout.actions,
        slots=layout.num_slots,
        side_slots=layout.num_slots - layout.frames,
        text=text,
        image=image,
    )


def prefill(layout: TokenLayout, context: int, text: int, image: int = 0, *, fresh: int | None = None) -> Call:
    """Return the call that writes the keys and values of observed frames into a cache.

    Args:
        layout: The whole sample.
        context: Observed latent frames.
        text: Text tokens.
        image: Image tokens.
        fresh: How many of the observed frames are new; the others, and those of the prompt, are in the cache. None: all.
    """
    new = context if fresh is None else fresh
    return Call(
        video=new * layout.per_frame,
        others=0,
        actions=0,
        slots=new,
        text=text,
        image=image,
        past=(context - new) * layout.per_frame,
        state=0,
        clean_video=new * layout.per_frame,
        text_cached=fresh is not None,
    )


def cached_step(layout: TokenLayout, context: int, text: int, image: int = 0) -> Call:
    """Return the call that computes all but the first `context` frames, which it reads from a cache."""
    past = context * layout.per_frame
    return Call(
        video=layout.num_video - past,
        others=layout.num_tokens - layout.num_video,
        actions=layout.actions,
        slots=layout.num_slots - context,
        side_slots=layout.num_slots - layout.frames,
        text=text,
        image=image,
        past=past,
        text_cached=True,
    )


def teacher_forced(
    layout: TokenLayout, chunk: int, text: int, image: int = 0, *, rule: AttentionConfig | None = None, context: int = 1
) -> Call:
    """Return the training call of a block-causal stream: clean history and noisy chunks side by side, no wasted token.

    `context` frames are given; then come chunks of `chunk` frames, each with the layout's actions, state and registers. The
    last chunk needs no clean copy and the context no noisy one. Only visible pairs are counted: a block mask skips the others.

    Args:
        layout: The frames of the whole stream; actions, state and registers of one chunk.
        chunk: Latent frames of a chunk.
        text: Text tokens.
        image: Image tokens.
        rule: Who sees whom; None: the default rule of pattern causal.
        context: Frames of chunk 0.

    Raises:
        ConfigError: The frames are not the context and a whole number of chunks.
    """
    rule = rule or AttentionConfig(pattern="causal", chunk_frames=chunk)
    if chunk < 1 or layout.frames <= context or (layout.frames - context) % chunk:
        raise ConfigError(
            f"a stream of {layout.frames} frames can't be cut into chunks of {chunk}; allowed: {context} + a multiple of the "
            "chunk"
        )
    chunks = (layout.frames - context) // chunk
    past_actions = layout.actions * (chunks - 1) if rule.action_history else 0
    frames = context + (2 * chunks - 1) * chunk
    side_slots = chunks * (layout.state + layout.actions) + past_actions + min(layout.registers, 1)
    return Call(
        video=layout.per_frame * frames,
        others=chunks * layout.num_side + past_actions,
        actions=chunks * layout.actions,
        slots=frames + side_slots,
        side_slots=side_slots,
        text=text,
        image=image,
        pairs=_visible_pairs(layout, (context, chunk, chunks), rule),
        state=chunks * layout.state,
        clean_video=layout.per_frame * (chunks - 1) * chunk,
        clean_actions=past_actions,
    )


def _visible_pairs(layout: TokenLayout, cut: tuple[int, int, int], rule: AttentionConfig) -> int:
    """Count the pairs that the rule leaves, group by group; `cut`: frames of the context and of a chunk, and chunks."""
    context, size, chunks = cut
    rows = [(0, Modality.VIDEO, 0, context * layout.per_frame)]
    for chunk in range(1, chunks + 1):
        video = size * layout.per_frame
        if chunk < chunks:
            rows.append((chunk, Modality.VIDEO, 0, video))
            rows.append((chunk, Modality.ACTION, 0, layout.actions if rule.action_history else 0))
        rows.append((chunk, Modality.VIDEO, 1, video))
        rows.append((chunk, Modality.STATE, 1, layout.state))
        rows.append((chunk, Modality.ACTION, 1, layout.actions))
        rows.append((chunk, Modality.REGISTER, 1, layout.registers))
    table = torch.tensor([[int(number) for number in row] for row in rows], device="cpu")
    ones = torch.ones_like(table[:, 0])
    meta = TokenMeta(*(field[None] for field in (table[:, 0], table[:, 1], table[:, 2], ones)))
    seen = dense_mask(meta, meta, rule)[0, 0].long()
    return int((table[:, 3, None] * seen * table[None, :, 3]).sum())


def forward_flops(shape: NetworkShape, call: Call) -> Flops:
    """Return the operations of one forward pass of one sample."""
    inner, layers = shape.dim, shape.layers
    into, out = shape.action_weights
    ends = inner * (call.video * shape.patch_in + (call.video - call.clean_video) * shape.patch_out)
    ends += (call.actions + call.clean_actions) * into + call.actions * out + call.state * shape.state_weights
    pairs = call.attended - (call.video * call.others if shape.blind and call.pairs is None else 0)
    linear = cross = 0
    for tower, tokens, slots in towers(shape, call):
        linear += tokens * tower.weights(inner, text_cached=True)
        ends += slots * (shape.freq_dim * tower.dim + 7 * tower.dim**2)
        cross += tokens * call.context if tower.reads else 0
    for tower in [shape.trunk, *([shape.expert] if shape.expert else [])]:
        if tower.reads and not call.text_cached:
            linear += 2 * call.context * tower.dim * inner  # keys and values of the context
            ends += call.text * (shape.text_dim * tower.dim + tower.dim**2)
            ends += call.image * (shape.image_dim**2 + shape.image_dim * tower.dim)
    return Flops(
        linear=2 * layers * linear,
        self_attention=4 * layers * inner * pairs,
        cross_attention=4 * layers * inner * cross,
        ends=2 * ends,
    )


def cache_bytes(shape: NetworkShape, *, tokens: int, context: int, bytes_per_number: int = 2) -> int:
    """Return the size of a cache for one sample: keys and values of `tokens`, and for each tower of `context`, in each block."""
    readers = 2 if shape.expert is not None and shape.expert.reads else 1
    return 2 * shape.layers * shape.dim * (tokens + readers * context) * bytes_per_number
