"""Find things in pictures by their colours.

Every pixel is taken for the nearest mixture of two of the scene's colours, which is what an anti-aliased edge is; the share of
a thing's colour in it is how much of the pixel the thing covers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import cast

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8
from scipy import ndimage

from wam_video.data.simulation import Scene

MIN_COVER = 0.3
"""Pixels covered by less are not counted: coding and blur tint many of them a little."""
_PIECE = 0.25
"""A piece of a thing counts if it has this share of what the thing should measure."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """One thing through a film."""

    cover: Float32[np.ndarray, "f h w"]
    """Share of each pixel that it covers; stray specks are left out."""
    area: Float[np.ndarray, " f"]
    """px."""
    centre: Float[np.ndarray, "f 2"]
    """x and y, px; where it was last seen, if it is not to be seen; NaN before it was ever seen."""
    colour: Float[np.ndarray, "f 3"]
    """Mean of the pixels it is in, 0 to 255; NaN if it is not to be seen."""
    pieces: Int[np.ndarray, " f"]
    """Into how many it has come apart."""


def mixtures(
    frames: UInt8[np.ndarray, "f h w 3"], palette: Float32[np.ndarray, "k 3"]
) -> Float32[np.ndarray, "f h w k"]:
    """Return the share of each colour in each pixel; at most two of a pixel are above 0, and all add up to 1."""
    pixels = frames.astype(np.float32)
    nearest = np.full(frames.shape[:3], np.inf, np.float32)
    share = np.zeros(frames.shape[:3], np.float32)
    pair = np.zeros((*frames.shape[:3], 2), np.int64)
    for i, j in combinations(range(len(palette)), 2):
        way = palette[j] - palette[i]
        at = np.clip((pixels - palette[i]) @ way / (way @ way), 0.0, 1.0)
        distance = np.square(pixels - palette[i] - at[..., None] * way).sum(-1)
        better = distance < nearest
        nearest, share = np.where(better, distance, nearest), np.where(better, at, share)
        pair[better] = (i, j)
    shares = np.zeros((*frames.shape[:3], len(palette)), np.float32)
    np.put_along_axis(shares, pair[..., :1], 1 - share[..., None], -1)
    np.put_along_axis(shares, pair[..., 1:], share[..., None], -1)
    return shares


def find(
    frames: UInt8[np.ndarray, "f h w 3"], scene: Scene, sizes: Mapping[str, float] | None = None
) -> dict[str, Track]:
    """Find the body and the things of a scene in every picture.

    Args:
        frames: Of the scene's view.
        scene: What there is to be found.
        sizes: px that each thing should measure; None: what it measures in the first picture.
    """
    movable = [scene.body, *scene.things]
    palette = np.array([*scene.scenery, *(thing.colour for thing in movable)], np.float32)
    shares = mixtures(frames, palette)[..., len(scene.scenery) :]
    return {
        thing.name: _track(frames, shares[..., i], None if sizes is None else sizes[thing.name])
        for i, thing in enumerate(movable)
    }


def _track(frames: np.ndarray, shares: np.ndarray, size: float | None) -> Track:
    cover = np.where(shares >= MIN_COVER, shares, 0.0).astype(np.float32)
    size = float(cover[0].sum()) if size is None else size
    pieces = np.array([_keep_pieces(picture, _PIECE * size) for picture in cover])
    area = cover.sum((1, 2), dtype=np.float64)
    h, w = cover.shape[1:]
    seen = area > 0
    weight = np.where(seen, area, np.nan)
    x = (cover * (np.arange(w) + 0.5)).sum((1, 2), dtype=np.float64) / weight
    y = (cover * (np.arange(h) + 0.5)[:, None]).sum((1, 2), dtype=np.float64) / weight
    colour = np.einsum("fhw,fhwc->fc", cover, frames, dtype=np.float64) / weight[:, None]
    last = np.maximum.accumulate(np.where(seen, np.arange(len(area)), 0))
    return Track(cover=cover, area=area, centre=np.stack([x, y], -1)[last], colour=colour, pieces=pieces)


def _keep_pieces(picture: np.ndarray, least: float) -> int:
    """Erase specks in place and return how many pieces are left."""
    labels, count = cast(tuple[np.ndarray, int], ndimage.label(picture, np.ones((3, 3))))
    kept = 0
    if count:
        masses = ndimage.sum_labels(picture, labels, np.arange(1, count + 1))
        large = np.concatenate([[False], np.asarray(masses) >= max(least, 1e-6)])
        picture[~large[labels]] = 0.0
        kept = int(large.sum())
    return kept
