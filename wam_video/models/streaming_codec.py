"""Encode video as it arrives: the latents are those of encoding it at once, and what the codec remembers is a value.

Wan's VAE is causal: its encoder takes the first frame alone and then groups of `temporal_factor` frames, and each of its
convolutions needs the last two frames that it saw before. diffusers keeps those on the model while it encodes; here they
are handed in and given back, so that many streams share one codec and a stream can be branched or taken up again.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from wam_video.errors import ConfigError
from wam_video.models.video_codec import (
    Codec,
    PixelCodec,
    check_frame_size,
    latent_channels,
    latent_statistics,
    spatial_factor,
    temporal_factor,
)


@dataclass(frozen=True, kw_only=True)
class EncoderState:
    """What encoding the next frames needs to know of those before; it is never changed in place."""

    features: tuple[Float[Tensor, "..."] | None, ...] = ()
    """Last inputs of each causal convolution."""
    pending: Float[Tensor, "b v 3 f h w"] | None = None
    """Frames that do not fill a latent yet; None before the first frame."""
    num_latents: int = 0
    """Latent frames that have come out."""


@torch.no_grad()
def encode_frames(
    codec: Codec, video: Float[Tensor, "b v 3 f h w"], state: EncoderState | None = None
) -> tuple[Float[Tensor, "b v c t h2 w2"], EncoderState]:
    """Encode the next frames of a stream in [-1, 1]; the mode of the posterior, normalised, as `video_codec.encode`.

    Args:
        codec: The codec; nothing on it changes.
        video: Any number of frames.
        state: Of the frames before; None at the start.

    Returns:
        The latents that these frames complete, possibly none (`t` = 0), and the state to go on with.

    Raises:
        ConfigError: The frames are of another shape than those before, don't fit the codec, or the codec tiles.
    """
    state = state or EncoderState()
    check_frame_size(codec, video.shape[4], video.shape[5])
    if state.pending is not None:
        if state.pending.shape[:3] + state.pending.shape[4:] != video.shape[:3] + video.shape[4:]:
            raise ConfigError(
                f"frames are {tuple(video.shape)} (b v c f h w), those before were {tuple(state.pending.shape)}; "
                "start another stream"
            )
        video = torch.cat([state.pending.to(video), video], dim=3)
    latents, features, used = [], state.features, 0
    group = 1 if state.num_latents == 0 else temporal_factor(codec)
    while used + group <= video.shape[3]:
        frames = rearrange(video[:, :, :, used : used + group], "b v c f h w -> (b v) c f h w")
        latent, features = _encode_group(codec, frames, features)
        latents.append(rearrange(latent, "(b v) c t h w -> b v c t h w", v=video.shape[1]))
        used, group = used + group, temporal_factor(codec)
    if not latents:
        side = spatial_factor(codec)
        shape = (*video.shape[:2], latent_channels(codec), 0, video.shape[4] // side, video.shape[5] // side)
        latents = [video.new_zeros(shape)]
    out = torch.cat(latents, dim=3)
    pending = video[:, :, :, used:].clone()  # a view would keep all the frames alive
    return out, EncoderState(features=features, pending=pending, num_latents=state.num_latents + out.shape[3])


def encode_streams(
    codec: Codec, videos: Sequence[Float[Tensor, "v 3 f h w"]], states: Sequence[EncoderState]
) -> tuple[list[Float[Tensor, "v c t h2 w2"]], list[EncoderState]]:
    """Encode the next frames of several streams, each as `encode_frames` does, those at the same point in one batch.

    Args:
        codec: The codec.
        videos: The frames of each stream, not necessarily as many.
        states: Of one stream each.
    """
    latents: list[Tensor] = [torch.empty(0)] * len(videos)
    after = list(states)
    alike: dict[Hashable, list[int]] = {}
    for i, (video, state) in enumerate(zip(videos, states, strict=True)):
        alike.setdefault((tuple(video.shape), _phase(state)), []).append(i)
    for group in alike.values():
        out, state = encode_frames(codec, torch.stack([videos[i] for i in group]), _join([states[i] for i in group]))
        for place, i in enumerate(group):
            latents[i], row = out[place], _row(state, place, len(group))
            after[i] = replace(row, num_latents=states[i].num_latents + out.shape[3])
    return latents, after


def _phase(state: EncoderState) -> Hashable:
    """Return what streams must have in common to be encoded in one batch."""
    pending = None if state.pending is None else tuple(state.pending.shape)
    return state.num_latents > 0, pending, tuple(None if x is None else tuple(x.shape) for x in state.features)


def _join(states: Sequence[EncoderState]) -> EncoderState:
    if len(states) == 1:
        return states[0]
    features = [
        None if parts[0] is None else torch.cat(parts) for parts in zip(*(s.features for s in states), strict=True)
    ]
    pending = None if states[0].pending is None else torch.cat([s.pending for s in states if s.pending is not None])
    return EncoderState(features=tuple(features), pending=pending, num_latents=states[0].num_latents)


def _row(state: EncoderState, row: int, count: int) -> EncoderState:
    """Return the state of one stream of a batch, without keeping the others' memory alive."""
    if count == 1:
        return state
    features = tuple(None if x is None else x.chunk(count)[row].clone() for x in state.features)
    pending = None if state.pending is None else state.pending[row : row + 1].clone()
    return EncoderState(features=features, pending=pending, num_latents=state.num_latents)


def _encode_group(
    codec: Codec, frames: Float[Tensor, "n 3 f h w"], features: tuple[Tensor | None, ...]
) -> tuple[Float[Tensor, "n c 1 h2 w2"], tuple[Tensor | None, ...]]:
    if isinstance(codec, PixelCodec):
        return codec.encode(frames), features
    if codec.use_tiling:
        raise ConfigError("the codec is set to tile, which streams can't; call codec.disable_tiling() first")
    cache = list(features) or [None] * sum(isinstance(m, WanCausalConv3d) for m in codec.encoder.modules())
    inputs = frames.to(codec.dtype)
    if codec.config["patch_size"] is not None:
        inputs = patchify(inputs, codec.config["patch_size"])
    hidden = codec.encoder(
        inputs, feat_cache=cache, feat_idx=[0]
    )  # replaces the list's entries, never writes into them
    mode = codec.quant_conv(hidden).chunk(2, dim=1)[0].to(frames)
    mean, std = latent_statistics(codec, frames)
    return (mode - mean) / std, tuple(cache)
