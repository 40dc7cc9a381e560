"""Video codecs: pixels <-> latents. `PixelCodec` needs no weights; diffusers' `AutoencoderKLWan` brings Wan's latents.

Both are causal in time: the first frame has a latent of its own, then each latent covers `temporal_factor` frames and
stands at the time of the last of them.
"""

from typing import Any

import torch
from diffusers import AutoencoderKLWan, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from wam_video.errors import ConfigError


class PixelCodec(ModelMixin, ConfigMixin):
    """An invertible codec without weights: normalise pixels, then fold each square patch into channels.

    Args:
        patch_size: Side of a patch in pixels.
        mean: Of the pixels in [-1, 1], subtracted.
        std: Of the pixels, divided by: latents should have about unit variance, for they are mixed with unit noise.
    """

    @register_to_config
    def __init__(self, patch_size: int = 8, mean: float = 0.0, std: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("latents_mean", torch.tensor(float(mean)))
        self.register_buffer("latents_std", torch.tensor(float(std)))

    @property
    def latent_channels(self) -> int:
        """Channels of a latent: three colours of each pixel of a patch."""
        return 3 * self.config["patch_size"] ** 2

    def encode(self, video: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b c f h2 w2"]:
        """Return the latents of a video in [-1, 1]."""
        p = self.config["patch_size"]
        patches = rearrange(video, "b c f (h p) (w q) -> b (c p q) f h w", p=p, q=p)
        return (patches - self.latents_mean) / self.latents_std

    def decode(self, latents: Float[Tensor, "b c f h2 w2"]) -> Float[Tensor, "b 3 f h w"]:
        """Return the video of latents; the exact inverse of `encode`."""
        p = self.config["patch_size"]
        video = latents * self.latents_std + self.latents_mean
        return rearrange(video, "b (c p q) f h w -> b c f (h p) (w q)", p=p, q=p)


Codec = PixelCodec | AutoencoderKLWan


def temporal_factor(codec: Codec) -> int:
    """Frames in a latent frame after the first."""
    return 1 if isinstance(codec, PixelCodec) else int(codec.config["scale_factor_temporal"])


def spatial_factor(codec: Codec) -> int:
    """Pixels along the side of a latent site."""
    return (
        int(codec.config["patch_size"]) if isinstance(codec, PixelCodec) else int(codec.config["scale_factor_spatial"])
    )


def latent_channels(codec: Codec) -> int:
    """Channels of a latent."""
    return codec.latent_channels if isinstance(codec, PixelCodec) else int(codec.config["z_dim"])


def num_latents(codec: Codec, num_frames: int) -> int:
    """Return how many latent frames `num_frames` frames make.

    Raises:
        ConfigError: The frames don't fill the last latent.
    """
    factor = temporal_factor(codec)
    if num_frames < 1 or (num_frames - 1) % factor:
        raise ConfigError(
            f"{num_frames} frames do not fill whole latents; allowed: 1 + a multiple of {factor} for context, and "
            f"a multiple of {factor} for the future (the codec's temporal factor)"
        )
    return (num_frames - 1) // factor + 1


def latent_times(codec: Codec, frame_times: Float[Tensor, "b f"]) -> Float[Tensor, "b t"]:
    """Return the time of each latent frame: that of the last frame it covers."""
    return frame_times[:, :: temporal_factor(codec)]


def latent_mask(codec: Codec, frame_mask: Bool[Tensor, "b v f"]) -> Bool[Tensor, "b v t"]:
    """Return which latent frames are real (`b v t` of `b v f`): those of which every frame is."""
    factor = temporal_factor(codec)
    rest = rearrange(frame_mask[..., 1:], "b v (t factor) -> b v t factor", factor=factor).all(-1)
    return torch.cat([frame_mask[..., :1], rest], dim=-1)


def encode(codec: Codec, video: Float[Tensor, "b v 3 f h w"]) -> Float[Tensor, "b v c t h2 w2"]:
    """Encode each view's video in [-1, 1] to normalised latents; for a VAE the mode of its posterior.

    Raises:
        ConfigError: The frames or the size don't fit the codec.
    """
    num_latents(codec, video.shape[3])
    check_frame_size(codec, video.shape[4], video.shape[5])
    flat = rearrange(video, "b v c f h w -> (b v) c f h w")
    if isinstance(codec, PixelCodec):
        latents = codec.encode(flat)
    else:
        mean, std = latent_statistics(codec, flat)
        latents = (codec.encode(flat.to(codec.dtype), return_dict=False)[0].mode().to(flat) - mean) / std
    return rearrange(latents, "(b v) c t h w -> b v c t h w", v=video.shape[1])


def first_frame_condition(
    codec: Codec, first_frame: Float[Tensor, "b v 3 h w"], num_frames: int
) -> Float[Tensor, "b v c t h2 w2"]:
    """Return what Wan's image-to-video networks read beside the noisy latents: 4 mask and 16 latent channels.

    The mask has a channel for each frame of a latent and is 1 on the first latent only; the latents are those of the first
    frame followed by grey frames (diffusers `WanImageToVideoPipeline.prepare_latents`).

    Args:
        codec: The network's video VAE.
        first_frame: In [-1, 1].
        num_frames: Of the whole video, the first one included.

    Raises:
        ConfigError: The frames or the size don't fit the codec.
    """
    frames = first_frame[:, :, :, None]
    latents = encode(codec, torch.nn.functional.pad(frames, (0, 0, 0, 0, 0, num_frames - 1)))
    mask = torch.zeros_like(latents[:, :, :1]).expand(-1, -1, temporal_factor(codec), -1, -1, -1).clone()
    mask[:, :, :, 0] = 1
    return torch.cat([mask, latents], dim=2)


def check_frame_size(codec: Codec, height: int, width: int) -> None:
    """Refuse frames that do not fill whole latent sites.

    Raises:
        ConfigError: They don't.
    """
    side = spatial_factor(codec)
    if height % side or width % side:
        raise ConfigError(f"frames are {height}x{width}; the codec needs multiples of {side}; resize the data")


def decode(codec: Codec, latents: Float[Tensor, "b v c t h2 w2"]) -> Float[Tensor, "b v 3 f h w"]:
    """Decode normalised latents to video, clamped to [-1, 1]."""
    views = latents.shape[1]
    flat = rearrange(latents, "b v c t h w -> (b v) c t h w")
    if isinstance(codec, PixelCodec):
        video = codec.decode(flat)
    else:
        mean, std = latent_statistics(codec, flat)
        video = codec.decode((flat * std + mean).to(codec.dtype), return_dict=False)[0].to(flat)
    return rearrange(video, "(b v) c f h w -> b v c f h w", v=views).clamp(-1, 1)


def latent_statistics(
    codec: AutoencoderKLWan, like: Float[Tensor, "b c t h w"]
) -> tuple[Float[Tensor, "1 c 1 1 1"], Float[Tensor, "1 c 1 1 1"]]:
    """Return mean and standard deviation of a VAE's latent channels, with the type and device of `like`."""

    def column(values: Any) -> Tensor:
        return torch.tensor(values, device=like.device, dtype=like.dtype).reshape(1, -1, 1, 1, 1)

    return column(codec.config["latents_mean"]), column(codec.config["latents_std"])
