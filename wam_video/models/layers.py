"""Small layers: the conditioning on time and text, and the linear maps that belong to an embodiment."""

import torch
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding, Timesteps
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

TRAIN_TIMESTEPS = 1000
"""Wan embeds flow time in thousandths."""


class ConditionEmbedder(nn.Module):
    """Embed clocks and text (diffusers `WanTimeTextImageEmbedding`, same keys): one time row a clock slot."""

    def __init__(self, dim: int, freq_dim: int, text_dim: int) -> None:
        super().__init__()
        self.timesteps_proj = Timesteps(num_channels=freq_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedder = TimestepEmbedding(in_channels=freq_dim, time_embed_dim=dim)
        self.act_fn = nn.SiLU()
        self.time_proj = nn.Linear(dim, dim * 6)
        self.text_embedder = PixArtAlphaTextProjection(text_dim, dim, act_fn="gelu_tanh")

    def forward(
        self, t: Float[Tensor, "b m"], text: Float[Tensor, "b s dt"]
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b m 6 d"], Float[Tensor, "b s d"]]:
        """Return the time embedding, the six modulation vectors of each slot, and the projected text."""
        frequencies = self.timesteps_proj(t.flatten() * TRAIN_TIMESTEPS).unflatten(0, t.shape)
        # Loaded in half precision the time embedder alone stays in float32, as `_keep_in_fp32_modules` says.
        time = self.time_embedder(frequencies.to(self.time_embedder.linear_1.weight.dtype)).type_as(text)
        modulation = self.time_proj(self.act_fn(time)).unflatten(-1, (6, -1))
        return time, modulation, self.text_embedder(text)


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

    def __init__(self, in_dims: list[int], out_dims: list[int], *, zero_init: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(in_dims), max(in_dims), max(out_dims)))
        self.bias = nn.Parameter(torch.zeros(len(in_dims), max(out_dims)))
        self.register_buffer("in_mask", _dim_mask(in_dims), persistent=False)
        self.register_buffer("out_mask", _dim_mask(out_dims), persistent=False)
        if not zero_init:
            for table, dim in zip(self.weight, in_dims, strict=True):
                nn.init.normal_(table, std=max(dim, 1) ** -0.5)

    def forward(self, x: Float[Tensor, "b m i"], embodiment: Int[Tensor, " b"]) -> Float[Tensor, "b m o"]:
        """Map row i of the batch with the weights of its embodiment; padded dimensions read as 0 and give 0."""
        x = torch.where(self.in_mask[embodiment][:, None], x, torch.zeros_like(x))
        y = einsum(x, self.weight[embodiment], "b m i, b i o -> b m o") + self.bias[embodiment][:, None]
        return y * self.out_mask[embodiment][:, None].to(y)


def _dim_mask(dims: list[int]) -> Bool[Tensor, "e d"]:
    return torch.arange(max(dims))[None] < torch.tensor(dims)[:, None]
