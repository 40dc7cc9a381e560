"""Self- and cross-attention with Wan's parameter names; the backend is diffusers' choice, in one place."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from jaxtyping import Float
from torch import Tensor, nn

from wam_video.models.masks import AttentionMask, Masks
from wam_video.models.rope import Rotary, apply_rotary
from wam_video.models.sequence_parallel import SequenceGroup

HeadTensor = Float[Tensor, "b n heads k"]


class Context(NamedTuple):
    """Keys and values of what cross-attention reads: the prompt, and the image if there is one."""

    text: tuple[HeadTensor, HeadTensor]
    image: tuple[HeadTensor, HeadTensor] | None


class LayerMemory(Protocol):
    """What a block remembers of earlier calls; `models.kv_cache` has it."""

    @property
    def past(self) -> tuple[HeadTensor, HeadTensor] | None:
        """Keys and values of the tokens in the cache; None if there are none."""
        ...

    def context(self, tower: int) -> Context:
        """Return what cross-attention of a tower reads."""
        ...

    def keep(self, key: HeadTensor, value: HeadTensor) -> None:
        """Take the keys and values of the call's own tokens."""
        ...


class WAMAttnProcessor:
    """Compute attention through diffusers' dispatcher, so that `set_attention_backend` applies."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        query: HeadTensor,
        key: HeadTensor,
        value: HeadTensor,
        mask: AttentionMask | None = None,
        *,
        parallel: bool = False,
    ) -> Float[Tensor, "b n heads k"]:
        """Attend; `parallel` is for self-attention, for text is short and whole on every rank (as diffusers does for Wan)."""
        attn_mask: Any = mask  # a block mask too, which FlexAttention takes and diffusers' hint leaves out
        out = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attn_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config if parallel else None,
        )
        return out.type_as(query)


def uses_flex(processor: Any) -> bool:
    """Whether a processor's backend is FlexAttention, which wants block masks."""
    backend = processor._attention_backend  # where diffusers' set_attention_backend puts it
    return backend is not None and AttentionBackendName(backend) is AttentionBackendName.FLEX


