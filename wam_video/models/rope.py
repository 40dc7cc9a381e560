"""Rotary positions on three axes (time in seconds, height, width), shared by video, actions and state, or an axis of their own.

Wan's layout and numbers (diffusers `WanRotaryPosEmbed`): the head dim is split into a temporal part and two spatial ones,
pairs are interleaved, angles are computed in float64. The difference: a position is a real number, so the temporal one is
time in seconds times a rate and video and actions of any rate fall on one axis.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rotary = tuple[Float[Tensor, "b n 1 k2"], Float[Tensor, "b n 1 k2"]]
"""Cosine and sine of each pair's angle, in float32."""


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Split the head dim over (time, height, width) as Wan does: 128 -> 44, 42, 42."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def rotary_angles(positions: Float[Tensor, "b n 3"], head_dim: int, theta: float) -> Rotary:
    """Return cosine and sine for positions `b n 3` (time, height, width) at base `theta`."""
    parts = []
    for axis, dim in enumerate(axis_dims(head_dim)):
        exponent = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim
        parts.append(positions[..., axis, None].double() * theta**-exponent)
    angles = torch.cat(parts, dim=-1)[:, :, None]  # b n 1 k/2
    return angles.cos().float(), angles.sin().float()


def index_angles(index: Int[Tensor, "r n"], head_dim: int, theta: float) -> Rotary:
    """Return cosine and sine for tokens counted on an axis of their own, which takes the whole head dim."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device=index.device) / head_dim
    angles = (index[..., None].double() * theta**-exponent)[:, :, None]
    return angles.cos().float(), angles.sin().float()


def sinusoids(positions: Float[Tensor, "b n 3"], dim: int) -> Float[Tensor, "b n d"]:
    """Return fixed sinusoids of the three positions side by side, `dim` channels (Vaswani et al. 2017, section 3.5).

    The longest wave is 2 pi * 100 positions, for grids and chunks are short; channels that don't divide evenly are zero.
    """
    pairs = dim // 6
    frequencies = 100.0 ** -(torch.arange(pairs, device=positions.device, dtype=torch.float32) / pairs)
    angles = (positions[..., None].float() * frequencies).flatten(-2)  # b n 3*pairs
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return torch.nn.functional.pad(waves, (0, dim - 6 * pairs))


def apply_rotary(x: Float[Tensor, "b n heads k"], rotary: Rotary) -> Float[Tensor, "b n heads k"]:
    """Rotate each interleaved pair of `x` by its token's angle (Su et al. 2021, eq. 34)."""
    cos, sin = rotary
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).type_as(x)
