"""What sources of row-wise recordings share: T rows are T frames, T states and T - 1 actions of one body.

A format that stores an action beside every frame has one action too many: nothing was seen after the last one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Shaped

from data_pipelines.options import safe_name
from wam_video.data.schema import EmbodimentSpec
from wam_video.errors import ConfigError, DataError, one_of

MAX_ROWS = 2_000_000
"""Frames of one recording (18 hours at 30 per second); a header that promises more is refused before anything is read."""


class RecordedSource:
    """What a source says of itself whose files hold recordings and nothing about them as a whole."""

    @property
    def licence(self) -> str:
        """Nothing: the format has no place for terms."""
        return ""

    @property
    def notes(self) -> tuple[str, ...]:
        """None: all oddities are those of a recording."""
        return ()


@dataclass(frozen=True, kw_only=True)
class RecordingConfig:
    """Options that all of these sources have."""

    views: tuple[str, ...] = ()
    """Cameras to keep, by view name or by their name in the file, in this order; empty keeps all."""
    embodiment: str = ""
    """Name of the body; empty takes what the dataset says."""
    action_units: tuple[str, ...] = ()
    """One unit for all dimensions or one each; empty takes what the format documents."""
    prompt: str = ""
    """Instruction of every recording that has none of its own."""
    fps: float = 0.0
    """Rows per second; 0 takes what the dataset records or the format documents."""

    def __post_init__(self) -> None:
        if not 0 <= self.fps <= 1000:
            raise ConfigError(f"option fps is {self.fps}; allowed: above 0 to 1000, or 0 for what the dataset says")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The numbers of one recording, as an episode holds them."""

    actions: Float[np.ndarray, "ta da"] | None
    state: Float[np.ndarray, "ta1 ds"] | None
    reward: Float[np.ndarray, " ta"] | None
    times: Float[np.ndarray, " f"]
    """Seconds of each frame."""
    notes: tuple[str, ...]

    @property
    def dims(self) -> tuple[int, int]:
        """Width of actions and of state; 0 where there are none."""
        return tuple(0 if array is None else array.shape[1] for array in (self.actions, self.state))  # type: ignore[return-value]


def check_rows(count: int, what: str) -> int:
    """Return `count` if a recording may have so many rows.

    Raises:
        DataError: Fewer than 2, or more than `MAX_ROWS`.
    """
    if not 2 <= count <= MAX_ROWS:
        raise DataError(f"{what} has {count} rows; allowed: 2 (one action) to {MAX_ROWS}")
    return count


def as_rows(
    frames: int,
    fps: float,
    actions: Shaped[np.ndarray, "t ..."] | None,
    state: Shaped[np.ndarray, "t ..."] | None = None,
    reward: Shaped[np.ndarray, " t"] | None = None,
) -> Rows:
    """Turn columns of one row a frame into what an episode holds.

    Args:
        frames: How many frames there are; all columns must be as long.
        fps: Rows per second.
        actions: One a frame; the last one is dropped. `frames - 1` of them are taken as they are.
        state: One a frame.
        reward: One a frame, or one an action.

    Returns:
        float32 arrays, and notes on what was lost: `last_action_without_frame`, `float64_stored_as_float32:...`,
        `state_without_actions_left_out`.

    Raises:
        DataError: A column has another length, is no matrix of finite numbers, or the recording is too short or too long.
    """
    check_rows(frames, "it")
    notes: list[str] = []
    columns = {"actions": actions, "state": state, "reward": reward}
    found: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        if column is None:
            continue
        allowed = (frames,) if name == "state" else (frames, frames - 1)
        if len(column) not in allowed:
            raise DataError(f"{name} have {len(column)} rows for {frames} frames; rows are missing")
        found[name] = _matrix(name, column, notes)
        if name == "actions" and len(column) == frames:
            notes.append("last_action_without_frame")
    if actions is None and state is not None:
        notes.append("state_without_actions_left_out")  # state rows are timed by actions
    moved = "actions" in found
    return Rows(
        actions=found["actions"][: frames - 1] if moved else None,
        state=found.get("state") if moved else None,
        reward=found["reward"][: frames - 1, 0] if moved and "reward" in found else None,
        times=np.arange(frames, dtype=np.float64) / fps,
        notes=tuple(notes),
    )


