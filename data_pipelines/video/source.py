"""Yields plain video files as episodes without actions: one file an episode, or a folder of synchronised cameras as one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_pipelines.options import build_options, safe_name
from data_pipelines.probe import packet_times, probe_video
from data_pipelines.video.captions import find_captions, read_captions, sidecar_caption
from wam_video.data.schema import EmbodimentSpec, Episode
from wam_video.data.sources import SkippedEpisode
from wam_video.data.video import FileView
from wam_video.errors import ConfigError, DataError, one_of

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
_MAX_CAMERAS = 8
_MULTIVIEW = ("auto", "yes", "no")
_SINGLE_VIEW = "camera"


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Options of the source."""

    multiview: str = "auto"
    """`yes`: the videos of a folder are cameras of one episode; `no`: each is an episode; `auto` looks at them."""
    views: tuple[str, ...] = ()
    """Cameras to keep, in this order; empty keeps all."""
    captions: str = ""
    """JSON lines file with a video and its instruction a line; empty looks for one in the folder."""
    prompt: str = ""
    """Instruction of every episode that has none of its own."""
    embodiment: str = ""
    """Name of the body that is seen; empty is `video`."""


@dataclass(frozen=True, kw_only=True)
class _Recording:
    episode_id: str
    files: dict[str, Path]
    """By view."""
    prompts: tuple[str, ...]
    extra: dict[str, Any]


