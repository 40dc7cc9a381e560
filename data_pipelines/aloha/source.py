"""Yields the episodes of ALOHA / ACT recordings: `episode_0.hdf5`, `episode_1.hdf5`, ..."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_pipelines.hdf5 import (
    HDF5View,
    attribute,
    dataset,
    group,
    hdf5_files,
    is_encoded,
    is_images,
    open_hdf5,
    read_table,
)
from data_pipelines.options import build_options, episode_name, safe_name
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
from wam_video.data.schema import EmbodimentSpec, Episode, ViewSource
from wam_video.data.sources import SkippedEpisode
from wam_video.errors import ConfigError, DataError, one_of

FPS = 50.0
"""Control rate of ALOHA (DT = 0.02 s); the files do not record it."""

_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
JOINTS = tuple(f"{arm}_{joint}" for arm in ("left", "right") for joint in _JOINTS)
UNITS = (*("rad",) * 6, "normalised") * 2
COLOURS = ("rgb", "bgr")
_FLAGS = ("yes", "no")


@dataclass(frozen=True, kw_only=True)
class AlohaConfig(RecordingConfig):
    """Options of the source."""

    state_keys: tuple[str, ...] = ("qpos",)
    """Datasets under `observations` that make up the state, in this order: qpos, qvel, effort."""
    colours: str = "rgb"
    """Order of the channels once decoded: `bgr` if `inspect` shows blue for red."""
    base: str = "no"
    """`yes` adds the two velocities of a mobile base (`base_action`) to the actions."""
    action_delay: int = 0
    """Row t takes the action of row t - N; 1 is what ACT does with recordings of the real robot."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, value, allowed in (("colours", self.colours, COLOURS), ("base", self.base, _FLAGS)):
            if value not in allowed:
                raise ConfigError(one_of(what, value, allowed))
        if not 0 <= self.action_delay <= 100:
            raise ConfigError(f"option action_delay is {self.action_delay}; allowed: 0 to 100 rows")


