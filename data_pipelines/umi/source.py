"""Yields the episodes of a zarr replay buffer: UMI's, Diffusion Policy's, and those of their kin."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_pipelines.options import build_options, safe_name
from data_pipelines.probe import probe_video
from data_pipelines.recording import (
    Body,
    RecordedSource,
    RecordingConfig,
    Rows,
    as_rows,
    check_rows,
    choose_views,
    units,
    view_names,
    with_state_names,
)
from data_pipelines.umi.arrays import ZarrArray, ZarrView, open_store
from wam_video.data.schema import EmbodimentSpec, Episode, ViewSource
from wam_video.data.sources import SkippedEpisode
from wam_video.data.video import MAX_FRAME_PIXELS, FileView
from wam_video.errors import ConfigError, DataError, one_of

UMI_FPS = 60000 / 1001
"""Of the GoPro that a UMI gripper carries."""
PUSHT_FPS = 10.0

_ENDS = "meta/episode_ends"
_PREFIX = "episode_"
_NONE = "none"
_POSE = ("eef_pos", "eef_rot_axis_angle", "gripper_width")
_POSE_NAMES = ("x", "y", "z", "rx", "ry", "rz", "gripper_width")
_POSE_UNITS = (*("m",) * 3, *("rad",) * 3, "m")
_STATE_KEYS = (
    ("state",),
    ("agent_pos",),
    ("robot_eef_pose",),
    ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),
)


@dataclass(frozen=True, kw_only=True)
class UmiConfig(RecordingConfig):
    """Options of the source."""

    action_key: str = "action"
    """Array with the actions; `none` reads video only. Without such an array, UMI's next pose is the action."""
    state_keys: tuple[str, ...] = ()
    """Arrays that make up the state, in this order; `none` leaves it out; empty looks for the usual ones."""