class WAMAttention(nn.Module, AttentionModuleMixin):
    """What both kinds share: projections; queries and keys RMS-normalised across all heads (`rms_norm_across_heads`)."""

    _default_processor_cls = WAMAttnProcessor
    _available_processors = [WAMAttnProcessor]
    processor: Any

    def __init__(self, dim: int, heads: int, head_dim: int, eps: float = 1e-6, *, key_dim: int | None = None) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(dim, inner)
        self.to_k = nn.Linear(key_dim or dim, inner)
        self.to_v = nn.Linear(key_dim or dim, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, dim)])
        self.norm_q = nn.RMSNorm(inner, eps=eps)
        self.norm_k = nn.RMSNorm(inner, eps=eps)
        processor: Any = WAMAttnProcessor()  # diffusers' hint names its own processors only
        self.set_processor(processor)

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
    the bit whatever the others hold, and the gate's own gradient is not zero. Other queries attend to everything. Where
    video sees none of the others (`Masks.blind`), its attention is its own as well, and that is all.

    No matrix product has rows of both streams, for its rounding may depend on how many rows there are.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, eps: float = 1e-6, *, gated: bool = False) -> None:
        super().__init__(dim, heads, head_dim, eps)
        self.side_gate = nn.Parameter(torch.zeros(heads)) if gated else None
        self.sequence: SequenceGroup | None = None
        """The processes that share the tokens; `WAMTransformer.share_sequences` sets it."""

    def forward(
        self,
        streams: Sequence[Float[Tensor, "b n d"]],
        rotaries: Sequence[Rotary],
        masks: Masks | None = None,
        *,
        layers: Sequence["WAMSelfAttention"] | None = None,
        memory: LayerMemory | None = None,
        counts: Sequence[int] | None = None,
    ) -> list[Float[Tensor, "b n d"]]:
        """Return each stream's attention output.

        Args:
            streams: Tokens.
            rotaries: The rotation of each stream's tokens.
            masks: Who sees whom; None: all see all.
            layers: The projections that each stream goes through, of any widths but with the same heads; None: these here.
            memory: Keys and values of earlier calls, which come before those of the streams.
            counts: Tokens of each stream over all processes, where these share them (`sequence`).
        """
        layers = layers or [self] * len(streams)
        queries, keys, values = [], [], []
        for layer, x, rotary in zip(layers, streams, rotaries, strict=True):
            queries.append(apply_rotary(layer.query(x), rotary))
            key, value = layer.key_value(x)
            keys.append(apply_rotary(key, rotary))
            values.append(value)
        if self.sequence is not None:
            queries, keys, values = self._gathered(self.sequence, queries, keys, values, counts or [])
        past = None if memory is None else memory.past
        blind = masks is not None and masks.blind
        if len(streams) == 1 or (self.side_gate is None and not blind):
            joint = _cat(queries), _cat(_after(past, 0, keys)), _cat(_after(past, 1, values))
            out = self.processor(*joint, None if masks is None else masks.whole, parallel=True)
            outs = [out] if len(streams) == 1 else out.split([query.shape[1] for query in queries], dim=1)
        else:
            gate = None if blind else self.side_gate
            if gate is not None and self.sequence is not None:
                gate = self.sequence.heads(gate)
            outs = self._apart(gate, queries, (keys, values), past, masks or Masks(whole=None))
        if memory is not None:
            memory.keep(_cat(keys), _cat(values))  # only now: it may write where what was just read lay
        if self.sequence is not None:
            outs = [self.sequence.to_tokens(out) for out in outs]
        return [layer.to_out[0](out.flatten(2)) for layer, out in zip(layers, outs, strict=True)]

    @staticmethod
    def _gathered(
        group: SequenceGroup,
        queries: list[HeadTensor],
        keys: list[HeadTensor],
        values: list[HeadTensor],
        counts: Sequence[int],
    ) -> tuple[list[HeadTensor], list[HeadTensor], list[HeadTensor]]:
        """Return all tokens of each stream with the heads of this process, in one exchange a stream."""
        parts: tuple[list[HeadTensor], list[HeadTensor], list[HeadTensor]] = [], [], []
        for query, key, value, count in zip(queries, keys, values, counts, strict=True):
            joint = group.to_heads(torch.cat([query, key, value], dim=-1), count)
            for part, own in zip(parts, joint.chunk(3, dim=-1), strict=True):
                part.append(own)
        return parts

    def _apart(
        self,
        gate: Float[Tensor, " heads"] | None,
        queries: list[HeadTensor],
        key_values: tuple[list[HeadTensor], list[HeadTensor]],
        past: tuple[HeadTensor, HeadTensor] | None,
        masks: Masks,
    ) -> list[HeadTensor]:
        video_context = [_cat(_after(past, i, each[:1])) for i, each in enumerate(key_values)]
        whole_context = [_cat(_after(past, i, each)) for i, each in enumerate(key_values)]
        video = self.processor(queries[0], *video_context, masks.video)
        rest = self.processor(queries[1], *whole_context, masks.whole)
        if gate is None:
            return [video, rest]
        side = self.processor(queries[0], key_values[0][1], key_values[1][1], masks.side)
        if masks.sees_side is not None:
            side = side * masks.sees_side
        return [video + side * gate.tanh().type_as(side)[:, None], rest]


def _cat(tensors: Sequence[HeadTensor]) -> HeadTensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=1)


def _after(past: tuple[HeadTensor, HeadTensor] | None, part: int, tensors: list[HeadTensor]) -> list[HeadTensor]:
    return tensors if past is None else [past[part], *tensors]


class WAMCrossAttention(WAMAttention):
    """Attention to the prompt, plus (Wan's image-to-video shape) attention to image tokens with keys of their own."""

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        eps: float = 1e-6,
        *,
        context_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
    ) -> None:
        super().__init__(dim, heads, head_dim, eps, key_dim=context_dim)
        inner = heads * head_dim
        self.add_k_proj = self.add_v_proj = None
        if added_kv_proj_dim is not None:
            self.add_k_proj = nn.Linear(added_kv_proj_dim, inner)
            self.add_v_proj = nn.Linear(added_kv_proj_dim, inner)
            self.norm_added_k = nn.RMSNorm(inner, eps=eps)

    def context(self, text: Float[Tensor, "b s d"], image: Float[Tensor, "b i d"] | None = None) -> Context:
        """Return the keys and values of prompt and image, which are the same in all calls."""
        if image is None:
            return Context(self.key_value(text), None)
        assert self.add_k_proj is not None, "an image for a network that reads none"
        assert self.add_v_proj is not None
        key = self._split(self.norm_added_k(self.add_k_proj(image)))
        return Context(self.key_value(text), (key, self._split(self.add_v_proj(image))))

    def forward(self, x: Float[Tensor, "b n d"], context: Context) -> Float[Tensor, "b n d"]:
        """Return the attention output of tokens."""
        query = self.query(x)
        out = self.processor(query, *context.text)
        if context.image is not None:
            out = out + self.processor(query, *context.image)
        return self.to_out[0](out.flatten(2))