class AlohaSource(RecordedSource):
    """A folder of ALOHA episodes, or one of them. See `AlohaConfig` and README.md."""

    name: ClassVar[str] = "aloha"
    looks_like: ClassVar[str] = "HDF5 files with /action and /observations/images, one an episode (ALOHA, ACT)"

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.root = Path(path)
        self.config = build_options(AlohaConfig, self.name, options)
        self._files = hdf5_files(self.root)
        if not self._files:
            raise DataError(f"{self.root}: no HDF5 file there; give {self.looks_like}")
        self._body = Body()

    @classmethod
    def matches(cls, path: str | Path) -> bool:
        """Return whether a file at `path` has actions and `observations`, as ALOHA's have."""
        for file in hdf5_files(path):
            try:
                with open_hdf5(file) as content:
                    return dataset(content, "action") is not None and group(content, "observations") is not None
            except DataError:
                continue
        return False

    @property
    def len_hint(self) -> int:
        """How many files there are."""
        return len(self._files)

    @property
    def notes(self) -> tuple[str, ...]:
        """That the rate is that of the robot, for the files have none."""
        return () if self.config.fps else (f"rate_not_recorded:{FPS:g}_taken",)

    def episodes(self) -> Iterator[Episode | SkippedEpisode]:
        """Yield every file by number, or why it can't be used."""
        for file in self._files:
            episode_id = episode_name(file.stem)
            try:
                with open_hdf5(file) as content:
                    episode = self._episode(content, file, episode_id)
                yield episode
            except ConfigError:
                raise
            except DataError as error:
                yield SkippedEpisode(episode_id=episode_id, reason=str(error))

    def _episode(self, content: Any, file: Path, episode_id: str) -> Episode:
        notes: list[str] = []
        fps = self.config.fps or FPS
        views, count = self._views(content, file, fps, notes)
        actions = self._actions(content, notes)
        rows = as_rows(count, fps, actions, self._state(content, notes))
        prompt = self._prompt(content)
        notes += [] if prompt else ["no_prompt"]
        return Episode(
            episode_id=episode_id,
            embodiment=self._body.same(self._spec(rows, tuple(views), fps, bool(attribute(content, "sim")))),
            views=views,
            actions=rows.actions,
            state=rows.state,
            prompts=(prompt,) if prompt else (),
            notes=(*rows.notes, *notes),
        )

    def _views(self, content: Any, file: Path, fps: float, notes: list[str]) -> tuple[dict[str, ViewSource], int]:
        images = group(content, "observations/images")
        if images is None:
            other = "; it names videos beside it" if group(content, "observations/video_paths") is not None else ""
            raise DataError(f"{file}: has no observations/images{other}; a world action model needs video")
        keys = [key for key in sorted(images) if is_images(dataset(images, key))]
        notes += [f"array_left_out:{safe_name(key)}" for key in sorted(images) if key not in keys]
        if not keys:
            raise DataError(f"{file}: observations/images has no camera")
        counts = {len(images[key]) for key in keys}
        if len(counts) > 1:
            raise DataError(f"{file}: its cameras have {sorted(counts)} frames; they must be equally long")
        count = check_rows(counts.pop(), str(file))
        times = np.arange(count, dtype=np.float64) / fps
        chosen = choose_views(view_names(keys), self.config.views)
        if any(is_encoded(images[key]) for key in chosen.values()):
            notes.append("jpeg_colour_order_not_recorded")
        swap = self.config.colours == "bgr"
        views: dict[str, ViewSource] = {
            name: HDF5View(path=file, name=f"observations/images/{key}", times=times, swap_colours=swap)
            for name, key in chosen.items()
        }
        return views, count

    def _actions(self, content: Any, notes: list[str]) -> np.ndarray:
        actions = read_table(content, "action")
        if actions is None:
            raise DataError("has no dataset 'action'")
        base = read_table(content, "base_action")
        if base is not None and self.config.base == "no":
            notes.append("base_action_left_out")
        elif self.config.base == "yes":
            if base is None or len(base) != len(actions):
                raise DataError("has no 'base_action' of the actions' length; --option base=no")
            actions = np.concatenate([actions, base], axis=1)
        if delay := self.config.action_delay:
            actions = actions[np.maximum(np.arange(len(actions)) - delay, 0)]
            notes.append(f"actions_delayed:{delay}")
        return actions

    def _state(self, content: Any, notes: list[str]) -> np.ndarray | None:
        observations = group(content, "observations")
        has = [key for key in sorted(observations or ()) if dataset(observations, key) is not None]
        parts = []
        for key in self.config.state_keys:
            part = read_table(observations, key) if key in has else None
            if part is None:
                raise DataError(one_of("state_keys", key, has))
            parts.append(part)
        notes += [f"observation_left_out:{safe_name(key)}" for key in has if key not in self.config.state_keys]
        if len({len(part) for part in parts}) > 1:
            raise DataError(f"the columns {', '.join(self.config.state_keys)} differ in length; rows are missing")
        return np.concatenate(parts, axis=1) if parts else None

    def _prompt(self, content: Any) -> str:
        for name in ("language_instruction", "task", "instruction"):
            text = attribute(content, name)
            if isinstance(text, str) and text.strip():
                return text.strip()
        return self.config.prompt

    def _spec(self, rows: Rows, views: tuple[str, ...], fps: float, simulated: bool) -> EmbodimentSpec:
        action_dim, state_dim = rows.dims
        mobile = ("base_linear", "base_angular") if self.config.base == "yes" else ()
        names = (*JOINTS, *mobile) if action_dim == len(JOINTS) + len(mobile) else ()
        documented = (*UNITS, *(("m/s", "rad/s") if mobile else ()))
        spec = EmbodimentSpec(
            name=self.config.embodiment or ("aloha_sim" if simulated else "aloha"),
            action_dim=action_dim,
            state_dim=state_dim,
            views=views,
            fps=fps,
            action_rate=fps,
            action_names=names,
            action_units=units(self.config.action_units, documented, action_dim),
            description="ALOHA, two arms of 6 joints and a gripper; absolute joint targets; gripper 0 closed, 1 open",
        )
        return with_state_names(spec, JOINTS if self.config.state_keys == ("qpos",) else ())
