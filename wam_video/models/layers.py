"""Small layers: the conditioning on time, text and image, and the linear maps that belong to an embodiment."""

from collections.abc import Sequence

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding, Timesteps
from diffusers.models.normalization import FP32LayerNorm
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

TRAIN_TIMESTEPS = 1000
"""Wan embeds flow time in thousandths."""

TimeEmbedding = tuple[Float[Tensor, "b m d"], Float[Tensor, "b m 6 d"]]
"""The embedding of each clock slot, and the six modulation vectors that come of it."""


class ImageEmbedder(nn.Module):
    """Project image tokens to the network's width (diffusers `WanImageEmbedding`, same keys)."""

    def __init__(self, image_dim: int, dim: int) -> None:
        super().__init__()
        self.norm1 = FP32LayerNorm(image_dim)
        self.ff = FeedForward(image_dim, dim, mult=1, activation_fn="gelu")
        self.norm2 = FP32LayerNorm(dim)

    def forward(self, image: Float[Tensor, "b i di"]) -> Float[Tensor, "b i d"]:
        """Return the projected image tokens."""
        return self.norm2(self.ff(self.norm1(image)))


class ConditionEmbedder(nn.Module):
    """Embed clocks, text and image (diffusers `WanTimeTextImageEmbedding`, same keys): one time row a clock slot.

    Without a `text_dim` it embeds clocks only, for a tower that does not read the prompt.
    """

    def __init__(self, dim: int, freq_dim: int, text_dim: int | None, image_dim: int | None = None) -> None:
        super().__init__()
        self.timesteps_proj = Timesteps(num_channels=freq_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedder = TimestepEmbedding(in_channels=freq_dim, time_embed_dim=dim)
        self.act_fn = nn.SiLU()
        self.time_proj = nn.Linear(dim, dim * 6)
        self.text_embedder = None
        if text_dim is not None:
            self.text_embedder = PixArtAlphaTextProjection(text_dim, dim, act_fn="gelu_tanh")
        self.image_embedder = None if image_dim is None else ImageEmbedder(image_dim, dim)

    def forward(self, clocks: Sequence[Float[Tensor, "b m"]], like: Float[Tensor, "..."]) -> list[TimeEmbedding]:
        """Return the time embedding of each stream's slots, in the type of `like`."""
        return [self._embed_time(t, like) for t in clocks]

    def context(
        self, text: Float[Tensor, "b s dt"], image: Float[Tensor, "b i di"] | None = None
    ) -> tuple[Float[Tensor, "b s d"], Float[Tensor, "b i d"] | None]:
        """Return the projected text, and the projected image if there is one.

        Raises:
            ValueError: There is no `text_dim`.
        """
        if self.text_embedder is None:
            raise ValueError("this tower does not read the prompt")
        projected = self.image_embedder(image) if self.image_embedder is not None and image is not None else None
        return self.text_embedder(text), projected

    def _embed_time(self, t: Float[Tensor, "b m"], like: Tensor) -> TimeEmbedding:
        frequencies = self.timesteps_proj(t.flatten() * TRAIN_TIMESTEPS).unflatten(0, t.shape)
        # Loaded in half precision the time embedder alone stays in float32, as `_keep_in_fp32_modules` says.
        time = self.time_embedder(frequencies.to(self.time_embedder.linear_1.weight.dtype)).type_as(like)
        return time, self.time_proj(self.act_fn(time)).unflatten(-1, (6, -1))


def octave_features(x: Float[Tensor, "b m i"], octaves: int) -> Float[Tensor, "b m j"]:
    """Put `sin` and `cos` of `2^k pi x`, k < `octaves`, beside each value, value by value (Tancik et al. 2020).

    A network learns a sharp function of a raw coordinate slowly ("spectral bias"): to draw a gripper where an action
    says it goes, it needs the coordinate at several scales.
    """
    if octaves == 0:
        return x
    waves = x[..., None] * (torch.pi * 2.0 ** torch.arange(octaves, device=x.device, dtype=x.dtype))
    return torch.cat([x[..., None], waves.sin(), waves.cos()], dim=-1).flatten(-2)


class EmbodimentLinear(nn.Module):
    """A linear map of its own for each embodiment, stored as one table so that any mix of them fits in a batch.

    Rows for dimensions that an embodiment does not have are never reached: inputs are zeroed there, outputs too.
    Adding an embodiment leaves the numbers of the others unchanged.
    """

    in_mask: Bool[Tensor, "e i"]
    out_mask: Bool[Tensor, "e o"]

    def __init__(self, in_dims: list[int], out_dims: list[int], *, zero_init: bool = False) -> None:
        super().__init__()
        self.in_dims, self.out_dims, self.zero_init = list(in_dims), list(out_dims), zero_init
        self.weight = nn.Parameter(torch.zeros(len(in_dims), max(in_dims), max(out_dims)))
        self.bias = nn.Parameter(torch.zeros(len(in_dims), max(out_dims)))
        self.register_buffer("in_mask", _dim_mask(in_dims), persistent=False)
        self.register_buffer("out_mask", _dim_mask(out_dims), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights with variance 1 / (input width), or make them zero (`zero_init`); biases are zero."""
        self.weight.zero_()
        self.bias.zero_()
        self.in_mask.copy_(_dim_mask(self.in_dims))
        self.out_mask.copy_(_dim_mask(self.out_dims))
        if not self.zero_init:
            for table, dim in zip(self.weight, self.in_dims, strict=True):
                table.normal_(std=max(dim, 1) ** -0.5, generator=generator)

    def forward(self, x: Float[Tensor, "b m i"], embodiment: Int[Tensor, " b"]) -> Float[Tensor, "b m o"]:
        """Map row i of the batch with the weights of its embodiment; padded dimensions read as 0 and give 0."""
        x = torch.where(self.in_mask[embodiment][:, None], x, torch.zeros_like(x))
        y = einsum(x, self.weight[embodiment], "b m i, b i o -> b m o") + self.bias[embodiment][:, None]
        return y * self.out_mask[embodiment][:, None].to(y)


def _dim_mask(dims: list[int]) -> Bool[Tensor, "e d"]:
    return torch.arange(max(dims))[None] < torch.tensor(dims)[:, None]
