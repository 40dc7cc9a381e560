"""Yields the recordings of an IRASim-like dataset: `annotation/<split>/<id>.json` names videos and holds the actions."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_pipelines.options import build_options, episode_name, safe_name
from data_pipelines.probe import probe_video
from data_pipelines.recording import Body, RecordedSource, RecordingConfig, as_rows, check_rows, choose_views, units
from wam_video.data.schema import EmbodimentSpec, Episode, ViewSource
from wam_video.data.sources import SkippedEpisode
from wam_video.data.video import FileView
from wam_video.errors import ConfigError, DataError

_ACTION_KEYS = ("actions", "action")
_TEXT_KEYS = ("texts", "text", "language_instruction", "instruction", "caption")
_MAX_JSON_BYTES = 64 << 20
_SINGLE_VIEW = "camera"


@dataclass(frozen=True, kw_only=True)
class IRASimConfig(RecordingConfig):
    """Options of the source; `fps` replaces the rate that the videos state."""

    split: str = ""
    """Read only `annotation/<split>`; empty reads all."""
    gripper: str = "yes"
    """`no` leaves `continuous_gripper_state` out of the state."""


class IRASimSource(RecordedSource):
    """A folder with annotations and videos, or one annotation. See `IRASimConfig` and README.md."""

    name: ClassVar[str] = "irasim"
    looks_like: ClassVar[str] = (
        "JSON files with 'action(s)' and 'video_path' or 'videos' (IRASim, Cosmos), best in annotation/"
    )

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.root = Path(path)
        self.config = build_options(IRASimConfig, self.name, options)
        self._files = _annotations(self.root, self.config.split)
        if not self._files:
            where = f"{self.root} with split {self.config.split!r}" if self.config.split else str(self.root)
            raise DataError(f"{where}: no annotation there; give {self.looks_like}")
        self._body = Body()

    @classmethod
    def matches(cls, path: str | Path) -> bool:
        """Return whether the first annotation at `path` has actions and names a video."""
        for file in _annotations(Path(path), "")[:1]:
            try:
                content = _read(file)
            except DataError:
                return False
            return any(key in content for key in _ACTION_KEYS) and ("video_path" in content or "videos" in content)
        return False

    @property
    def len_hint(self) -> int:
        """How many annotations there are."""
        return len(self._files)

    def episodes(self) -> Iterator[Episode | SkippedEpisode]:
        """Yield every annotated recording by name, or why it can't be used."""
        for file in self._files:
            split = file.parent.name if file.parent not in (self.root, self.root.parent) else ""
            episode_id = episode_name(*(part for part in (split, file.stem) if part))
            try:
                yield self._episode(file, episode_id)
            except ConfigError:
                raise
            except DataError as error:
                yield SkippedEpisode(episode_id=episode_id, reason=str(error))

    def _episode(self, file: Path, episode_id: str) -> Episode:
        content = _read(file)
        notes: list[str] = []
        videos = choose_views(self._videos(file, content, notes), self.config.views)
        infos = {view: probe_video(Path(path)) for view, path in videos.items()}
        rates = sorted({info.fps for info in infos.values()})
        if len(rates) > 1 and not self.config.fps:
            raise DataError(f"cameras have different rates ({', '.join(f'{r:g}' for r in rates)}); give --option fps=F")
        fps = self.config.fps or rates[0]
        frames = min(info.num_frames for info in infos.values())
        if any(info.num_frames > frames for info in infos.values()):
            notes.append("longer_cameras_cut")
        key = next((key for key in _ACTION_KEYS if key in content), None)
        actions = None if key is None else _matrix(content[key], key)
        if actions is not None:
            if frames > len(actions) + 1:
                notes.append(f"more_frames_than_actions:{frames - len(actions) - 1}")
            frames = min(frames, len(actions) + 1)
        rows = as_rows(check_rows(frames, str(file)), fps, actions, self._state(content, frames, notes))
        prompts = _texts(content) or ((self.config.prompt,) if self.config.prompt else ())
        notes += [] if prompts else ["no_prompt"]
        views: dict[str, ViewSource] = {
            view: FileView(path=path, start_frame=0, num_frames=frames, times=rows.times)  # type: ignore[dict-item]
            for view, path in videos.items()
        }
        action_dim, state_dim = rows.dims
        spec = EmbodimentSpec(
            name=self.config.embodiment or safe_name(self.root.resolve().name.lower()),
            action_dim=action_dim,
            state_dim=state_dim,
            views=tuple(views),
            fps=fps,
            action_rate=fps if action_dim else 0.0,
            action_units=units(self.config.action_units, (), action_dim),
            description="annotated videos (IRASim, Cosmos); what the actions are is the dataset's business",
        )
        return Episode(
            episode_id=episode_id,
            embodiment=self._body.same(spec),
            views=views,
            actions=rows.actions,
            state=rows.state,
            prompts=prompts,
            success=content["success"] if isinstance(content.get("success"), bool) else None,
            notes=(*rows.notes, *notes),
            extra={"episode_id": str(content["episode_id"])} if "episode_id" in content else {},
        )

    def _videos(self, file: Path, content: Mapping[str, Any], notes: list[str]) -> dict[str, str]:
        """Return the file of each camera; those that an upload moved are found by their names."""
        entries = content.get("videos") or [{"video_path": content.get("video_path")}]
        paths = [entry.get("video_path") if isinstance(entry, dict) else entry for entry in entries]
        if not paths or not all(isinstance(path, str) and path for path in paths):
            raise DataError(f"{file}: names no video; it must have 'video_path', or 'videos' with one each")
        found = {}
        for number, stated in enumerate(paths):
            path = _resolve(self.root if self.root.is_dir() else self.root.parent, file, str(stated))
            if path is None:
                raise DataError(f"{file}: its video {stated!r} is missing")
            if not path.as_posix().endswith(str(stated)):
                notes.append("video_moved")
            name = Path(str(stated)).stem if len(paths) > 1 else _SINGLE_VIEW
            found[safe_name(name) if safe_name(name) not in found else f"{safe_name(name)}_{number}"] = str(path)
        return found

    def _state(self, content: Mapping[str, Any], frames: int, notes: list[str]) -> np.ndarray | None:
        if content.get("state") is None:
            return None
        state = _matrix(content["state"], "state")
        gripper = content.get("continuous_gripper_state")
        if gripper is not None and self.config.gripper == "yes":
            column = _matrix(gripper, "continuous_gripper_state")
            if len(column) != len(state):
                raise DataError(
                    f"continuous_gripper_state has {len(column)} rows, state {len(state)}; rows are missing"
                )
            state = np.concatenate([state, column], axis=1)
        if len(state) > frames:
            notes.append(f"more_states_than_frames:{len(state) - frames}")
        return state[:frames]


