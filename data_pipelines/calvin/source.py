"""Yields windows of CALVIN's play data: those that have an instruction, or whole recordings."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.calvin.annotations import read_annotations
from data_pipelines.frames import as_uint8
from data_pipelines.npz import npy_array, npz_array, npz_names, open_npz
from data_pipelines.options import build_options, safe_name
from data_pipelines.recording import Body, RecordingConfig, as_rows, check_rows, choose_views, units, with_state_names
from wam_video.data.schema import EmbodimentSpec, Episode, ViewSource
from wam_video.data.sources import SkippedEpisode
from wam_video.errors import ConfigError, DataError, one_of

FPS = 30.0
_SPLITS = ("training", "validation")
_WINDOWS = ("auto", "language", "play")
_ACTIONS = ("rel_actions", "actions")
_POSE = ("x", "y", "z", "rx", "ry", "rz")
_STATE_NAMES = (*_POSE, "gripper_width", *(f"joint_{i}" for i in range(7)), "gripper_action")


@dataclass(frozen=True, kw_only=True)
class CalvinConfig(RecordingConfig):
    """Options of the source."""

    windows: str = "auto"
    """`language`: a window an annotation; `play`: a recording each; `auto`: language where there are annotations."""
    action_key: str = "rel_actions"
    """`rel_actions` (scaled changes of pose) or `actions` (absolute poses)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, value, allowed in (("windows", self.windows, _WINDOWS), ("action_key", self.action_key, _ACTIONS)):
            if value not in allowed:
                raise ConfigError(one_of(what, value, allowed))


@dataclass(frozen=True, kw_only=True)
class _Window:
    folder: Path
    episode_id: str
    first: int
    last: int
    prompt: str


