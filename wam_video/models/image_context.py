"""What an image-to-video network is told of a video's first frame: channels beside its latents, and CLIP's tokens.

Training and inference make both here, from context frames and nothing else, so neither can leak what is to be predicted.

The first frame is the oldest frame of the context that was recorded, in each view; where older ones are missing it stands
for them. It is fixed for a window, or for as long as a `KVCache` lasts: a sliding window drops the chunks that it has left
behind, but the condition stays that of the frame with which the cache began, and later chunks read the channels of their
own place after it (`condition_of_chunk`). A row that begins anew (`KVCache.reset`) gets a first frame of its own, its
tokens through `KVCache.with_contexts`.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import CLIPVisionModel

from wam_video.errors import ConfigError
from wam_video.models.image_encoder import Fit, encode_image
from wam_video.models.video_codec import Codec, first_frame_condition, latent_channels, temporal_factor


class ImageContext:
    """Makes `condition` and `image_embeds` of `WAMTransformer.forward`, those of them that the network reads.

    Args:
        network: The network's config.
        codec: The video codec.
        encoder: CLIP, if the network has an `image_dim`.
        fit: How a frame becomes CLIP's square picture (`encode_image`).

    Raises:
        ConfigError: The parts do not fit each other.
    """

    def __init__(self, network: Any, codec: Codec, encoder: CLIPVisionModel | None, fit: Fit = "crop") -> None:
        check_image_parts(network, codec, encoder)
        self._reads_condition = bool(network["condition_channels"])
        self.reads = self._reads_condition or encoder is not None
        """Whether the network is told anything."""
        self._codec = codec
        self._encoder = encoder
        self._fit: Fit = fit

    @torch.no_grad()
    def __call__(
        self, context: Float[Tensor, "b v 3 f h w"], frame_mask: Bool[Tensor, "b v f"], num_frames: int
    ) -> dict[str, Tensor | None]:
        """Return both by their names; None for what the network does not read.

        Args:
            context: The context frames, in [-1, 1].
            frame_mask: Which of them were recorded.
            num_frames: Of the whole window, the context included.
        """
        if not self.reads:
            return {"condition": None, "image_embeds": None}
        frames, known = first_frames(context, frame_mask.to(context.device))
        condition = image_embeds = None
        if self._reads_condition:
            condition = first_frame_condition(self._codec, frames, num_frames)
            # what is not there is not said to be given: the mask channels are 0 in views that a sample does not have
            condition[:, :, : temporal_factor(self._codec)] *= known[:, :, None, None, None, None]
        if self._encoder is not None:
            rows = torch.arange(len(frames), device=frames.device)
            image_embeds = encode_image(self._encoder, frames[rows, known.int().argmax(1)], fit=self._fit)
        return {"condition": condition, "image_embeds": image_embeds}


def first_frames(
    context: Float[Tensor, "b v 3 f h w"], frame_mask: Bool[Tensor, "b v f"]
) -> tuple[Float[Tensor, "b v 3 h w"], Bool[Tensor, "b v"]]:
    """Return the oldest recorded frame of each view, grey where there is none, and where there is one.

    CLIP is shown that of the first view that has one, so that a sample's tokens do not depend on how many cameras the others
    of its batch have.
    """
    known = frame_mask.any(dim=-1)
    oldest = frame_mask.int().argmax(dim=-1)
    by_frame = rearrange(context, "b v c f h w -> b v f c h w")
    index = oldest[:, :, None, None, None, None].expand(-1, -1, 1, *by_frame.shape[3:])
    frames = by_frame.gather(2, index)[:, :, 0]
    return frames * known[:, :, None, None, None], known


def condition_of_chunk(
    condition: Float[Tensor, "b v cc t h w"] | None, first: int, count: int
) -> Float[Tensor, "b v cc k h w"] | None:
    """Return the condition of `count` latent frames from the `first` on; past the window's end the last one goes on.

    A causal codec says nothing new of grey frames after some time, so that is what a longer condition would hold.
    """
    if condition is None:
        return None
    places = torch.arange(first, first + count, device=condition.device).clamp(max=condition.shape[3] - 1)
    return condition.index_select(3, places)


def check_image_parts(network: Any, codec: Codec, encoder: CLIPVisionModel | None) -> None:
    """Check that a network, its codec and its image encoder agree on what is read of the first frame.

    Args:
        network: The network's config.
        codec: The video codec.
        encoder: The image encoder, or None.

    Raises:
        ConfigError: They don't; the message says which numbers differ.
    """
    channels, made = network["condition_channels"], temporal_factor(codec) + latent_channels(codec)
    if channels not in (0, made):
        raise ConfigError(
            f"transformer has {channels} condition_channels, the first frame makes {made} of them with this codec (a mask of "
            f"{temporal_factor(codec)} and {latent_channels(codec)} of latents); allowed: 0 or {made}"
        )
    width = network["image_dim"]
    if encoder is None and width:
        raise ConfigError(
            f"transformer reads an image context {width} wide, but there is no image_encoder to make it; give the CLIP vision "
            "encoder that goes with it"
        )
    if encoder is not None and encoder.config.hidden_size != width:
        reads = f"reads an image context {width} wide" if width else "reads no image context"
        raise ConfigError(
            f"image_encoder is {encoder.config.hidden_size} wide, transformer {reads}; they are of two models"
        )
