"""The clips of an episode, joined again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from wam_video.data.manifest import Manifest, SampleEntry, ShardEntry
from wam_video.data.reader import read_sample, sample_arrays, sample_info
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.writer import SPLITS
from wam_video.errors import DataError


@dataclass(frozen=True, kw_only=True)
class JoinedEpisode:
    """One recording, its clips joined."""

    episode_id: str
    split: str
    clips: tuple[dict[str, bytes], ...]
    """Members of each clip."""
    frames: tuple[int, ...]
    """Of each clip, that are kept."""
    actions: Float[np.ndarray, "ta da"] | None
    state: Float[np.ndarray, "ta1 ds"] | None
    reward: Float[np.ndarray, " ta"] | None
    info: dict[str, Any]
    """The json of the first clip."""
    notes: tuple[str, ...] = ()

    @property
    def num_frames(self) -> int:
        """Frames that are kept."""
        return sum(self.frames)

    @property
    def prompts(self) -> list[str]:
        """The instruction's paraphrases, one empty text where there is none."""
        return [str(text) for text in self.info.get("prompts") or ()] or [""]


def by_episode(manifest: Manifest, spec: EmbodimentSpec, split: str) -> dict[str, list[tuple[ShardEntry, SampleEntry]]]:
    """Return the samples of each episode of a body, the train split first.

    Args:
        manifest: Of the shards.
        spec: The body.
        split: `train`, `val` or `all`.

    Raises:
        DataError: There are none.
    """
    groups: dict[str, list[tuple[ShardEntry, SampleEntry]]] = {}
    for name in SPLITS if split == "all" else (split,):
        for shard, sample in manifest.split(name):
            if sample.embodiment == spec.name:
                groups.setdefault(sample.episode_id, []).append((shard, sample))
    if not groups:
        raise DataError(f"the shards hold no episode of {spec.name!r} in split {split!r}")
    return groups


def join_clips(
    folder: Path, episode_id: str, samples: Sequence[tuple[ShardEntry, SampleEntry]], spec: EmbodimentSpec
) -> JoinedEpisode:
    """Read the clips of an episode and join their arrays.

    Raises:
        DataError: They overlap or leave a gap, lack a camera, actions or state, or are damaged.
    """
    parts, start = [], 0
    for shard, sample in samples:
        where = f"shard {shard.name!r}, sample {sample.key!r}"
        members = read_sample(folder, shard, sample)
        info = sample_info(members, where)
        if round(info["clip_start_s"] * spec.fps) != start:
            raise DataError(
                f"its clips overlap or leave a gap at frame {start}; convert it without clip_overlap_frames"
            )
        if missing := [view for view in spec.views if f"{view}.mp4" not in members]:
            raise DataError(f"has no camera {missing[0]!r}, which a LeRobot dataset needs in every episode")
        arrays = sample_arrays(members, info, where)
        for name, dim in (("actions", spec.action_dim), ("state", spec.state_dim)):
            if dim and arrays[name] is None:
                raise DataError(f"has no {name}, which a LeRobot dataset needs in every episode of {spec.name!r}")
        parts.append((members, info, arrays))
        start += sample.num_frames
    columns = {name: _joined([arrays[name] for _, _, arrays in parts], name) for name in ("actions", "state", "reward")}
    actions = columns["actions"]
    notes = []
    total = start
    if actions is not None:
        total = min(start, len(actions) + 1)
        notes += [] if total == start else ["frames_without_action_left_out"]
        notes += [] if len(actions) < start else ["last_action_without_frame"]
    frames, left = [], total
    for _, info, _ in parts:
        frames.append(min(left, int(info["num_frames"])))
        left -= frames[-1]
    return JoinedEpisode(
        episode_id=episode_id,
        split=samples[0][0].split,
        clips=tuple(members for (members, _, _), count in zip(parts, frames, strict=True) if count),
        frames=tuple(count for count in frames if count),
        **columns,
        info=dict(parts[0][1]),
        notes=tuple(notes),
    )


def _joined(parts: list[np.ndarray | None], name: str) -> np.ndarray | None:
    """Join a column of clips that follow each other; a state's last row is the next clip's first."""
    known = [part for part in parts if part is not None]
    if len(known) != len(parts):
        return None
    if name == "state":
        known = [*(part[:-1] for part in known[:-1]), known[-1]]
    return np.concatenate(known)