def _annotations(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".json" else []
    folder = path / "annotation" / split if (path / "annotation").is_dir() else path
    if not folder.is_dir():
        return []
    deep = folder.glob("**/*.json") if folder != path else folder.glob("*.json")
    return sorted(p for p in deep if p.is_file() and p.name[0] != ".")


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"{file.stat().st_size} bytes; at most {_MAX_JSON_BYTES}")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not readable as JSON ({error}); it may be truncated: copy it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds a {type(content).__name__}; it must be a JSON object")
    return content


def _resolve(root: Path, file: Path, stated: str) -> Path | None:
    """Return the video inside the dataset: as stated, else of that name beside the annotation or at the top."""
    for path in (root / stated, file.parent / Path(stated).name, root / Path(stated).name):
        if path.is_file() and path.resolve().is_relative_to(root.resolve()):
            return path
    return None


def _matrix(values: Any, name: str) -> np.ndarray:
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: rows are no numbers or differ in length ({error})") from error
    return matrix.reshape(len(matrix), -1) if matrix.ndim else matrix.reshape(1, 1)


def _texts(content: Mapping[str, Any]) -> tuple[str, ...]:
    for key in _TEXT_KEYS:
        value = content.get(key)
        texts = [text.strip() for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
        if any(texts):
            return tuple(dict.fromkeys(text for text in texts if text))
    return ()
