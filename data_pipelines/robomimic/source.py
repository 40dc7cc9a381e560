"""Yields the demonstrations of robomimic, LIBERO, RoboCasa and robosuite HDF5 files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_pipelines.frames import TURNS, TurnedView
from data_pipelines.hdf5 import (
    HDF5View,
    attribute,
    dataset,
    group,
    hdf5_files,
    is_images,
    natural_key,
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
from data_pipelines.robomimic.facts import ROBOSUITE_ACTIONS, FileFacts, demo_prompt, file_facts
from wam_video.data.schema import EmbodimentSpec, Episode, ViewSource
from wam_video.data.sources import SkippedEpisode
from wam_video.errors import ConfigError, DataError, one_of

_STATE_KEYS = (
    ("ee_states", "gripper_states"),
    ("ee_pos", "ee_ori", "gripper_states"),
    ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),
)
"""Tried in this order: LIBERO's as others read it, then robosuite's."""
_NONE = "none"


@dataclass(frozen=True, kw_only=True)
class RobomimicConfig(RecordingConfig):
    """Options of the source."""

    action_key: str = "actions"
    """Dataset of each demonstration with the actions, e.g. `actions_abs`."""
    state_keys: tuple[str, ...] = ()
    """Observations that make up the state, in this order; `none` leaves it out; empty looks for the usual ones."""
    filter_key: str = ""
    """Read only the demonstrations of this list under `mask`, e.g. `train`."""
    turn: str = "auto"
    """`none`, `flip` (upside down to upright), `mirror`, `rotate` (both), or `auto`: flip where the file says opengl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.turn not in ("auto", *TURNS):
            raise ConfigError(one_of("turn", self.turn, ("auto", *TURNS)))


