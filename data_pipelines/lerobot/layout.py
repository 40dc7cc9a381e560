"""Where the parts of a LeRobot dataset lie: v2 (a file per episode) and v3 (many episodes in a file).

Which of the two holds is read from the path templates, for datasets in the wild carry `v3.0` over v2 paths. Data and
video are decided apart. Dataset-level oddities are collected in `notes`.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any

from data_pipelines.lerobot.tables import column_names, read_json, read_json_lines, read_rows
from data_pipelines.options import safe_name
from wam_video.errors import DataError, one_of

_TEMPLATE_FIELDS = ("episode_chunk", "episode_index", "chunk_index", "file_index", "video_key")
_UNNAMED_INDEX = "__index_level_0__"
"""What pandas calls the index of a frame when it writes Parquet; LeRobot keeps the task texts there."""


@dataclass(frozen=True, kw_only=True)
class EpisodeRow:
    """One line of the episode table."""

    index: int
    length: int | None
    """As declared; the rows themselves decide."""
    tasks: tuple[str, ...]
    extra: dict[str, Any] = field(default_factory=dict)
    """v3: `data/file_index`, `videos/<key>/from_timestamp` and so on."""


class Layout:
    """The metadata of one dataset folder.

    Raises:
        DataError: `meta/info.json` or the episode table is missing or unusable.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.info = read_json(root / "meta" / "info.json")
        self.notes: list[str] = []
        self._counted: dict[str, dict[int, tuple[int, int]]] = {}
        self.features: dict[str, dict[str, Any]] = self.info.get("features") or {}
        if not isinstance(self.features, dict) or not self.features:
            raise DataError(f"{root / 'meta/info.json'}: 'features' is missing or empty; it must describe every column")
        self.data_template = self._template("data_path", "data")
        self.video_template = self._template("video_path", "videos") if self._video_keys() else None
        self.chunk_size = int(self.info.get("chunks_size") or 1000)
        self.episodes = self._read_episodes()
        self.tasks = self._read_tasks()
        self._check_declared_counts()

    @property
    def rows_share_files(self) -> bool:
        """Whether one Parquet file holds many episodes (v3)."""
        return _is_shared(self.data_template)

    @property
    def videos_share_files(self) -> bool:
        """Whether one mp4 holds many episodes (v3)."""
        return self.video_template is not None and _is_shared(self.video_template)

    @cached_property
    def modality(self) -> dict[str, Any]:
        """The `modality.json` of GR00T and its kin; empty where there is none."""
        path = self.root / "meta" / "modality.json"
        return read_json(path) if path.is_file() else {}

    def data_file(self, episode: EpisodeRow) -> Path:
        """Return the Parquet file that holds the rows of an episode."""
        return self.root / self._fill(self.data_template, episode, "data", None)

    def video_file(self, episode: EpisodeRow, key: str) -> Path:
        """Return the video file that holds a camera's frames of an episode."""
        if self.video_template is None:
            raise DataError(f"{self.root}: feature {key!r} is a video but info.json has no 'video_path'")
        return self.root / self._fill(self.video_template, episode, f"videos/{key}", key)

    def has_video_files(self, key: str) -> bool:
        """Return whether any video file of a camera exists (some datasets declare cameras that were never written)."""
        for episode in self.episodes:
            try:
                if self.video_file(episode, key).is_file():
                    return True
            except DataError:  # v3 lists no file for this camera
                continue
        return False

    def start_frame(self, episode: EpisodeRow, key: str, fps: float) -> int:
        """Return the index in its video file of an episode's first frame: `round(from_timestamp * fps)`, 0 in v2."""
        if not self.videos_share_files:
            return 0
        return round(float(episode.extra.get(f"videos/{key}/from_timestamp") or 0.0) * fps)

    def counted_start(self, episode: EpisodeRow, key: str) -> tuple[int, int] | None:
        """Return where an episode starts if its video file holds the listed episodes end to end, and that file's length.

        `from_timestamp` sums up container durations and can be off by a frame; where the lengths of all episodes of a file
        add up to exactly its frames, counting is certain. None in v2, or where a length is not declared.
        """
        if not self.videos_share_files:
            return None
        if key not in self._counted:
            self._counted[key] = self._count_starts(key)
        return self._counted[key].get(episode.index)

    def _count_starts(self, key: str) -> dict[int, tuple[int, int]]:
        files: dict[tuple[Any, Any], list[EpisodeRow]] = {}
        for row in self.episodes:
            place = (row.extra.get(f"videos/{key}/chunk_index"), row.extra.get(f"videos/{key}/file_index"))
            files.setdefault(place, []).append(row)
        starts = {}
        for rows in files.values():
            if any(row.length is None for row in rows):
                continue
            rows.sort(key=lambda row: float(row.extra.get(f"videos/{key}/from_timestamp") or 0.0))
            total, frame = sum(row.length or 0 for row in rows), 0
            for row in rows:
                starts[row.index] = (frame, total)
                frame += row.length or 0
        return starts

    def _video_keys(self) -> list[str]:
        return [key for key, feature in self.features.items() if feature.get("dtype") == "video"]

    def _template(self, key: str, folder: str) -> str:
        template = self.info.get(key)
        if not isinstance(template, str):
            raise DataError(f"{self.root / 'meta/info.json'}: {key!r} is {template!r}; it must be a path template")
        names = {name for _, name, _, _ in Formatter().parse(template) if name}
        for unknown in sorted(names - set(_TEMPLATE_FIELDS)):
            raise DataError(f"{self.root / 'meta/info.json'}: {one_of(f'field of {key!r}', unknown, _TEMPLATE_FIELDS)}")
        if Path(template).is_absolute() or ".." in Path(template).parts:
            raise DataError(f"{self.root / 'meta/info.json'}: {key!r} is {template!r}; it must stay inside the dataset")
        major = str(self.info.get("codebase_version", "")).lstrip("v")[:1]
        if major in ("2", "3") and (major == "3") != _is_shared(template):
            self.notes.append(f"{key}_not_of_declared_version:{self.info['codebase_version']}")
        if names & {"chunk_index"} and "episode_index" in names:
            self.notes.append(f"{key}_template_uses_chunk_index")
        return self._real_folder(template, folder)

    def _real_folder(self, template: str, folder: str) -> str:
        """Mend a template whose first folder was renamed in an upload (`video/` for `videos/`)."""
        first, _, rest = template.partition("/")
        if "{" in first or (self.root / first).exists():
            return template
        for other in (folder, folder.rstrip("s"), f"{folder.rstrip('s')}s"):
            if (self.root / other).is_dir():
                self.notes.append(f"folder_differs_from_template:{first}!={other}")
                return f"{other}/{rest}"
        return template

    def _fill(self, template: str, episode: EpisodeRow, prefix: str, video_key: str | None) -> str:
        chunk = episode.index // self.chunk_size
        values: dict[str, Any] = {"episode_index": episode.index, "episode_chunk": chunk, "video_key": video_key}
        if _is_shared(template):
            for name in ("chunk_index", "file_index"):
                value = episode.extra.get(f"{prefix}/{name}")
                if value is None:
                    raise DataError(f"episode {episode.index} has no '{prefix}/{name}' in meta/episodes")
                values[name] = int(value)
        else:
            values["chunk_index"] = chunk
        return template.format(**values)

    def _read_episodes(self) -> list[EpisodeRow]:
        lines = self.root / "meta" / "episodes.jsonl"
        files = sorted((self.root / "meta" / "episodes").glob("**/*.parquet"))
        if lines.is_file():
            rows = [_episode_row(row) for row in read_json_lines(lines)]
        elif files:
            rows = [row for file in files for row in _parquet_episodes(file)]
        else:
            raise DataError(
                f"{self.root}: neither meta/episodes.jsonl nor meta/episodes/**/*.parquet is there; one must list the episodes"
            )
        rows.sort(key=lambda row: row.index)
        seen = [row.index for row in rows]
        if len(set(seen)) != len(seen):
            raise DataError(f"{self.root}: an episode_index is listed twice in meta/episodes; each must occur once")
        return rows

    def _read_tasks(self) -> dict[int, str]:
        lines, table = self.root / "meta" / "tasks.jsonl", self.root / "meta" / "tasks.parquet"
        if lines.is_file():
            return {int(row["task_index"]): str(row["task"]) for row in read_json_lines(lines) if "task" in row}
        if not table.is_file():
            self.notes.append("no_task_table")
            return {}
        names = column_names(table)
        text = next((name for name in ("task", _UNNAMED_INDEX, *names) if name in names and name != "task_index"), None)
        if text is None or "task_index" not in names:
            raise DataError(f"{table}: columns are {names}; it must have 'task_index' and the task's text")
        columns = read_rows(table, ["task_index", text])
        return {int(i): str(task) for i, task in zip(columns["task_index"], columns[text], strict=True)}

    def _check_declared_counts(self) -> None:
        listed = len(self.episodes)
        if self.info.get("total_episodes") not in (None, listed):
            self.notes.append(f"declared_total_episodes_differs:{self.info['total_episodes']}!={listed}")
        chunks = len({row.index // self.chunk_size for row in self.episodes})
        if self.info.get("total_chunks") not in (None, chunks):
            self.notes.append(f"declared_total_chunks_differs:{self.info['total_chunks']}!={chunks}")
        for name, span in (self.info.get("splits") or {}).items():
            end = str(span).rpartition(":")[2]
            if end.isdigit() and int(end) > max((row.index + 1 for row in self.episodes), default=0):
                self.notes.append(f"declared_split_beyond_episodes:{safe_name(name)}={span}")


def _is_shared(template: str) -> bool:
    return "{file_index" in template and "{episode_index" not in template


def _episode_row(row: dict[str, Any]) -> EpisodeRow:
    if not isinstance(row.get("episode_index"), int):
        raise DataError(f"meta/episodes: a row has episode_index {row.get('episode_index')!r}; it must be an integer")
    tasks = row.get("tasks") or []
    known = ("episode_index", "length", "tasks")
    return EpisodeRow(
        index=row["episode_index"],
        length=row.get("length"),
        tasks=tuple(str(task) for task in ([tasks] if isinstance(tasks, str) else tasks)),
        extra={key: value for key, value in row.items() if key not in known},
    )


def _parquet_episodes(file: Path) -> list[EpisodeRow]:
    names = [name for name in column_names(file) if not name.startswith("stats/")]
    columns = read_rows(file, names)
    count = len(columns.get("episode_index", []))
    return [_episode_row({name: columns[name][i] for name in names}) for i in range(count)]