class UmiSource(RecordedSource):
    """A replay buffer, as a folder or a zip. See `UmiConfig` and README.md."""

    name: ClassVar[str] = "umi"
    looks_like: ClassVar[str] = "a zarr folder or .zarr.zip with data/ and meta/episode_ends (UMI, Diffusion Policy)"

    def __init__(self, path: str | Path, **options: Any) -> None:
        found = _find(Path(path))
        if len(found) > 1:
            raise DataError(f"{path}: holds several buffers ({', '.join(p.name for p in found)}); give one of them")
        if not found:
            raise DataError(f"{path}: has no {_ENDS}; give {self.looks_like}, of zarr version 2")
        self.root = found[0]
        self.config = build_options(UmiConfig, self.name, options)
        self._store = open_store(self.root)
        self._arrays = {name: ZarrArray(self._store, f"data/{name}") for name in self._store.arrays("data")}
        ends = ZarrArray(self._store, _ENDS)
        self._ends = ends.read(0, len(ends)).astype(np.int64).reshape(-1)
        if (np.diff(self._ends, prepend=0) < 0).any():
            raise DataError(f"{self.root}: {_ENDS} does not rise; the buffer is damaged")
        self._body = Body()
        self._videos = {} if self._image_keys() else _videos(self.root)
        self._views = choose_views(self._cameras(), self.config.views)
        self._fps = self._rate()

    @classmethod
    def matches(cls, path: str | Path) -> bool:
        """Return whether `path` holds a replay buffer, or is a zip that should."""
        try:
            return bool(_find(Path(path)))
        except DataError:
            return str(path).endswith(".zarr.zip")  # truncated: to be refused by name

    @property
    def len_hint(self) -> int:
        """How many episodes there are."""
        return len(self._ends)

    @property
    def notes(self) -> tuple[str, ...]:
        """Oddities of the buffer as a whole, and the arrays that are not read."""
        used = {*self._views.values(), *self._pose_keys(), *self._state_keys(), self.config.action_key, "timestamp"}
        notes = [f"array_left_out:{safe_name(name)}" for name in self._arrays if name not in used]
        if not self.config.fps and "timestamp" not in self._arrays:
            notes.append(f"rate_not_recorded:{self._fps:.4g}_taken")
        longest = max((len(array) for array in self._arrays.values()), default=0)
        if len(self._ends) and longest > self._ends[-1]:
            notes.append(f"rows_after_last_episode:{longest - self._ends[-1]}")
        return tuple(notes)

    def episodes(self) -> Iterator[Episode | SkippedEpisode]:
        """Yield every episode in the buffer's order, or why it can't be used."""
        for number, end in enumerate(self._ends.tolist()):
            episode_id = f"{_PREFIX}{number:06d}"
            try:
                yield self._episode(int(self._ends[number - 1]) if number else 0, end, episode_id)
            except ConfigError:
                raise
            except DataError as error:
                yield SkippedEpisode(episode_id=episode_id, reason=str(error))

    @cached_property
    def _is_umi(self) -> bool:
        return "robot0_eef_rot_axis_angle" in self._arrays

    def _image_keys(self) -> list[str]:
        return [
            name
            for name, array in self._arrays.items()
            if len(array.shape) == 4 and array.shape[-1] == 3 and array.shape[1] * array.shape[2] <= MAX_FRAME_PIXELS
        ]

    def _cameras(self) -> dict[str, str]:
        """Return the cameras: arrays of images, else the videos beside the buffer."""
        if self._videos:
            return {f"camera_{name}": name for name in next(iter(self._videos.values()))}
        keys = self._image_keys()
        if not keys:
            raise DataError(f"{self.root}: no array under data/ holds images (has {', '.join(self._arrays) or 'none'})")
        return {name.removesuffix("_rgb"): key for name, key in view_names(keys).items()}

    def _rate(self) -> float:
        if self.config.fps:
            return self.config.fps
        if "timestamp" in self._arrays and len(self._ends):
            steps = np.diff(self._read("timestamp", 0, int(self._ends[0])).reshape(-1).astype(np.float64))
            if len(steps) and np.median(steps) > 0:
                return round(1 / float(np.median(steps)), 3)
        if self._is_umi:
            return UMI_FPS
        if {"img", "n_contacts"} <= set(self._arrays):  # the PushT buffer of Diffusion Policy
            return PUSHT_FPS
        raise ConfigError(f"{self.root}: the rate is not recorded; give it with --option fps=F (rows per second)")

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        array = self._arrays[name]
        if len(array) < stop:
            raise DataError(f"data/{name} has {len(array)} rows; this episode ends at row {stop}: rows are missing")
        return array.read(start, stop)

    def _episode(self, start: int, stop: int, episode_id: str) -> Episode:
        count = check_rows(stop - start, "it")
        notes: list[str] = []
        views: dict[str, ViewSource]
        rows = self._rows(start, stop, count, notes)
        fps = self._fps
        if self._videos:
            views, fps = self._films(int(episode_id.removeprefix(_PREFIX)), count, notes)
        else:
            views = self._images(start, stop, rows, notes)
        return Episode(
            episode_id=episode_id,
            embodiment=self._body.same(self._spec(rows, fps)),
            views=views,
            actions=rows.actions,
            state=rows.state,
            prompts=(self.config.prompt,) if self.config.prompt else (),
            notes=(*rows.notes, *notes, *(() if self.config.prompt else ("no_prompt",))),
            extra={"rows": [start, stop]},
        )

    def _images(self, start: int, stop: int, rows: Rows, notes: list[str]) -> dict[str, ViewSource]:
        """Return the cameras whose frames are rows of an array."""
        for key in self._views.values():
            if len(self._arrays[key]) < stop:
                raise DataError(f"data/{key} has {len(self._arrays[key])} rows; this episode ends at row {stop}")
            if missing := self._arrays[key].missing_chunks(start, stop):
                notes.append(f"chunks_missing:{safe_name(key)}:{missing}")
        return {
            name: ZarrView(path=self.root, name=f"data/{key}", start=start, times=rows.times)
            for name, key in self._views.items()
        }

    def _films(self, number: int, count: int, notes: list[str]) -> tuple[dict[str, ViewSource], float]:
        """Return the cameras whose frames are videos that start with the first row, and their common rate."""
        files = self._videos.get(number, {})
        if missing := [key for key in self._views.values() if key not in files]:
            raise DataError(f"has no video of camera {missing[0]!r}, {self.root.parent / 'videos' / str(number)}")
        infos = {key: probe_video(files[key]) for key in self._views.values()}
        fps = next(iter(infos.values())).fps
        span = (count - 1) / self._fps
        views: dict[str, ViewSource] = {}
        for name, key in self._views.items():
            frames = int(min(infos[key].num_frames, span * fps + 1 + 1e-6))
            if abs(infos[key].fps - fps) > 0.01 * fps or frames < 0.9 * span * fps:
                raise DataError(
                    f"{files[key]}: {infos[key].num_frames} frames at {infos[key].fps:g} per second; its rows take "
                    f"{span:.1f} s, and the first camera has {fps:g}: it is truncated or of another recording"
                )
            views[name] = FileView(path=files[key], num_frames=frames, times=np.arange(frames) / fps)
        notes.append("video_beside_the_buffer")
        return views, fps

    def _rows(self, start: int, stop: int, count: int, notes: list[str]) -> Rows:
        state = self._stack(self._state_keys(), start, stop)
        if self.config.action_key == _NONE:
            return as_rows(count, self._fps, None, state)
        if self.config.action_key in self._arrays:
            return as_rows(count, self._fps, self._read(self.config.action_key, start, stop), state)
        poses = self._stack(self._pose_keys(), start, stop)
        if poses is None or self.config.action_key != "action":
            raise DataError(one_of("action_key", self.config.action_key, [*self._arrays, _NONE]))
        notes.append("actions_are_next_poses")
        return as_rows(count, self._fps, poses[1:], state)

    def _stack(self, keys: tuple[str, ...], start: int, stop: int) -> np.ndarray | None:
        parts = [self._read(key, start, stop).reshape(stop - start, -1) for key in keys]
        return np.concatenate(parts, axis=1) if parts else None

    def _pose_keys(self) -> tuple[str, ...]:
        robots = sorted({m[1] for name in self._arrays if (m := re.fullmatch(r"(robot\d+)_eef_rot_axis_angle", name))})
        keys = tuple(f"{robot}_{part}" for robot in robots for part in _POSE)
        if absent := [key for key in keys if key not in self._arrays]:
            raise DataError(f"{self.root}: has no data/{absent[0]}; UMI's pose needs {', '.join(_POSE)} of each robot")
        return keys

    def _state_keys(self) -> tuple[str, ...]:
        asked = self.config.state_keys
        if asked == (_NONE,):
            return ()
        for key in asked:
            if key not in self._arrays:
                raise ConfigError(one_of("state_keys", key, [*self._arrays, _NONE]))
        usual = next((keys for keys in _STATE_KEYS if set(keys) <= set(self._arrays)), ())
        return asked or (self._pose_keys() if self._is_umi else usual)

    def _spec(self, rows: Rows, fps: float) -> EmbodimentSpec:
        action_dim, state_dim = rows.dims
        robots = len(self._pose_keys()) // len(_POSE)
        poses = self._is_umi and self.config.action_key not in self._arrays and action_dim == 7 * robots
        names = tuple(f"robot{i}_{name}" for i in range(robots) for name in _POSE_NAMES)
        spec = EmbodimentSpec(
            name=self.config.embodiment or ("umi" if self._is_umi else safe_name(self.root.name.split(".")[0].lower())),
            action_dim=action_dim,
            state_dim=state_dim,
            views=tuple(self._views),
            fps=fps,
            action_rate=self._fps if action_dim else 0.0,
            action_names=names if poses else (),
            action_units=units(self.config.action_units, _POSE_UNITS * robots if poses else (), action_dim),
            description="UMI: absolute poses of each gripper, axis-angle, and its opening" if poses else "zarr buffer",
        )
        return with_state_names(spec, names if self._is_umi and not self.config.state_keys else ())


def _find(path: Path) -> list[Path]:
    """Return the buffers at `path`: itself, or those in that folder."""
    candidates = [path]
    if path.is_dir():
        candidates += sorted(p for p in path.iterdir() if p.name.endswith((".zarr", ".zarr.zip")))
    elif not path.name.endswith(".zip"):
        return []
    return [p for p in candidates if p.exists() and f"{_ENDS}/.zarray" in open_store(p)]


def _videos(buffer: Path) -> dict[int, dict[str, Path]]:
    """Return the videos of each episode by camera, as the real robot of Diffusion Policy records: videos/<episode>/<camera>.mp4."""
    folder = buffer.parent / "videos"
    if not folder.is_dir():
        return {}
    numbered = sorted((int(p.name), p) for p in folder.iterdir() if p.is_dir() and p.name.isdecimal())
    found = {number: {file.stem: file for file in sorted(path.glob("*.mp4"))} for number, path in numbered}
    return {number: files for number, files in found.items() if files}