class VideoSource:
    """Plain video without actions. See `VideoConfig` for the options and README.md for the layouts."""

    name: ClassVar[str] = "video"
    last_resort: ClassVar[bool] = True
    """A path that another source recognises too is that one's."""
    looks_like: ClassVar[str] = f"a video file, a folder of them ({' '.join(SUFFIXES)}), or a folder of such folders"

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.root = Path(path)
        self.config = build_options(VideoConfig, self.name, options)
        if self.config.multiview not in _MULTIVIEW:
            raise ConfigError(one_of("multiview", self.config.multiview, _MULTIVIEW))
        if not self.root.exists():
            raise DataError(f"{self.root}: does not exist; give {self.looks_like}")
        folder = self.root if self.root.is_dir() else self.root.parent
        captions = find_captions(folder, self.config.captions) if self.root.is_dir() or self.config.captions else None
        self._captions = read_captions(captions) if captions else {}
        self._notes: list[str] = []
        self._recordings = self._find()

    @classmethod
    def matches(cls, path: str | Path) -> bool:
        """Return whether `path` is a video, or a folder with videos in it or in its folders, and no other dataset."""
        path = Path(path)
        if path.is_file():
            return path.suffix.lower() in SUFFIXES
        if not path.is_dir() or (path / "meta" / "info.json").is_file():
            return False
        return bool(_videos(path)) or any(_videos(folder) for folder in _folders(path))

    @property
    def len_hint(self) -> int:
        """How many recordings there are."""
        return len(self._recordings)

    @property
    def licence(self) -> str:
        """Nothing: plain videos state no terms."""
        return ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Oddities of the folder as a whole."""
        return tuple(self._notes)

    def episodes(self) -> Iterator[Episode | SkippedEpisode]:
        """Yield every recording, or why it can't be used."""
        for recording in self._recordings:
            try:
                yield self._episode(recording)
            except DataError as error:
                yield SkippedEpisode(episode_id=recording.episode_id, reason=str(error))

    def _find(self) -> list[_Recording]:
        if self.root.is_file():
            return [self._recording(safe_name(self.root.stem), {_SINGLE_VIEW: self.root})]
        videos, folders = _videos(self.root), [folder for folder in _folders(self.root) if _videos(folder)]
        if videos and folders:
            self._notes.append("videos_in_folders_left_out")
        if videos and self._is_multiview(videos):
            return [self._recording(safe_name(self.root.resolve().name), self._cameras(videos))]
        if videos:
            found = [self._recording(safe_name(video.stem), {_SINGLE_VIEW: video}) for video in videos]
            self._check_captions(videos)
            return _unique(found)
        found = []
        for folder in folders:
            videos = _videos(folder)
            if len(videos) > 1 and self.config.multiview != "no":
                found.append(self._recording(safe_name(folder.name), self._cameras(videos)))
            else:
                found += [
                    self._recording(safe_name(f"{folder.name}-{video.stem}"), {_SINGLE_VIEW: video}) for video in videos
                ]
        return _unique(found)

    def _is_multiview(self, videos: list[Path]) -> bool:
        """Decide whether videos are cameras of one moment: a few, of the same rate and length, and none captioned."""
        if self.config.multiview != "auto":
            return self.config.multiview == "yes"
        if not 2 <= len(videos) <= _MAX_CAMERAS or self._captions:
            return False
        try:
            infos = [probe_video(video) for video in videos]
        except DataError:
            return False
        lengths, rates = [info.num_frames for info in infos], {round(info.fps, 3) for info in infos}
        together = len(rates) == 1 and max(lengths) - min(lengths) <= 1
        if together:
            self._notes.append("taken_as_cameras_of_one_episode")
        return together

    def _cameras(self, videos: list[Path]) -> dict[str, Path]:
        cameras = {safe_name(video.stem): video for video in videos}
        if len(cameras) < len(videos):
            raise DataError(
                f"{videos[0].parent}: two cameras have the same name once dots and spaces are gone; rename one"
            )
        for name in self.config.views:
            if name not in cameras:
                raise ConfigError(one_of("view", name, cameras))
        return {name: cameras[name] for name in self.config.views} if self.config.views else cameras

    def _recording(self, episode_id: str, files: dict[str, Path]) -> _Recording:
        prompts: tuple[str, ...] = ()
        extra: dict[str, Any] = {}
        for video in files.values():
            near = str(video.relative_to(self.root)) if video.is_relative_to(self.root) else video.name
            caption = self._captions.get(near) or self._captions.get(video.name)
            if caption:
                prompts, extra = prompts + caption[0], {**extra, **caption[1]}
            else:
                prompts += sidecar_caption(video)
        if not prompts and self.config.prompt:
            prompts = (self.config.prompt,)
        return _Recording(episode_id=episode_id, files=files, prompts=tuple(dict.fromkeys(prompts)), extra=extra)

    def _check_captions(self, videos: list[Path]) -> None:
        missing = set(self._captions) - {video.name for video in videos}
        if missing:
            self._notes.append(f"captions_without_video:{len(missing)}")

    def _episode(self, recording: _Recording) -> Episode:
        notes = [] if recording.prompts else ["no_prompt"]
        infos = {view: probe_video(path) for view, path in recording.files.items()}
        count = min(info.num_frames for info in infos.values())
        fps = next(iter(infos.values())).fps
        for view, info in infos.items():
            if abs(info.fps - fps) > 0.01 * fps:
                raise DataError(
                    f"camera {view!r} has {info.fps:g} frames per second, the first {fps:g}; they must be synchronised"
                )
            if info.num_frames > count:
                notes.append(f"longer_than_other_views:{view}")
        if count < 2:
            raise DataError(f"has {count} frame; at least 2 are needed")
        first = next(iter(recording.files.values()))
        times = packet_times(first)[:count]
        if len(times) < count:
            raise DataError(
                f"{first}: its header promises {count} frames but holds {len(times)}; it is truncated: copy it again"
            )
        if np.abs(times - np.arange(count) / fps).max() > 0.5 / fps:
            notes.append("variable_frame_rate")
        else:
            times = np.arange(count, dtype=np.float64) / fps
        views = {
            view: FileView(path=path, start_frame=0, num_frames=count, times=times)
            for view, path in recording.files.items()
        }
        spec = EmbodimentSpec(
            name=self.config.embodiment or "video",
            action_dim=0,
            state_dim=0,
            views=tuple(views),
            fps=fps,
            action_rate=0.0,
            description="video without actions",
        )
        return Episode(
            episode_id=recording.episode_id,
            embodiment=spec,
            views=views,
            actions=None,
            state=None,
            prompts=recording.prompts,
            notes=tuple(notes),
            extra=recording.extra,
        )


def _videos(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != ".")


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != ".")


def _unique(recordings: list[_Recording]) -> list[_Recording]:
    """Refuse two files that would be one episode, e.g. `a.b.mp4` beside `a_b.mp4`."""
    seen: dict[str, _Recording] = {}
    for recording in recordings:
        if recording.episode_id in seen:
            other = next(iter(seen[recording.episode_id].files.values()))
            raise DataError(
                f"{other} and {next(iter(recording.files.values()))} would both be episode {recording.episode_id!r}; rename one"
            )
        seen[recording.episode_id] = recording
    return recordings
