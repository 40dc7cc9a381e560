"""Episodes that are recordings of the same thing: a perceptual hash of how the picture changes, and the actions.

Of 16 moments of each camera, shrunk to 16 x 16 grey cells, the mean over time is taken away: what is left is the motion, and its sign in
each cell is a bit, where it is more than coding noise. Copies that were encoded again, resized or brightened a little share these
bits; another episode of the same scene shares half of them.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8

from wam_video.data.encode import EncodedClip, EncodedEpisode
from wam_video.data.lazy_video import LazyVideo
from wam_video.data.video import resize

_MOMENTS, _CELLS = 16, 16
_NOISE = 2.0
"""Change of a cell, of 255, that may be coding alone."""
_MIN_BITS = 64
"""Cells that have to move for a hash to say something: a film in which nothing moves is like none."""
_ALIKE = 0.95
"""Share of the cells that move in both whose signs have to agree."""
_OVERLAP = 0.6
"""Share of the cells that move in either which have to move in both."""
_LENGTH = 0.02
"""Share by which their lengths may differ, or twice that."""
_SAME_ACTION = 0.05
"""Mean difference of the actions, of their spread, up to which they are the same."""


@dataclass(frozen=True, eq=False)
class _Known:
    """Episodes of one body and about one length."""

    names: list[str] = field(default_factory=list)
    actions: list[np.ndarray | None] = field(default_factory=list)
    moving: list[np.ndarray] = field(default_factory=list)
    """Packed bits: where the picture moves."""
    rising: list[np.ndarray] = field(default_factory=list)
    """Packed bits: which way."""


class Duplicates:
    """Remembers the episodes of a dataset; comparing them takes time that grows with the square of their number, slowly."""

    def __init__(self) -> None:
        """Start empty."""
        self._known: dict[tuple[str, int], _Known] = {}

    def earlier(self, episode: EncodedEpisode) -> str | None:
        """Return the name of an earlier episode that this one is a near-duplicate of; if there is none, remember it.

        Raises:
            DataError: Its video can't be decoded.
        """
        frames = sum(clip.num_frames for clip in episode.clips)
        change = _change(episode.clips, frames)
        moving, rising = np.packbits(np.abs(change) > _NOISE), np.packbits(change > 0)
        if np.bitwise_count(moving).sum() < _MIN_BITS:
            return None
        actions = _actions(episode.clips)
        bucket = int(np.log(frames) / _LENGTH)
        for near in (bucket, bucket - 1, bucket + 1):
            known = self._known.get((episode.embodiment.name, near), _Known())
            for place in _alike(known, moving, rising):
                if _same(actions, known.actions[place]):
                    return known.names[place]
        mine = self._known.setdefault((episode.embodiment.name, bucket), _Known())
        mine.names.append(episode.episode_id)
        mine.actions.append(actions)
        mine.moving.append(moving)
        mine.rising.append(rising)
        return None


def _alike(known: _Known, moving: UInt8[np.ndarray, " n"], rising: UInt8[np.ndarray, " n"]) -> list[int]:
    """Return the places of the episodes whose pictures change as these do."""
    same_views = [place for place, other in enumerate(known.moving) if other.shape == moving.shape]
    if not same_views:
        return []
    others, ways = (np.stack([bits[place] for place in same_views]) for bits in (known.moving, known.rising))
    both = np.bitwise_count(others & moving).sum(axis=1)
    either = np.bitwise_count(others | moving).sum(axis=1)
    against = np.bitwise_count((ways ^ rising) & others & moving).sum(axis=1)
    found = (both >= _OVERLAP * either) & (against <= (1 - _ALIKE) * both)
    return [same_views[place] for place in np.flatnonzero(found)]


def _change(clips: Sequence[EncodedClip], frames: int) -> Float[np.ndarray, " n"]:
    """Return how the cells of every camera differ from their mean over time, at evenly spread moments."""
    ends = np.cumsum([clip.num_frames for clip in clips])
    moments = np.linspace(0, frames - 1, _MOMENTS).round().astype(int)
    views: dict[str, list[np.ndarray]] = {}
    for end, clip in zip(ends, clips, strict=True):
        first = end - clip.num_frames
        picks = moments[(moments >= first) & (moments < end)] - first
        for name, content in clip.members.items():
            if name.endswith(".mp4") and len(picks):
                taken = LazyVideo(content, f"{clip.key}.{name}").take(picks)
                cells = [resize(frame, _CELLS, _CELLS, "stretch").mean(axis=-1) for frame in taken]
                views.setdefault(name, []).extend(cells)
    changes = [np.stack(cells) - np.mean(cells, axis=0) for _, cells in sorted(views.items())]
    return np.concatenate(changes).reshape(-1) if changes else np.zeros(0)


def _actions(clips: Sequence[EncodedClip]) -> Float[np.ndarray, "n d"] | None:
    parts = [clip.members["actions.npy"] for clip in clips if "actions.npy" in clip.members]
    return np.concatenate([np.load(io.BytesIO(part), allow_pickle=False) for part in parts]) if parts else None


def _same(one: Float[np.ndarray, "n d"] | None, other: Float[np.ndarray, "m d"] | None) -> bool:
    """Return whether actions are the same as far as both go; where neither has any, pictures alone decide."""
    if one is None or other is None:
        return one is other
    rows = min(len(one), len(other))
    spread = np.maximum(one.std(axis=0), 1e-6)
    return bool((np.abs(one[:rows] - other[:rows]) / spread).mean() <= _SAME_ACTION)
