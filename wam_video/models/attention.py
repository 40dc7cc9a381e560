"""Multi-head attention with Wan's parameter names; the backend is diffusers' choice, in one place."""

from typing import Any

from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wam_video.models.rope import Rotary, apply_rotary


class WAMAttnProcessor:
    """Compute attention through diffusers' dispatcher, so that `set_attention_backend` applies."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: "WAMAttention",
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b s d"] | None = None,
        rotary: Rotary | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b n d"]:
        source = x if context is None else context
        query = attn.norm_q(attn.to_q(x)).unflatten(-1, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(source)).unflatten(-1, (attn.heads, -1))
        value = attn.to_v(source).unflatten(-1, (attn.heads, -1))
        if rotary is not None:
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        out = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=mask,
            backend=self._attention_backend,
            # Text is short and whole on every rank, so only self-attention is split (as diffusers does for Wan).
            parallel_config=self._parallel_config if context is None else None,
        )
        return attn.to_out[0](out.flatten(2).type_as(query))


class WAMAttention(nn.Module, AttentionModuleMixin):
    """Self- or cross-attention; queries and keys are RMS-normalised across all heads (Wan's `rms_norm_across_heads`)."""

    _default_processor_cls = WAMAttnProcessor
    _available_processors = [WAMAttnProcessor]

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

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b s d"] | None = None,
        rotary: Rotary | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Attend from `x` to itself, or to `context` if given."""
        return self.processor(self, x, context, rotary, mask)
