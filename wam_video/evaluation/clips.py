"""Side-by-side videos of one window: panels next to each other, enlarged without blur, as H.264 inside the page."""

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from wam_video.data.video import encode_mp4
from wam_video.evaluation.open_loop import Key, Shown
from wam_video.markup import Html, el

MIN_SIDE = 192
"""Pixels of a panel's shorter side, at least."""

DIFFERENCE_GAIN = 2.0
_MIN_FRAME_S = 0.4
_GAP, _BAR = 8, 6
_GIVEN, _MADE, _GROUND = (150, 150, 150), (230, 120, 20), (128, 128, 128)


def recorded(shown: Shown) -> UInt8[Tensor, "f h w 3"]:
    """Return the recording, views stacked on top of each other."""
    return rearrange(shown.video, "v f h w c -> f (v h) w c")


def generated(shown: Shown, key: Key) -> UInt8[Tensor, "f h w 3"]:
    """Return the recorded context followed by the future that a run generated."""
    context = shown.video[:, : shown.num_context_frames]
    return rearrange(torch.cat([context, shown.videos[key]], dim=1), "v f h w c -> f (v h) w c")


def difference(shown: Shown, key: Key) -> UInt8[Tensor, "f h w 3"]:
    """Return generated minus recorded about mid grey, amplified: grey is right, brighter and darker are wrong."""
    delta = generated(shown, key).float() - recorded(shown).float()
    return (128 + DIFFERENCE_GAIN * delta).round().clamp(0, 255).to(torch.uint8)


def strip(
    panels: Sequence[UInt8[Tensor, "f h w 3"]], num_given: int, made: Sequence[bool]
) -> UInt8[np.ndarray, "f h w 3"]:
    """Put panels next to each other, enlarged to `MIN_SIDE` or more, with a bar below each: grey given, orange made.

    Args:
        panels: Of one size.
        num_given: The first so many frames are given in every panel.
        made: Whether the later frames of each panel come from the model.
    """
    f, h, w, _ = panels[0].shape
    scale = max(1, -(-MIN_SIDE // min(h, w)))
    columns = []
    for i, (panel, by_model) in enumerate(zip(panels, made, strict=True)):
        big = panel.cpu().numpy().repeat(scale, axis=1).repeat(scale, axis=2)
        bar = np.empty((f, _BAR, big.shape[2], 3), np.uint8)
        bar[:] = _GIVEN
        if by_model:
            bar[num_given:] = _MADE
        if i:
            columns.append(np.full((f, h * scale + _BAR, _GAP, 3), _GROUND, np.uint8))
        columns.append(np.concatenate([big, bar], axis=1))
    frames = np.concatenate(columns, axis=2)
    return frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]


def movie(frames: UInt8[np.ndarray, "f h w 3"], stride_s: float, alt: str) -> Html:
    """Return a looping, silent video element with its last frame as the still; short clips are slowed down."""
    frame_s = max(stride_s, _MIN_FRAME_S)
    hold = max(1, round(0.8 / frame_s))
    looped = np.concatenate([frames, frames[-1:].repeat(hold, axis=0)])
    data = encode_mp4(looped, fps=1 / frame_s, crf=20)
    still = io.BytesIO()
    Image.fromarray(frames[-1]).save(still, "JPEG", quality=82, subsampling=0)
    return el(
        "video", src=_data_uri("video/mp4", data), poster=_data_uri("image/jpeg", still.getvalue()), autoplay=True,
        loop=True, muted=True, playsinline=True, preload="auto", aria_label=alt, width=frames.shape[2],
        height=frames.shape[1],
    )  # fmt: skip


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
