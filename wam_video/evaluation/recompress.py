"""Copies of a recording that lose what compression loses: how good a generated video could be at best."""

from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from wam_video.data.video import encode_mp4, open_video
from wam_video.evaluation.frame_scores import to_pixels
from wam_video.models.video_codec import PixelCodec, decode, encode

_FPS = 10.0
"""Changes no pixel."""


@torch.no_grad()
def through_codec(codec: Any, video: Float[Tensor, "b v f 3 h w"]) -> Float[Tensor, "b v f 3 h w"] | None:
    """Return videos in [0, 1] encoded and decoded by the model's own codec; None for `PixelCodec`, which loses nothing.

    One window at a time, so that the batch can't change a bit.
    """
    if isinstance(codec, PixelCodec):
        return None
    device = next(codec.parameters()).device
    rows = []
    for row in video:
        pixels = rearrange(row * 2 - 1, "v f c h w -> 1 v c f h w").to(device)
        rows.append(rearrange((decode(codec, encode(codec, pixels)).float() + 1) / 2, "1 v c f h w -> v f c h w").cpu())
    return torch.stack(rows)


def through_h264(video: Float[Tensor, "b v f 3 h w"]) -> Float[Tensor, "b v f 3 h w"] | None:
    """Return videos in [0, 1] encoded as shards store them and decoded again; None for odd sizes, which H.264 has not."""
    if video.shape[-1] % 2 or video.shape[-2] % 2:
        return None
    copies = [[_recode(to_pixels(clip)) for clip in views] for views in video]
    return rearrange(torch.from_numpy(np.stack(copies)), "b v f h w c -> b v f c h w").float() / 255


def _recode(frames: np.ndarray) -> np.ndarray:
    reader = open_video(encode_mp4(frames, fps=_FPS), name="copy of a window")
    try:
        return reader.get(range(len(frames)))
    finally:
        reader.close()
