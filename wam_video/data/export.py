"""Shards back to a LeRobot v3.0 dataset, so that a dataset can leave too.

The video is copied, not encoded again; actions and states are the same to the bit. What the format can't say is reported.
"""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from wam_video.data import lerobot_tables as tables
from wam_video.data.episodes import JoinedEpisode, by_episode, join_clips
from wam_video.data.lerobot_tables import ImageStats, RowsWriter, vector_stats
from wam_video.data.manifest import Manifest, SampleEntry, ShardEntry, load_manifest
from wam_video.data.reader import read_sample, sample_info
from wam_video.data.remux import JoinedVideo
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.video import open_video
from wam_video.errors import ConfigError, DataError, one_of
from wam_video.log import get_logger, progress

FORMATS = ("lerobot",)
_SPLITS = ("all", "train", "val")
_STATS_FRAMES = 4
"""Frames of each clip that the images' statistics are taken from."""

_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What leaves."""

    embodiment: str = ""
    """Which body, where the shards hold several: a LeRobot dataset has one."""
    split: str = "all"
    """`train`, `val`, or both, one after the other and named under `splits`."""
    video_file_mb: float = tables.VIDEO_FILE_MB
    data_file_mb: float = tables.DATA_FILE_MB

    def __post_init__(self) -> None:
        if self.split not in _SPLITS:
            raise ConfigError(one_of("split", self.split, _SPLITS))


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, and what the format could not hold."""

    episodes: int
    frames: int
    skipped: tuple[tuple[str, str], ...]
    """Episode and reason."""
    notes: dict[str, int]
    """How many episodes lost what."""


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """Which columns every episode can fill."""

    reward: bool
    success: bool
    lost: tuple[str, ...]
    """Notes on what only some episodes have."""
    prompts: int
    """Most paraphrases of an instruction."""