def check_finite(name: str, column: Shaped[np.ndarray, "t ..."]) -> None:
    """Refuse a column with a value that is not finite.

    Raises:
        DataError: It has one; the message names its row.
    """
    bad = ~np.isfinite(column.reshape(len(column), -1)).all(axis=1)
    if bad.any():
        raise DataError(f"{name}: row {int(np.flatnonzero(bad)[0])} is not finite; drop or mend the episode")


def _matrix(name: str, column: np.ndarray, notes: list[str]) -> Float[np.ndarray, "t d"]:
    if column.dtype.kind not in "fiub":
        raise DataError(f"{name} are of type {column.dtype}; they must be numbers")
    check_finite(name, column)
    matrix = np.ascontiguousarray(column.reshape(len(column), -1), np.float32)
    if column.dtype == np.float64 and not np.array_equal(matrix, column.reshape(len(column), -1)):
        notes.append(f"float64_stored_as_float32:{name}")
    check_finite(name, matrix)  # a float64 may be too large
    return matrix


class Body:
    """The one embodiment of a dataset: taken from its first recording, and held against every later one."""

    def __init__(self) -> None:
        self._spec: EmbodimentSpec | None = None

    def same(self, spec: EmbodimentSpec) -> EmbodimentSpec:
        """Return the dataset's spec, which is that of its first recording.

        Raises:
            DataError: Another width or rate than before, or a camera that the first one lacks; that recording is to be skipped.
        """
        if self._spec is None:
            self._spec = spec
        before = self._spec
        for what in ("action_dim", "state_dim", "fps", "action_rate"):
            old, new = getattr(before, what), getattr(spec, what)
            if old != new:
                raise DataError(f"{what} is {new:g}; in earlier recordings {old:g}; one dataset holds one body")
        if extra := [view for view in spec.views if view not in before.views]:
            raise DataError(
                f"camera {extra[0]!r} is not in the first recording ({', '.join(before.views)}); "
                f"keep only cameras that all have: --views {','.join(set(before.views) & set(spec.views)) or 'A,B'}"
            )
        return before


def units(given: Sequence[str], documented: Sequence[str], dim: int) -> tuple[str, ...]:
    """Return one unit a dimension: the given ones, else the documented ones where they fit, else none."""
    if given:
        return tuple(given) * dim if len(given) == 1 else tuple(given)
    return tuple(documented) if len(documented) == dim else ()


def choose_views(found: Mapping[str, str], wanted: Sequence[str]) -> dict[str, str]:
    """Return the cameras to read, name in the file by view name.

    Args:
        found: Name in the file by view name.
        wanted: View names or names in the file; all by default.

    Raises:
        ConfigError: One of them is not there.
    """
    if not wanted:
        return dict(found)
    names = {key: view for view, key in found.items()}
    for name in wanted:
        if name not in found and name not in names:
            raise ConfigError(one_of("view", name, found))
    return {names.get(name, name): found[names.get(name, name)] for name in wanted}


def view_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the name in the file by view name; views have no dots or slashes, and no two the same name."""
    short = {key: safe_name(key.rpartition("/")[2]) for key in keys}
    doubled = {name for name in short.values() if list(short.values()).count(name) > 1}
    return {safe_name(key) if short[key] in doubled else short[key]: key for key in keys}


def with_state_names(spec: EmbodimentSpec, names: Sequence[str]) -> EmbodimentSpec:
    """Return the spec with names of the state's dimensions, if there is one for each."""
    return replace(spec, state_names=tuple(names)) if len(names) == spec.state_dim else spec