@dataclass(frozen=True, kw_only=True, eq=False)
class NpzFramesView:
    """A camera whose frames lie in a file each (a `schema.ViewSource`)."""

    folder: Path
    first: int
    key: str
    times: Float[np.ndarray, " f"]

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Yield every frame in order.

        Raises:
            DataError: A file is missing or damaged.
        """
        for number in range(self.first, self.first + len(self.times)):
            path = frame_file(self.folder, number)
            with open_npz(path, str(path)) as file:
                yield as_uint8(npz_array(file, self.key, str(path)), f"{path}: {self.key}")


class CalvinSource:
    """A CALVIN folder with `training` and `validation`, or one of these. See `CalvinConfig` and README.md."""

    name: ClassVar[str] = "calvin"
    looks_like: ClassVar[str] = "a folder with episode_*.npz and ep_start_end_ids.npy, or the one above (CALVIN)"

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.root = Path(path)
        self.config = build_options(CalvinConfig, self.name, options)
        self._folders = _folders(self.root)
        if not self._folders:
            raise DataError(f"{self.root}: no CALVIN data there; give {self.looks_like}")
        self._items = [item for folder in self._folders for item in self._windows(folder)]
        self._body = Body()

    @classmethod
    def matches(cls, path: str | Path) -> bool:
        """Return whether `path` holds `ep_start_end_ids.npy`, or `training` or `validation` with it."""
        return bool(_folders(Path(path)))

    @property
    def len_hint(self) -> int:
        """How many windows there are."""
        return len(self._items)

    @property
    def licence(self) -> str:
        """The licence of CALVIN's repository; the files state none."""
        return "MIT"

    @property
    def notes(self) -> tuple[str, ...]:
        """That the rate is documented, not recorded."""
        return () if self.config.fps else (f"rate_not_recorded:{FPS:g}_taken",)

    def episodes(self) -> Iterator[Episode | SkippedEpisode]:
        """Yield every window in the order of its list, or why it can't be used."""
        for window in self._items:
            try:
                yield self._episode(window)
            except ConfigError:
                raise
            except DataError as error:
                yield SkippedEpisode(episode_id=window.episode_id, reason=str(error))

    def _windows(self, folder: Path) -> Iterator[_Window]:
        file = folder / "lang_annotations" / "auto_lang_ann.npy"
        if self.config.windows == "language" or (self.config.windows == "auto" and file.is_file()):
            spans = read_annotations(file)
            kind = "window"
        else:
            path = folder / "ep_start_end_ids.npy"
            ids = npy_array(path.read_bytes(), str(path))
            if ids.ndim != 2 or ids.shape[1] != 2 or ids.dtype.kind not in "iu":
                raise DataError(
                    f"{path}: has shape {ids.shape} and type {ids.dtype}; it must be pairs of frame numbers"
                )
            spans, kind = [(int(first), int(last), "") for first, last in ids], "play"
        for number, (first, last, text) in enumerate(spans):
            episode_id = f"{safe_name(folder.name)}-{kind}_{number:06d}"
            yield _Window(folder=folder, episode_id=episode_id, first=first, last=last, prompt=text.strip())

    def _episode(self, window: _Window) -> Episode:
        count = check_rows(window.last - window.first + 1, "it")
        fps = self.config.fps or FPS
        keys, left_out = self._keys(window)
        actions, state = [], []
        for number in range(window.first, window.last + 1):
            path = frame_file(window.folder, number)
            with open_npz(path, str(path)) as file:
                actions.append(npz_array(file, self.config.action_key, str(path)))
                state.append(npz_array(file, "robot_obs", str(path)))
        if len({row.shape for row in actions}) > 1 or len({row.shape for row in state}) > 1:
            raise DataError("its frames have actions or states of different widths")
        rows = as_rows(count, fps, np.stack(actions), np.stack(state))
        views: dict[str, ViewSource] = {
            name: NpzFramesView(folder=window.folder, first=window.first, key=key, times=rows.times)
            for name, key in choose_views(keys, self.config.views).items()
        }
        prompt = window.prompt or self.config.prompt
        return Episode(
            episode_id=window.episode_id,
            embodiment=self._body.same(self._spec(*rows.dims, tuple(views), fps)),
            views=views,
            actions=rows.actions,
            state=rows.state,
            prompts=(prompt,) if prompt else (),
            notes=(*rows.notes, *left_out, *(() if prompt else ("no_prompt",))),
            extra={"frames": [window.first, window.last]},
        )

    def _keys(self, window: _Window) -> tuple[dict[str, str], list[str]]:
        """Return the cameras by name, and notes on the other arrays."""
        path = frame_file(window.folder, window.first)
        with open_npz(path, str(path)) as file:
            names = npz_names(file)
        cameras = {
            safe_name(name.removeprefix("rgb_")): name for name in names if name in ("rgb_static", "rgb_gripper")
        }
        if not cameras:
            raise DataError(f"{path}: has neither rgb_static nor rgb_gripper; it has {', '.join(names)}")
        read = {*cameras.values(), self.config.action_key, "robot_obs"}
        return cameras, [f"array_left_out:{safe_name(name)}" for name in names if name not in read]

    def _spec(self, action_dim: int, state_dim: int, views: tuple[str, ...], fps: float) -> EmbodimentSpec:
        relative = self.config.action_key == "rel_actions"
        documented = ("normalised",) * 7 if relative else ("m", "m", "m", "rad", "rad", "rad", "normalised")
        names = (*(f"d{name}" for name in _POSE), "gripper") if relative else (*_POSE, "gripper")
        spec = EmbodimentSpec(
            name=self.config.embodiment or "calvin_panda",
            action_dim=action_dim,
            state_dim=state_dim,
            views=views,
            fps=fps,
            action_rate=fps,
            action_names=names if action_dim == len(names) else (),
            action_units=units(self.config.action_units, documented, action_dim),
            description="CALVIN: "
            + ("changes of pose x 50 and x 20, cut to [-1, 1]" if relative else "absolute poses, Euler angles")
            + "; gripper -1 closes, 1 opens",
        )
        return with_state_names(spec, _STATE_NAMES)


def frame_file(folder: Path, number: int) -> Path:
    """Return the file of a frame."""
    return folder / f"episode_{number:07d}.npz"


def _folders(path: Path) -> list[Path]:
    found = [p for p in (path, *(path / name for name in _SPLITS)) if (p / "ep_start_end_ids.npy").is_file()]
    return found[:1] if found[:1] == [path] else found