@dataclass
class _Progress:
    """What grows from episode to episode."""

    tasks: dict[str, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    columns: dict[str, list[np.ndarray]] = field(default_factory=dict)
    images: dict[str, ImageStats] = field(default_factory=dict)
    frames: int = 0


def export_lerobot(folder: Path | str, output: Path | str, config: ExportConfig) -> ExportReport:
    """Write shards as a LeRobot v3.0 dataset; the folder appears whole or not at all.

    T frames become T rows; as each row needs an action, the last one is repeated. A LeRobot dataset has one rate, one body,
    and every camera in every episode: what does not fit is skipped by name.

    Args:
        folder: Shards, as `convert` wrote them.
        output: Folder to make.
        config: What leaves.

    Raises:
        ConfigError: The shards hold several bodies and none, or an unknown one, is chosen.
        DataError: Actions and video have different rates, the shards are damaged, or the output exists.
    """
    folder, output = Path(folder), Path(output)
    manifest = load_manifest(folder)
    spec = _choose_body(manifest, config.embodiment)
    if spec.action_dim and abs(spec.action_rate - spec.fps) > 1e-6 * spec.fps:
        raise DataError(
            f"{folder}: video has {spec.fps:g} frames and {spec.action_rate:g} actions per second; LeRobot has one rate: "
            f"convert the recordings with --fps {spec.action_rate:g}"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"output {str(output)!r} exists already; remove it or choose another folder")
    partial = output.with_name(output.name + ".partial")
    if partial.exists():
        raise DataError(f"{str(partial)!r} is left of an earlier export; remove it")
    try:
        partial.mkdir(parents=True)
        report = _write(folder, manifest, spec, partial, config)
        if output.is_dir():
            output.rmdir()
        partial.rename(output)
    except OSError as error:
        raise DataError(f"can't write to {str(partial)!r}: {error.strerror or error}; nothing was kept") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def _choose_body(manifest: Manifest, name: str) -> EmbodimentSpec:
    bodies = manifest.embodiments
    if name and name not in bodies:
        raise ConfigError(one_of("--embodiment", name, bodies))
    if not name and len(bodies) > 1:
        raise ConfigError(
            f"the shards hold {', '.join(bodies)}; a LeRobot dataset has one body: give --embodiment NAME"
        )
    return bodies[name] if name else next(iter(bodies.values()))


def _write(folder: Path, manifest: Manifest, spec: EmbodimentSpec, root: Path, config: ExportConfig) -> ExportReport:
    skipped: list[tuple[str, str]] = []
    notes: Counter[str] = Counter()
    groups = by_episode(manifest, spec, config.split)
    facts = _common_facts(folder, groups)
    state = _Progress()
    kept: list[JoinedEpisode] = []
    with _Files(root, spec, config) as files:
        for episode_id, samples in progress(groups.items(), total=len(groups), what="episodes"):
            try:
                episode = join_clips(folder, episode_id, samples, spec)
            except DataError as error:
                _log.warning("skipped %s: %s", episode_id, error)
                skipped.append((episode_id, str(error)))
                continue
            files.add(episode, facts, state)
            kept.append(replace(episode, clips=()))
            notes.update(episode.notes)
    if not kept:
        raise DataError(f"{folder}: no episode can leave ({len(skipped)} skipped, the first: {skipped[0][1]})")
    notes.update(dict.fromkeys(facts.lost, len(kept)))
    _write_meta(root, manifest, spec, state, kept)
    tables.write_json(
        root / "meta" / "wam_video.json",
        {
            "embodiment": asdict(spec),
            "dataset": manifest.dataset,
            "licence": kept[0].info.get("licence"),
            "source": kept[0].info.get("source"),
            "episodes": [
                {"episode_id": episode.episode_id, "split": episode.split, "extra": episode.info.get("extra") or {}}
                for episode in kept
            ],
            "skipped": [{"episode_id": name, "reason": reason} for name, reason in skipped],
            "notes": dict(sorted(notes.items())),
        },
    )
    return ExportReport(
        episodes=len(kept), frames=state.frames, skipped=tuple(skipped), notes=dict(sorted(notes.items()))
    )


class _Files:
    """The files that grow: rows, and one video a camera; a context manager, so that all of them are closed."""

    def __init__(self, root: Path, spec: EmbodimentSpec, config: ExportConfig) -> None:
        self._root, self._spec = root, spec
        self._limit = int(config.video_file_mb * (1 << 20))
        self._rows = RowsWriter(root, config.data_file_mb)
        self._videos: dict[str, JoinedVideo] = {}
        self._numbers: dict[str, int] = dict.fromkeys(spec.views, -1)
        self._sizes: dict[str, int] = dict.fromkeys(spec.views, 0)

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()
        for video in self._videos.values():
            video.close()

    def add(self, episode: JoinedEpisode, facts: _Facts, state: _Progress) -> None:
        """Append an episode to all files and to the tables."""
        index, count = len(state.rows), episode.num_frames
        columns = _columns(episode, index, state, self._spec, facts)
        place = self._rows.add(columns)
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": [episode.prompts[0]],
            "length": count,
            "data/chunk_index": place[0],
            "data/file_index": place[1],
            "dataset_from_index": state.frames,
            "dataset_to_index": state.frames + count,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for view in self._spec.views:
            row |= self._add_video(view, episode)
        for name, values in columns.items():
            state.columns.setdefault(name, []).append(values)
            row |= {f"stats/{name}/{key}": value for key, value in vector_stats(values).items()}
        for view in self._spec.views:
            images = _image_stats(episode, view)
            state.images.setdefault(view, ImageStats()).merge(images)
            row |= {f"stats/{_key(view)}/{key}": value for key, value in images.stats().items()}
        state.rows.append(row)
        state.frames += count

    def _add_video(self, view: str, episode: JoinedEpisode) -> dict[str, Any]:
        """Append a camera's clips and return where they are."""
        name = f"episode {episode.episode_id!r}, {view}.mp4"
        clips = [members[f"{view}.mp4"] for members in episode.clips]
        video = self._videos.get(view)
        if video is None or self._sizes[view] > self._limit or not all(video.fits(clip, name) for clip in clips):
            if video is not None:
                video.close()
            self._numbers[view] += 1
            self._sizes[view] = 0
            video = self._videos[view] = JoinedVideo(self._path(view), self._spec.fps)
        start = video.num_frames
        for clip, frames in zip(clips, episode.frames, strict=True):
            copied = video.append(clip, name, frames)
            if copied != frames:
                raise DataError(f"{name} has {copied} of {frames} frames; run `wam-video data verify` on the shards")
        self._sizes[view] += sum(len(clip) for clip in clips)
        key, fps, number = _key(view), self._spec.fps, self._numbers[view]
        return {
            f"videos/{key}/chunk_index": number // tables.CHUNK_FILES,
            f"videos/{key}/file_index": number % tables.CHUNK_FILES,
            f"videos/{key}/from_timestamp": start / fps,
            f"videos/{key}/to_timestamp": video.num_frames / fps,
        }

    def _path(self, view: str) -> Path:
        chunk, number = divmod(self._numbers[view], tables.CHUNK_FILES)
        name = tables.VIDEO_PATH.format(video_key=_key(view), chunk_index=chunk, file_index=number)
        (self._root / name).parent.mkdir(parents=True, exist_ok=True)
        return self._root / name


def _common_facts(folder: Path, groups: Mapping[str, Sequence[tuple[ShardEntry, SampleEntry]]]) -> _Facts:
    """Look at every episode's first clip for what all of them have."""
    has: dict[str, list[bool]] = {"reward": [], "success": []}
    prompts = 1
    for samples in groups.values():
        try:
            members = read_sample(folder, *samples[0])
            info = sample_info(members, samples[0][1].key)
        except DataError:  # it will be skipped by name
            continue
        has["reward"].append("reward.npy" in members)
        has["success"].append(info.get("success") is not None)
        prompts = max(prompts, len(info.get("prompts") or ()))
    lost = tuple(
        f"{name}_not_in_every_episode_left_out" for name, found in has.items() if any(found) and not all(found)
    )
    return _Facts(reward=all(has["reward"]), success=all(has["success"]), lost=lost, prompts=prompts)


def _columns(
    episode: JoinedEpisode, index: int, state: _Progress, spec: EmbodimentSpec, facts: _Facts
) -> dict[str, np.ndarray]:
    """Return the rows of an episode, by column."""
    count = episode.num_frames
    columns: dict[str, np.ndarray] = {}
    if episode.state is not None and spec.state_dim:
        columns["observation.state"] = episode.state[:count]
    if episode.actions is not None:
        columns["action"] = np.concatenate([episode.actions, episode.actions[-1:]])[:count]
    if facts.reward and episode.reward is not None:
        columns["next.reward"] = np.concatenate([episode.reward, np.zeros(1, np.float32)])[:count]
    if facts.success:
        columns["next.success"] = np.arange(count) == (count - 1 if episode.info["success"] else -1)
    steps = np.arange(count)
    columns["timestamp"] = (steps / spec.fps).astype(np.float32)
    columns |= {"frame_index": steps, "episode_index": np.full(count, index), "index": state.frames + steps}
    prompts = episode.prompts
    numbers = [state.tasks.setdefault(text, len(state.tasks)) for text in prompts]
    columns["task_index"] = np.full(count, numbers[0])
    if facts.prompts > 1:
        for i in range(facts.prompts):  # LeRobot has one task a row; the reader takes these for paraphrases
            columns[f"annotation.language.instruction_{i}"] = np.full(count, numbers[i if i < len(numbers) else 0])
    return columns


def _image_stats(episode: JoinedEpisode, view: str) -> ImageStats:
    stats = ImageStats()
    for members, count in zip(episode.clips, episode.frames, strict=True):
        reader = open_video(members[f"{view}.mp4"], name=f"episode {episode.episode_id!r}, {view}.mp4")
        stats.add(reader.get(np.unique(np.linspace(0, count - 1, _STATS_FRAMES).astype(int)).tolist()))
        reader.close()
    return stats


def _key(view: str) -> str:
    return f"observation.images.{view}"


def _write_meta(
    root: Path, manifest: Manifest, spec: EmbodimentSpec, state: _Progress, kept: Sequence[JoinedEpisode]
) -> None:
    """Write `meta/`: info.json, stats.json, the episodes and the tasks."""
    columns = {name: np.concatenate(parts) for name, parts in state.columns.items()}
    train = sum(episode.split == "train" for episode in kept)
    splits = {"train": f"0:{train}", "val": f"{train}:{len(kept)}"}
    info = {
        "codebase_version": "v3.0",
        "robot_type": spec.name,
        "total_episodes": len(kept),
        "total_frames": state.frames,
        "total_tasks": len(state.tasks),
        "chunks_size": tables.CHUNK_FILES,
        "data_files_size_in_mb": tables.DATA_FILE_MB,
        "video_files_size_in_mb": tables.VIDEO_FILE_MB,
        "fps": _number(spec.fps),
        "splits": {name: span for name, span in splits.items() if len(set(span.split(":"))) > 1},
        "data_path": tables.DATA_PATH,
        "video_path": tables.VIDEO_PATH,
        "license": kept[0].info.get("licence") or "unknown",
        "features": {
            **{_key(view): _camera_feature(manifest, spec) for view in spec.views},
            **{name: _feature(name, values, spec) for name, values in columns.items()},
        },
    }
    tables.write_json(root / "meta" / "info.json", info)
    stats = {_key(view): images.stats() for view, images in state.images.items()}
    tables.write_json(
        root / "meta" / "stats.json", stats | {name: vector_stats(values) for name, values in columns.items()}
    )
    tables.write_episodes(root, state.rows)
    tables.write_tasks(root, list(state.tasks))


def _camera_feature(manifest: Manifest, spec: EmbodimentSpec) -> dict[str, Any]:
    height, width = int(manifest.options["height"]), int(manifest.options["width"])
    details = {"height": height, "width": width, "codec": "h264", "pix_fmt": "yuv420p", "is_depth_map": False}
    details |= {"fps": _number(spec.fps), "channels": 3}
    return {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
        "info": {**{f"video.{name}": value for name, value in details.items()}, "has_audio": False},
    }


def _feature(name: str, values: np.ndarray, spec: EmbodimentSpec) -> dict[str, Any]:
    names = {"action": spec.action_names, "observation.state": spec.state_names}.get(name)
    width = 1 if values.ndim == 1 else values.shape[1]
    return {"dtype": str(values.dtype), "shape": [width], "names": list(names) if names else None}


def _number(fps: float) -> int | float:
    return int(fps) if float(fps).is_integer() else fps
