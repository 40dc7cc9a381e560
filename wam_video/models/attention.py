"""Self- and cross-attention with Wan's parameter names; the backend is diffusers' choice, in one place."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wam_video.models.rope import Rotary, apply_rotary

HeadTensor = Float[Tensor, "b n heads k"]
Mask = Bool[Tensor, "b 1 q n"]
"""True where a query may look; `q` is 1 if it is the same for all queries."""


class WAMAttnProcessor:
    """Compute attention through diffusers' dispatcher, so that `set_attention_backend` applies."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        query: HeadTensor,
        key: HeadTensor,
        value: HeadTensor,
        mask: Mask | None = None,
        *,
        parallel: bool = False,
    ) -> Float[Tensor, "b n heads k"]:
        """Attend; `parallel` is for self-attention, for text is short and whole on every rank (as diffusers does for Wan)."""
        out = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config if parallel else None,
        )
        return out.type_as(query)


class WAMAttention(nn.Module, AttentionModuleMixin):
    """What both kinds share: projections; queries and keys RMS-normalised across all heads (`rms_norm_across_heads`)."""

    _default_processor_cls = WAMAttnProcessor
    _available_processors = [WAMAttnProcessor]
    processor: Any

    def __init__(self, dim: int, heads: int, head_dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(dim, inner)
        self.to_k = nn.Linear(dim, inner)
        self.to_v = nn.Linear(dim, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, dim)])
        self.norm_q = nn.RMSNorm(inner, eps=eps)
        self.norm_k = nn.RMSNorm(inner, eps=eps)
        self.set_processor(WAMAttnProcessor())

    def query(self, x: Float[Tensor, "b n d"]) -> HeadTensor:
        """Return the queries of tokens."""
        return self._split(self.norm_q(self.to_q(x)))

    def key_value(self, x: Float[Tensor, "b n d"]) -> tuple[HeadTensor, HeadTensor]:
        """Return the keys and values of tokens."""
        return self._split(self.norm_k(self.to_k(x))), self._split(self.to_v(x))

    def _split(self, x: Float[Tensor, "b n d"]) -> HeadTensor:
        return x.unflatten(-1, (self.heads, -1))


class WAMSelfAttention(WAMAttention):
    """Self-attention over one stream of tokens, or over two of which the first keeps to itself until it has learned more.

    Two streams (video; state, actions and registers) are coupled as IP-Adapter and Flamingo add a modality to a trained
    network (Ye et al. 2023; Alayrac et al. 2022, section 3.1.2): a video query attends to video keys, and apart from that,
    times `tanh(side_gate)` of each head, to the other keys. The gate starts at zero, so the video comes out the same to
    the bit whatever the others hold, and the gate's own gradient is not zero. Other queries attend to everything.

    No matrix product has rows of both streams, for its rounding may depend on how many rows there are.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, eps: float = 1e-6, *, gated: bool = False) -> None:
        super().__init__(dim, heads, head_dim, eps)
        self.side_gate = nn.Parameter(torch.zeros(heads)) if gated else None

    def forward(
        self, streams: Sequence[Float[Tensor, "b n d"]], rotaries: Sequence[Rotary], mask: Mask | None = None
    ) -> list[Float[Tensor, "b n d"]]:
        """Return each stream's attention output; `mask` spans the tokens of all streams."""
        queries, keys, values = [], [], []
        for x, rotary in zip(streams, rotaries, strict=True):
            queries.append(apply_rotary(self.query(x), rotary))
            key, value = self.key_value(x)
            keys.append(apply_rotary(key, rotary))
            values.append(value)
        if self.side_gate is None:
            outs = [self.processor(queries[0], keys[0], values[0], mask, parallel=True)]
        else:
            outs = self._gated(self.side_gate, queries, keys, values, mask)
        return [self.to_out[0](out.flatten(2)) for out in outs]

    def _gated(
        self,
        gate: Float[Tensor, " heads"],
        queries: list[HeadTensor],
        keys: list[HeadTensor],
        values: list[HeadTensor],
        mask: Mask | None,
    ) -> list[HeadTensor]:
        num_video = keys[0].shape[1]
        video_mask = side_mask = rest_mask = None
        if mask is not None:
            upper, rest_mask = (mask, mask) if mask.shape[2] == 1 else mask.split([num_video, keys[1].shape[1]], 2)
            video_mask, side_mask = upper[..., :num_video], upper[..., num_video:]
        video = self.processor(queries[0], keys[0], values[0], video_mask)
        side = self.processor(queries[0], keys[1], values[1], side_mask)
        rest = self.processor(queries[1], torch.cat(keys, 1), torch.cat(values, 1), rest_mask)
        return [video + side * gate.tanh().type_as(side)[:, None], rest]


class WAMCrossAttention(WAMAttention):
    """Attention to the prompt, plus (Wan's image-to-video shape) attention to image tokens with keys of their own."""

    def __init__(
        self, dim: int, heads: int, head_dim: int, eps: float = 1e-6, *, added_kv_proj_dim: int | None = None
    ) -> None:
        super().__init__(dim, heads, head_dim, eps)
        inner = heads * head_dim
        self.add_k_proj = self.add_v_proj = None
        if added_kv_proj_dim is not None:
            self.add_k_proj = nn.Linear(added_kv_proj_dim, inner)
            self.add_v_proj = nn.Linear(added_kv_proj_dim, inner)
            self.norm_added_k = nn.RMSNorm(inner, eps=eps)

    def forward(
        self,
        streams: Sequence[Float[Tensor, "b n d"]],
        text: Float[Tensor, "b s d"],
        image: Float[Tensor, "b i d"] | None = None,
    ) -> list[Float[Tensor, "b n d"]]:
        """Return each stream's attention output; the context's keys and values are computed once for all."""
        text_context, image_context = self.key_value(text), None
        if image is not None:
            key = self._split(self.norm_added_k(self.add_k_proj(image)))
            image_context = key, self._split(self.add_v_proj(image))
        outs = []
        for x in streams:
            query = self.query(x)
            out = self.processor(query, *text_context)
            if image_context is not None:
                out = out + self.processor(query, *image_context)
            outs.append(self.to_out[0](out.flatten(2)))
        return outs
