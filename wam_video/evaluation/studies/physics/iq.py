"""Physics-IQ's scores, which need no network's weights (Motamed et al. 2025, arXiv 2501.09038, and its published code).

A mask of what moves: the picture's difference to a running mean of those before. Where (`spatial`), how much (`weighted`)
and when (`spatiotemporal`) things moved is compared by intersection over union, and the pixels by squared error.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage
from torch import Tensor

_ALPHA = 0.3
_THRESHOLD = 10
_KERNEL = 5
_KERNEL_HEIGHT = 512
"""The published kernels, 5 px for blur and morphology, are used from this height on. Smaller pictures get the nearest odd size
in proportion (1, i.e. none, up to 204 px): at 64 px an opening by 5 px would erase what moves."""
_GREY = np.array([0.299, 0.587, 0.114])

IQ_METRICS = ("piq_spatial", "piq_weighted", "piq_spatiotemporal", "piq_mse")


def kernel_size(height: int) -> int:
    """Return the side of the blur and of the opening and closing, px, odd."""
    scaled = _KERNEL * height / _KERNEL_HEIGHT
    return min(_KERNEL, 1 + 2 * max(0, round((scaled - 1) / 2)))


def motion_masks(frames: UInt8[np.ndarray, "f h w 3"]) -> Bool[np.ndarray, "f h w"]:
    """Return what moves in each picture; nothing in the first."""
    size = kernel_size(frames.shape[1])
    grey = np.stack([_blur(np.rint(frame @ _GREY), size) for frame in frames])
    mean, masks = grey[0], [np.zeros(grey.shape[1:], bool)]
    for picture in grey[1:]:
        mean = (1 - _ALPHA) * mean + _ALPHA * picture
        mask = np.abs(picture - np.rint(mean)) > _THRESHOLD
        masks.append(_close(_open(mask, size), size))
    return np.stack(masks)


def iq_scores(film: UInt8[np.ndarray, "f h w 3"], real: UInt8[np.ndarray, "f h w 3"]) -> Float[np.ndarray, " 4"]:
    """Return `IQ_METRICS` of a film against the real one: three in [0, 1] (1 is the same), and the error of pixels in [0, 1]."""
    a, b = motion_masks(film), motion_masks(real)
    error = np.square((film.astype(np.float64) - real) / 255).mean()
    frames = [_overlap(x, y) for x, y in zip(a, b, strict=True)]
    return np.array([_overlap(a.max(0), b.max(0)), _overlap(a.mean(0), b.mean(0)), np.mean(frames), error])


def combined(scores: Float[Tensor, "*n 4"], variance: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Return the score of 0 to 100, from mean `IQ_METRICS` of the model and of a second real take against the first.

    NaN where the second take has nothing in common with the first: no share can be given of nothing.
    """
    known = (variance[..., :3] > 0).all(dim=-1)
    share = torch.where(known, (scores[..., :3] / variance[..., :3]).mean(-1), torch.nan)
    return 100 * (share - (scores[..., 3] - variance[..., 3])).clamp(0.0, 1.0)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    either = np.maximum(a, b).sum()
    return float(np.minimum(a, b).sum() / either) if either else 1.0


def _blur(picture: np.ndarray, size: int) -> np.ndarray:
    weights = {1: [1.0], 3: [0.25, 0.5, 0.25], 5: [0.0625, 0.25, 0.375, 0.25, 0.0625]}[size]
    for axis in (0, 1):
        picture = ndimage.correlate1d(picture, weights, axis=axis, mode="mirror")
    return np.rint(picture)


def _open(mask: np.ndarray, size: int) -> np.ndarray:
    # beyond the border nothing is known: it neither erases nor adds, as in OpenCV
    return _grow(ndimage.minimum_filter(mask, size, mode="constant", cval=1), size)


def _grow(mask: np.ndarray, size: int) -> np.ndarray:
    return ndimage.maximum_filter(mask, size, mode="constant", cval=0)


def _close(mask: np.ndarray, size: int) -> np.ndarray:
    return ndimage.minimum_filter(_grow(mask, size), size, mode="constant", cval=1)
