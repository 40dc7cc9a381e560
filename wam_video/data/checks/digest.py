"""Clips to the few numbers that all checks work on, so that a dataset is decoded once and never held."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8

from wam_video.data.reader import Clip
from wam_video.data.schema import EmbodimentSpec

CELLS = 32
"""Side of the grid on which motion is measured: coarse enough to be deaf to coding noise."""
PICTURE = 8
"""Side of the pictures by which episodes are compared."""
_MOMENTS = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class ViewDigest:
    """One camera's frames of one clip."""

    motion: Float[np.ndarray, " g"]
    """Mean change of the grey cells from each frame to the next (g = f - 1), of 255."""
    peak: Float[np.ndarray, " g"]
    """Largest change of a cell."""
    brightness: Float[np.ndarray, " f"]
    spread: Float[np.ndarray, " f"]
    """Standard deviation of the cells within each frame: 0 for one colour."""
    picture: Float[np.ndarray, "p p 3"]
    """Mean frame."""
    moving: Float[np.ndarray, "p p"]
    """Where the picture changes: mean change of each cell."""
    moments: Float[np.ndarray, "m p p"]
    """Grey frames at evenly spread times."""
    content: str
    """Hash of the cells of all frames: equal only for the same video."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipDigest:
    """One clip."""

    views: Mapping[str, ViewDigest]
    actions: Float[np.ndarray, "ta da"] | None
    state: Float[np.ndarray, "ta1 ds"] | None
    num_frames: int
    start_s: float
    prompts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeDigest:
    """All clips of one recording, by time."""

    episode_id: str
    clips: tuple[ClipDigest, ...]

    def rows(self, quantity: str) -> Float[np.ndarray, "n d"] | None:
        """Return `actions` or `state` of all clips one after the other; None without."""
        parts = [array for clip in self.clips if (array := getattr(clip, quantity)) is not None and len(array)]
        return np.concatenate(parts) if parts else None

    def views(self, view: str) -> list[ViewDigest]:
        """Return the digests of one view."""
        return [clip.views[view] for clip in self.clips if view in clip.views]


@dataclass(kw_only=True, eq=False)
class Body:
    """All episodes of one embodiment."""

    spec: EmbodimentSpec
    episodes: list[EpisodeDigest] = field(default_factory=list)

    def rows(self, quantity: str) -> Float[np.ndarray, "n d"] | None:
        """Return `actions` or `state` of all episodes one after the other; None without."""
        parts = [rows for episode in self.episodes if (rows := episode.rows(quantity)) is not None]
        return np.concatenate(parts) if parts else None

    def names(self, quantity: str) -> tuple[str, ...]:
        """Return the channels' names, made up where the embodiment has none."""
        given, dim = (
            (self.spec.action_names, self.spec.action_dim)
            if quantity == "actions"
            else (self.spec.state_names, self.spec.state_dim)
        )
        return given or tuple(f"{quantity}_{i}" for i in range(dim))

    @cached_property
    def is_delta(self) -> bool:
        """Return whether actions are motions: it is said, or they change about as much from one to the next as at all."""
        if self.spec.action_kinds and all(self.spec.action_kinds):
            return 2 * self.spec.action_kinds.count("delta") > self.spec.action_dim
        parts = [rows for episode in self.episodes if (rows := episode.rows("actions")) is not None and len(rows) > 2]
        if not parts:
            return False
        spread = np.concatenate(parts).std(axis=0)
        change = np.concatenate([np.diff(rows, axis=0) for rows in parts]).std(axis=0)
        live = spread > 1e-9
        return bool(live.any() and np.median(change[live] / spread[live]) > 0.3)


class Digests:
    """Takes decoded clips one by one and gives them back by body and episode."""

    def __init__(self) -> None:
        """Start empty."""
        self._clips: dict[tuple[str, str], list[ClipDigest]] = {}

    def add(self, embodiment: str, episode_id: str, clip: Clip) -> None:
        """Digest one clip; its frames are not kept."""
        self._clips.setdefault((embodiment, episode_id), []).append(digest_clip(clip))

    def bodies(self, specs: Mapping[str, EmbodimentSpec]) -> list[Body]:
        """Return the bodies that have clips, in the order of `specs`, episodes in the order in which they came."""
        bodies = {name: Body(spec=spec) for name, spec in specs.items()}
        for (name, episode_id), clips in self._clips.items():
            ordered = tuple(sorted(clips, key=lambda clip: clip.start_s))
            if name in bodies:
                bodies[name].episodes.append(EpisodeDigest(episode_id=episode_id, clips=ordered))
        return [body for body in bodies.values() if body.episodes]


def digest_clip(clip: Clip) -> ClipDigest:
    """Return the digest of a decoded clip."""
    info: Mapping[str, Any] = clip.info
    return ClipDigest(
        views={view: digest_view(frames) for view, frames in clip.video.items() if len(frames)},
        actions=clip.actions,
        state=clip.state,
        num_frames=int(info.get("num_frames", 0)),
        start_s=float(info.get("clip_start_s", 0)),
        prompts=tuple(str(prompt) for prompt in info.get("prompts", ())),
    )


def digest_view(frames: UInt8[np.ndarray, "f h w c"]) -> ViewDigest:
    """Return the digest of one view's frames; small pictures keep their size in place of `CELLS`."""
    cells = np.stack([_shrink(frame, CELLS) for frame in frames])
    grey = cells.mean(axis=-1)
    change = np.abs(np.diff(grey, axis=0))
    picks = np.linspace(0, len(frames) - 1, _MOMENTS).round().astype(int)
    moving = change.mean(axis=0) if len(change) else np.zeros(grey.shape[1:])
    return ViewDigest(
        motion=change.mean(axis=(1, 2)),
        peak=change.max(axis=(1, 2)) if len(change) else np.zeros(0),
        brightness=grey.mean(axis=(1, 2)),
        spread=grey.std(axis=(1, 2)),
        picture=_shrink(cells.mean(axis=0), PICTURE),
        moving=_shrink(moving[..., None], PICTURE)[..., 0],
        moments=np.stack([_shrink(grey[i][..., None], PICTURE)[..., 0] for i in picks]),
        content=hashlib.sha256(np.rint(cells).astype(np.uint8).tobytes()).hexdigest(),
    )


def _shrink(frame: np.ndarray, side: int) -> Float[np.ndarray, "p q c"]:
    """Return the means of the frame over a grid of at most side x side cells, whatever its size."""
    rows, columns = (np.linspace(0, n, min(side, n) + 1).astype(int) for n in frame.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(frame.astype(np.float32), rows[:-1], axis=0), columns[:-1], axis=1)
    areas = rearrange(np.diff(rows), "p -> p 1 1") * rearrange(np.diff(columns), "q -> q 1")
    return sums / areas