class RobomimicSource(RecordedSource):
    """An HDF5 file with `data/demo_*`, or a folder of them. See `RobomimicConfig` and README.md."""

    name: ClassVar[str] = "robomimic"
    looks_like: ClassVar[str] = (
        "an HDF5 file with data/demo_0, data/demo_1, ... or a folder of them (robomimic, LIBERO)"
    )

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.root = Path(path)
        self.config = build_options(RobomimicConfig, self.name, options)
        self._body = Body()
        self._items: list[tuple[Path, str] | SkippedEpisode] = []
        files = hdf5_files(self.root)
        if not files:
            raise DataError(f"{self.root}: no HDF5 file there; give {self.looks_like}")
        for file in files:
            try:
                self._items += [(file, demo) for demo in self._demos(file)]
            except DataError as error:
                if len(files) == 1:
                    raise
                self._items.append(SkippedEpisode(episode_id=episode_name(file.stem), reason=str(error)))

    @classmethod
    def matches(cls, path: str | Path) -> bool:
        """Return whether a file at `path` has demonstrations."""
        for file in hdf5_files(path):
            try:
                with open_hdf5(file) as content:
                    data = group(content, "data")
                    return data is not None and any(name.startswith("demo") for name in data)
            except DataError:  # the next one may be whole
                continue
        return False

    @property
    def len_hint(self) -> int:
        """How many demonstrations there are, and files that can't be read."""
        return len(self._items)

    def episodes(self) -> Iterator[Episode | SkippedEpisode]:
        """Yield every demonstration by number, or why it can't be used."""
        for item in self._items:
            if isinstance(item, SkippedEpisode):
                yield item
                continue
            episode_id = episode_name(item[0].stem, item[1])
            try:
                with open_hdf5(item[0]) as content:
                    episode = self._episode(content["data"], *item, episode_id)
                yield episode
            except ConfigError:
                raise
            except DataError as error:
                yield SkippedEpisode(episode_id=episode_id, reason=str(error))

    def _demos(self, file: Path) -> list[str]:
        """Return the names of a file's demonstrations, by number."""
        with open_hdf5(file) as content:
            data = group(content, "data")
            names = [] if data is None else sorted((n for n in data if group(data, n) is not None), key=natural_key)
            if not names:
                raise DataError(
                    f"{file}: has no demonstrations under 'data'; a robomimic file has data/demo_0 and so on"
                )
            if self.config.filter_key:
                names = self._filtered(content, file, names)
            demo = group(data, names[0])
            if group(demo, "obs") is None:
                kept = ", ".join(sorted(demo or ()))
                raise DataError(
                    f"{file}: its demonstrations hold {kept} but no observations, so there is no video; render them first, "
                    "with robomimic's dataset_states_to_obs.py and --camera_names"
                )
            return names

    def _filtered(self, content: Any, file: Path, names: list[str]) -> list[str]:
        masks = group(content, "mask")
        key = self.config.filter_key
        if masks is None or dataset(masks, key) is None:
            raise ConfigError(f"{file}: {one_of('filter_key', key, masks or ())}")
        wanted = {n.decode() if isinstance(n, bytes) else str(n) for n in masks[key][()].tolist()}
        return [name for name in names if name in wanted]

    def _episode(self, data: Any, file: Path, demo_name: str, episode_id: str) -> Episode:
        demo = group(data, demo_name)
        facts, notes = file_facts(data, file), []
        fps = self.config.fps or facts.fps
        views, count = self._views(demo, file, fps, facts, notes)
        rows = self._rows(demo, count, fps, notes)
        prompt = demo_prompt(demo) or facts.prompt or self.config.prompt
        notes += [] if prompt else ["no_prompt"]
        stated = attribute(demo, "num_samples")
        if stated not in (None, count):
            notes.append(f"declared_num_samples_differs:{stated}!={count}")
        return Episode(
            episode_id=episode_id,
            embodiment=self._body.same(self._spec(rows, tuple(views), fps, facts)),
            views=views,
            actions=rows.actions,
            state=rows.state,
            prompts=(prompt,) if prompt else (),
            reward=rows.reward,
            success=_success(demo),
            notes=(*facts.notes, *rows.notes, *notes),
            extra={"file": file.name, "demo": demo_name},
        )

    def _views(
        self, demo: Any, file: Path, fps: float, facts: FileFacts, notes: list[str]
    ) -> tuple[dict[str, ViewSource], int]:
        """Return the cameras and the number of rows."""
        obs = group(demo, "obs")
        if obs is None:
            raise DataError("has no observations; render them with robomimic's dataset_states_to_obs.py")
        keys = []
        for key in sorted(obs):
            node = dataset(obs, key)
            if is_images(node) and "depth" not in key:
                keys.append(key)
            elif node is not None and len(node.shape) >= 3:
                notes.append(f"array_left_out:{safe_name(key)}")
        if not keys:
            raise DataError("none of its observations are images; render it with cameras")
        found = {name.removesuffix("_image").removesuffix("_rgb"): key for name, key in view_names(keys).items()}
        turn = ("flip" if facts.upside_down else "none") if self.config.turn == "auto" else self.config.turn
        counts = {len(obs[key]) for key in keys}
        if len(counts) > 1:
            raise DataError(f"its cameras have {sorted(counts)} frames; they must be equally long")
        count = check_rows(counts.pop(), "it")
        views: dict[str, ViewSource] = {}
        for name, key in choose_views(found, self.config.views).items():
            times = np.arange(count, dtype=np.float64) / fps
            view = HDF5View(path=file, name=f"data/{demo.name.rpartition('/')[2]}/obs/{key}", times=times)
            views[name] = view if turn == "none" else TurnedView(view=view, turn=turn)
        notes += [] if turn == "none" else [f"images_turned:{turn}"]
        return views, count

    def _rows(self, demo: Any, count: int, fps: float, notes: list[str]) -> Rows:
        actions = None
        if self.config.action_key != _NONE:
            actions = read_table(demo, self.config.action_key)
            if actions is None:
                has = [key for key in demo if dataset(demo, key) is not None]
                raise DataError(one_of("action_key", self.config.action_key, [*has, _NONE]))
        if actions is not None and _has_no_operations(actions):
            notes.append("no_operation_actions")
        return as_rows(count, fps, actions, self._state(demo), read_table(demo, "rewards"))

    def _state(self, demo: Any) -> np.ndarray | None:
        obs, asked = group(demo, "obs"), self.config.state_keys
        if asked == (_NONE,):
            return None
        keys = asked or next((keys for keys in _STATE_KEYS if all(dataset(obs, key) is not None for key in keys)), ())
        parts = []
        for key in keys:
            part = read_table(obs, key)
            if part is None:
                raise DataError(one_of("state_keys", key, [*(obs or ()), _NONE]))
            parts.append(part.reshape(len(part), -1))
        if len({len(part) for part in parts}) > 1:
            raise DataError(f"the columns {', '.join(keys)} differ in length; rows are missing")
        return np.concatenate(parts, axis=1) if parts else None

    def _spec(self, rows: Rows, views: tuple[str, ...], fps: float, facts: FileFacts) -> EmbodimentSpec:
        action_dim, state_dim = rows.dims
        documented = action_dim == len(ROBOSUITE_ACTIONS) and self.config.action_key == "actions"
        family = "LIBERO" if facts.libero else "robomimic"
        gripper = "; gripper action -1 opens, 1 closes (robosuite)" if documented else ""
        spec = EmbodimentSpec(
            name=self.config.embodiment or safe_name(f"{family}_{facts.robot}".lower()),
            action_dim=action_dim,
            state_dim=state_dim,
            views=views,
            fps=fps,
            action_rate=fps if action_dim else 0.0,
            action_names=ROBOSUITE_ACTIONS if documented else (),
            action_units=units(self.config.action_units, ("normalised",) * 7 if documented else (), action_dim),
            description=f"{family} dataset, robot {facts.robot or 'not given'}{gripper}",
        )
        pose = ("x", "y", "z", "rx", "ry", "rz", "finger_left", "finger_right")
        return with_state_names(spec, pose if facts.libero else ())


def _has_no_operations(actions: np.ndarray) -> bool:
    """Return whether a step neither moves the arm nor changes the gripper, as OpenVLA's filter defines it."""
    if actions.ndim != 2 or actions.shape[1] < 2 or len(actions) < 2:
        return False
    still = np.linalg.norm(actions[1:, :-1], axis=1) < 1e-4
    return bool((still & (actions[1:, -1] == actions[:-1, -1])).any())


def _success(demo: Any) -> bool | None:
    """Return True if a sparse reward of 1 was given; other rewards tell nothing."""
    reward = read_table(demo, "rewards")
    sparse = reward is not None and np.isin(reward, (0, 1)).all() and (reward == 1).any()
    return True if sparse else None
