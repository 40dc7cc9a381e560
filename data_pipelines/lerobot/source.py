"""Yields the episodes of a LeRobot dataset v2.0, v2.1 or v3.0, and says by name what was odd about each.

Row i of an episode is frame i of its video: by index, never by timestamp, for recorded timestamps drift and start
anywhere. An episode of T rows has T frames, T states and T - 1 actions: nothing was seen after the last action.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from data_pipelines.lerobot.features import (
    Columns,
    LeRobotConfig,
    choose_columns,
    declared_codec,
    dimension_names,
    is_channels_first,
)
from data_pipelines.lerobot.images import ParquetImageView
from data_pipelines.lerobot.layout import EpisodeRow, Layout
from data_pipelines.lerobot.prompts import find_prompts
from data_pipelines.lerobot.tables import as_matrix, column_names, read_rows
from data_pipelines.options import build_options, safe_name
from data_pipelines.probe import codec_name, probe_video
from wam_video.data.schema import EmbodimentSpec, Episode, ViewSource
from wam_video.data.sources import SkippedEpisode
from wam_video.data.video import FileView
from wam_video.errors import ConfigError, DataError

_MAX_MISSING_FRAMES = 2
"""An encoder may drop the last frame or two; an episode is trimmed by so many and skipped beyond."""


class LeRobotSource:
    """A LeRobot dataset folder. See `LeRobotConfig` for the options, README.md for what is survived and reported."""

    name: ClassVar[str] = "lerobot"
    looks_like: ClassVar[str] = "a folder with meta/info.json (LeRobot v2.0 to v3.0)"

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.root = Path(path)
        if not self.root.is_dir():
            raise DataError(f"{self.root}: is no folder; a LeRobot dataset is a folder with meta/info.json")
        self.config = build_options(LeRobotConfig, self.name, options)
        self.layout = Layout(self.root)
        self.columns: Columns = choose_columns(self.layout, self.config)
        self.fps = _fps(self.layout)
        self._spec: EmbodimentSpec | None = None

    @classmethod
    def matches(cls, path: str | Path) -> bool:
        """Return whether `path` is a folder with `meta/info.json`."""
        return (Path(path) / "meta" / "info.json").is_file()

    @property
    def len_hint(self) -> int:
        """How many episodes the dataset lists."""
        return len(self.layout.episodes)

    @property
    def licence(self) -> str:
        """What info.json states, which is seldom anything."""
        return str(self.layout.info.get("license") or self.layout.info.get("licence") or "")

    @property
    def notes(self) -> tuple[str, ...]:
        """Oddities of the dataset as a whole."""
        return (*self.layout.notes, *self.columns.notes)

    def episodes(self) -> Iterator[Episode | SkippedEpisode]:
        """Yield every listed episode, or why it can't be used."""
        for row in self.layout.episodes:
            episode_id = f"episode_{row.index:06d}"
            try:
                yield self._episode(row, episode_id)
            except ConfigError:
                raise
            except DataError as error:
                yield SkippedEpisode(episode_id=episode_id, reason=str(error))

    def _episode(self, row: EpisodeRow, episode_id: str) -> Episode:
        table, notes = self._read_table(row)
        views, count = self._views(row, len(next(iter(table.values()))), notes)
        if count < 2:
            raise DataError(f"has {count} frame(s); at least 2 are needed for one action")
        actions, state, reward, success = self._vectors(table, count, notes)
        prompts, prompt_notes = find_prompts(self.layout, self.columns.prompts, table, row)
        extra = self._annotations(table)
        if any(value.lower().startswith("invalid") for value in extra.values()):
            notes.append("annotated_invalid")
        return Episode(
            episode_id=episode_id,
            embodiment=self._embodiment(actions, state),
            views=views,
            actions=actions,
            state=state,
            prompts=prompts,
            reward=reward,
            success=success,
            notes=(*notes, *prompt_notes),
            extra={"annotations": extra} if extra else {},
        )

    def _read_table(self, row: EpisodeRow) -> tuple[dict[str, list[Any]], list[str]]:
        """Return the episode's rows in the order of its frames."""
        path = self.layout.data_file(row)
        names = column_names(path)
        wanted = [self.columns.action, self.columns.state, *self.columns.prompts, *self.columns.annotations]
        wanted += ["timestamp", "frame_index", "episode_index", "index", "task_index", "next.reward", "next.success"]
        for key in (self.columns.action, self.columns.state):
            if key is not None and key not in names:
                raise DataError(f"{path}: has no column {key!r}; columns are {', '.join(names)}")
        shared = self.layout.rows_share_files
        if shared and "episode_index" not in names:
            raise DataError(f"{path}: holds many episodes but has no column 'episode_index'")
        present = list(dict.fromkeys(name for name in wanted if name is not None and name in names))
        if not present:
            raise DataError(f"{path}: has none of the columns {', '.join(str(name) for name in wanted)}")
        table = read_rows(path, present, row.index if shared else None)
        notes = [f"no_{name}" for name in ("frame_index", "index", "task_index", "timestamp") if name not in names]
        count = len(table[present[0]])
        if count == 0:
            raise DataError(f"{path}: has no rows of this episode")
        if "frame_index" in table:
            order = np.argsort(np.asarray(table["frame_index"]).reshape(-1), kind="stable")
            if not np.array_equal(np.asarray(table["frame_index"]).reshape(-1)[order], np.arange(count)):
                raise DataError(f"{path}: frame_index does not run from 0 to {count - 1}; rows are missing or doubled")
            if not np.array_equal(order, np.arange(count)):
                table = {name: [values[i] for i in order] for name, values in table.items()}
                notes.append("rows_not_in_order")
        if row.length not in (None, count):
            notes.append("declared_length_differs")
        notes += _timestamp_notes(table.get("timestamp"), self.fps)
        return table, notes

    def _views(self, row: EpisodeRow, rows: int, notes: list[str]) -> tuple[dict[str, ViewSource], int]:
        """Return the cameras and the number of frames that all of them have, at most the number of rows."""
        starts, count = {}, rows
        for name, key in self.columns.views.items():
            if is_channels_first(self.layout.features[key]):
                notes.append(f"declared_shape_channels_first:{name}")
            if self.layout.features[key]["dtype"] == "video":
                starts[name], available = self._stretch(row, name, rows, notes)
                count = min(count, available)
        times = np.arange(count, dtype=np.float64) / self.fps
        views: dict[str, ViewSource] = {}
        for name, key in self.columns.views.items():
            if name in starts:
                path = self.layout.video_file(row, key)
                views[name] = FileView(path, starts[name], count, times)
            else:
                episode = row.index if self.layout.rows_share_files else None
                file = self.layout.data_file(row)
                views[name] = ParquetImageView(root=self.root, path=file, column=key, episode=episode, times=times)
        return views, count

    def _stretch(self, row: EpisodeRow, name: str, rows: int, notes: list[str]) -> tuple[int, int]:
        """Return where in its video file an episode starts, and how many frames are there from then on."""
        key = self.columns.views[name]
        path = self.layout.video_file(row, key)
        info = probe_video(path)
        declared = declared_codec(self.layout.features[key])
        if declared and codec_name(declared) != info.codec:
            notes.append(f"declared_codec_differs:{name}:{codec_name(declared)}!={info.codec}")
        if abs(info.fps - self.fps) > 0.01 * self.fps:
            notes.append(f"container_fps_differs:{name}")
        start = self.layout.start_frame(row, key, self.fps)
        counted = self.layout.counted_start(row, key)
        if counted is not None and counted[1] == info.num_frames and counted[0] != start:
            notes.append(f"from_timestamp_off:{name}:{start - counted[0]:+d}")
            start = counted[0]
        available = info.num_frames - start
        if available < rows - _MAX_MISSING_FRAMES:
            raise DataError(
                f"{path}: has {info.num_frames} frames; {rows} rows need frames {start} to {start + rows - 1}; "
                "the video is truncated or of another recording"
            )
        if available < rows:
            notes.append(f"frames_missing_at_end:{name}")
        if available > rows and not self.layout.videos_share_files:
            notes.append(f"more_frames_than_rows:{name}")
        return start, available

    def _vectors(self, table: dict[str, list[Any]], count: int, notes: list[str]) -> tuple[Any, Any, Any, bool | None]:
        """Return actions [T-1, da], states [T, ds], rewards [T-1] and whether the episode succeeded."""
        actions = state = reward = success = None
        if self.columns.action is not None:
            actions = self._matrix(self.columns.action, table, notes)[: count - 1]
            notes.append("last_action_without_frame")
        if self.columns.state is not None and actions is None:
            notes.append("state_without_actions_left_out")  # state rows are timed by actions
        elif self.columns.state is not None:
            state = self._matrix(self.columns.state, table, notes)[:count]
        if "next.reward" in table and actions is not None:
            reward = as_matrix(table["next.reward"])[: count - 1, 0]
        if "next.success" in table:
            success = bool(np.any(np.asarray(table["next.success"], dtype=bool)))
        return actions, state, reward, success

    def _matrix(self, key: str, table: dict[str, list[Any]], notes: list[str]) -> Float[np.ndarray, "t d"]:
        try:
            matrix = as_matrix(table[key])
        except DataError as error:
            raise DataError(f"column {key!r}: {error}") from error
        if not np.isfinite(matrix).all():
            raise DataError(
                f"column {key!r}: row {int(np.argwhere(~np.isfinite(matrix))[0, 0])} is not finite; drop or mend the episode"
            )
        declared = int(np.prod(self.layout.features[key].get("shape") or [1]))
        if declared != matrix.shape[1]:
            notes.append(f"declared_width_differs:{safe_name(key)}:{declared}!={matrix.shape[1]}")
        if str(self.layout.features[key].get("dtype")) == "float64":
            notes.append(f"float64_stored_as_float32:{safe_name(key)}")
        return matrix

    def _annotations(self, table: dict[str, list[Any]]) -> dict[str, str]:
        """Return the text of annotation columns that are no instruction, by column."""
        found = {}
        for key in self.columns.annotations:
            if table.get(key):
                value = Counter(str(v) for v in np.asarray(table[key]).reshape(-1)).most_common(1)[0][0]
                found[key] = self.layout.tasks.get(int(value), value) if value.isdigit() else value
        return found

    def _embodiment(self, actions: Any, state: Any) -> EmbodimentSpec:
        """Return the body, built from the first episode and held against every later one."""
        action_dim = 0 if actions is None else actions.shape[1]
        state_dim = 0 if state is None else state.shape[1]
        if self._spec is not None:
            if (self._spec.action_dim, self._spec.state_dim) != (action_dim, state_dim):
                raise DataError(
                    f"actions and state have {action_dim} and {state_dim} dimensions; earlier episodes have "
                    f"{self._spec.action_dim} and {self._spec.state_dim}; one dataset holds one body"
                )
            return self._spec
        units = self.config.action_units
        robot = str(self.layout.info.get("robot_type") or "")
        known = robot if robot.lower() not in ("", "unknown", "none") else self.root.resolve().name
        self._spec = EmbodimentSpec(
            name=self.config.embodiment or safe_name(known.lower(), "lerobot"),
            action_dim=action_dim,
            state_dim=state_dim,
            views=tuple(self.columns.views),
            fps=self.fps,
            action_rate=self.fps if action_dim else 0.0,
            action_names=dimension_names(self.layout, self.columns.action, "action", action_dim),
            action_units=units * action_dim if len(units) == 1 else units,
            state_names=dimension_names(self.layout, self.columns.state, "state", state_dim),
            description=f"LeRobot dataset, robot_type {robot or 'not given'}",
        )
        return self._spec


def _fps(layout: Layout) -> float:
    try:
        fps = float(layout.info.get("fps") or 0)
    except (TypeError, ValueError):
        fps = 0.0
    if not fps > 0:
        raise DataError(
            f"{layout.root / 'meta/info.json'}: 'fps' is {layout.info.get('fps')!r}; it must be a number above 0"
        )
    return fps


def _timestamp_notes(values: list[Any] | None, fps: float) -> list[str]:
    """Report recorded times that the row index would not give; they are not used."""
    if not values:
        return []
    times = np.asarray(values, dtype=np.float64).reshape(-1)
    notes = ["first_timestamp_not_zero"] if abs(times[0]) > 0.1 / fps else []
    drift = np.abs(times - times[0] - np.arange(len(times)) / fps)
    if drift.max() > 0.5 / fps:
        notes.append("timestamps_not_at_declared_fps")
    elif drift.max() > 1e-4:
        notes.append("timestamps_jitter")
    return notes
