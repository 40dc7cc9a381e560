"""A robot's conventions as a YAML file, and recordings brought to them: which number is what, in which unit, which way round.

```yaml
name: widowx
views: {front: image_0}          # name in the shards: name in the recording; in this order
fps: 5                           # refused if the recording says another
actions:                         # in this order; what is not listed is left out
  - {name: x, take: [dx], unit: m, recorded_unit: mm, kind: delta, frame: base}
  - {name: turn, take: [droll, dpitch, dyaw], recorded_rotation: euler_xyz, recorded_unit: deg, rotation: rot6d, kind: delta}
  - {name: gripper, take: [gripper], gripper: {open: 0.0, closed: 0.04}, kind: absolute}   # stored: 1 is open, 0 closed
```
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from wam_video.config import load
from wam_video.data.rotations import WIDTHS, convert_rotation
from wam_video.data.schema import EmbodimentSpec, Episode, check_name
from wam_video.errors import ConfigError, DataError, one_of

UNITS: Mapping[str, tuple[str, float]] = {
    "m": ("length", 1.0),
    "cm": ("length", 1e-2),
    "mm": ("length", 1e-3),
    "inch": ("length", 0.0254),
    "rad": ("angle", 1.0),
    "deg": ("angle", math.pi / 180),
    "m/s": ("speed", 1.0),
    "mm/s": ("speed", 1e-3),
    "rad/s": ("turning", 1.0),
    "deg/s": ("turning", math.pi / 180),
    "N": ("force", 1.0),
    "Nm": ("torque", 1.0),
    "normalised": ("normalised", 1.0),
    "unknown": ("unknown", 1.0),
}
"""What a unit measures, and how many of the first of its kind it is."""
KINDS = ("absolute", "delta")
OPEN = "open"
"""Unit of a gripper in the shards: 1 is open, 0 is closed."""
_ANGLES = ("euler_xyz", "axis_angle")


@dataclass(frozen=True, kw_only=True)
class GripperConfig:
    """What the recording holds at a gripper's two ends."""

    open: float = 1.0
    closed: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.open) and math.isfinite(self.closed)):
            raise ConfigError(f"a gripper's ends are open {self.open} and closed {self.closed}; they must be finite")


@dataclass(frozen=True, kw_only=True)
class ChannelConfig:
    """One number of the shards, or the numbers of one rotation."""

    name: str = ""
    take: list[str] = field(default_factory=list)
    """Names, or places from 0, in the recording; empty: the channel of this name."""
    unit: str = ""
    """In the shards; empty: as recorded."""
    recorded_unit: str = ""
    """Empty: what the source says, else `unit`."""
    recorded_scale: float = 1.0
    """Times which the recording holds the quantity, e.g. 50 for CALVIN's relative positions."""
    kind: str = ""
    """Of an action: `absolute` or `delta`; empty: not known."""
    frame: str = ""
    """What it is measured in, e.g. `base`."""
    rotation: str = ""
    """Representation in the shards, a name of `rotations.WIDTHS`; empty: as recorded."""
    recorded_rotation: str = ""
    """Representation in the recording; empty: no rotation."""
    gripper: GripperConfig | None = None
    """Given: the channel becomes 1 where open and 0 where closed, linear between."""

    def __post_init__(self) -> None:
        what = f"channel {self.name!r}"
        if not self.name:
            raise ConfigError(f"a channel that takes {self.take} has no name; give it one")
        for key, value, allowed in (
            ("unit", self.unit, UNITS),
            ("recorded_unit", self.recorded_unit, UNITS),
            ("kind", self.kind, KINDS),
            ("rotation", self.rotation, WIDTHS),
            ("recorded_rotation", self.recorded_rotation, WIDTHS),
        ):
            if value and value not in allowed:
                raise ConfigError(one_of(f"{what}: {key}", value, allowed))
        if self.rotation and not self.recorded_rotation:
            raise ConfigError(f"{what} has rotation {self.rotation!r} but no recorded_rotation; say what is recorded")
        width = WIDTHS[self.recorded_rotation] if self.recorded_rotation else 1
        if len(self.channels) != width:
            raise ConfigError(f"{what} takes {len(self.channels)} numbers; allowed: {width}")
        if self.recorded_rotation and (self.gripper or self.unit or self.recorded_scale != 1):
            raise ConfigError(
                f"{what} is a rotation; it has no unit (angles are stored in rad), gripper or recorded_scale"
            )
        if self.gripper is not None and (
            self.gripper.open == self.gripper.closed or self.unit or self.recorded_unit or self.recorded_scale != 1
        ):
            raise ConfigError(f"{what} is a gripper; give two different ends, and no units or recorded_scale")
        if self.gripper is not None and self.kind == "delta":
            raise ConfigError(f"{what} has a gripper's ends, which a delta has not; give recorded_scale instead")
        if not (math.isfinite(self.recorded_scale) and self.recorded_scale):
            raise ConfigError(f"{what}: recorded_scale is {self.recorded_scale}; it must be finite and not 0")

    @property
    def channels(self) -> tuple[str, ...]:
        """What is read of the recording."""
        return tuple(self.take) or (self.name,)

    @property
    def stored_rotation(self) -> str:
        """Representation in the shards; empty where this is none."""
        return self.rotation or self.recorded_rotation

    @property
    def names(self) -> tuple[str, ...]:
        """Of the numbers in the shards."""
        width = WIDTHS.get(self.stored_rotation, 1)
        return (self.name,) if width == 1 else tuple(f"{self.name}_{i}" for i in range(width))


@dataclass(frozen=True, kw_only=True)
class BodyConfig:
    """A robot."""

    name: str = ""
    description: str = ""
    views: dict[str, str] = field(default_factory=dict)
    """Name in the shards -> name in the recording, in the order in which a model sees them; empty: all, as recorded."""
    fps: float = 0.0
    """Of the recording; another is refused. 0: any."""
    action_rate: float = 0.0
    actions: list[ChannelConfig] = field(default_factory=list)
    """Empty: as recorded."""
    state: list[ChannelConfig] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_name("embodiment", self.name)
        for view in self.views:
            check_name(f"view of embodiment {self.name!r}", view)
        for what, channels in (("actions", self.actions), ("state", self.state)):
            names = [name for channel in channels for name in channel.names]
            if doubled := sorted({name for name in names if names.count(name) > 1}):
                raise ConfigError(f"embodiment {self.name!r}: {what} has {doubled[0]!r} twice; names must differ")
        if odd := [channel.name for channel in self.state if channel.kind == "delta"]:
            raise ConfigError(f"embodiment {self.name!r}: state {odd[0]!r} is delta; a state is where the robot is")


def load_body(path: str | Path) -> BodyConfig:
    """Read a robot's file.

    Raises:
        ConfigError: It is missing, has an unknown key, or contradicts itself; the message names the file.
    """
    try:
        return load(BodyConfig, [path])
    except (ConfigError, DataError) as error:
        raise ConfigError(f"{path}: {error}") from error


def body_from_dict(values: Mapping[str, Any]) -> BodyConfig:
    """Rebuild a robot's description from its JSON form."""

    def channel(raw: Mapping[str, Any]) -> ChannelConfig:
        ends = raw.get("gripper")
        return ChannelConfig(**{**raw, "gripper": None if ends is None else GripperConfig(**ends)})

    channels = {what: [channel(raw) for raw in values.get(what, ())] for what in ("actions", "state")}
    return BodyConfig(**{**values, **channels})


def body_to_dict(body: BodyConfig) -> dict[str, Any]:
    """Return a robot's description as JSON-able containers."""
    return asdict(body)


def with_body(episode: Episode, body: BodyConfig) -> Episode:
    """Return a recording in a robot's conventions.

    Raises:
        ConfigError: The file asks for a channel or view that the recording does not have, or contradicts what it says.
        DataError: The recording's rows are not as wide as it says.
    """
    spec = episode.embodiment
    for what, stated, found in (
        ("fps", body.fps, spec.fps),
        ("action_rate", body.action_rate, spec.action_rate),
    ):
        if stated and abs(stated - found) > 1e-3 * stated:
            raise ConfigError(
                f"embodiment {body.name!r} has {what} {stated:g}, the recording {found:g}; mend the file, or where the source "
                "did not record its rate, give it with --option fps=F"
            )
    views = body.views or {view: view for view in spec.views}
    for view in views.values():
        if view not in spec.views:
            raise ConfigError(one_of(f"view of embodiment {body.name!r}", view, spec.views))
    facts: dict[str, Any] = {"name": body.name, "views": tuple(views)}
    arrays: dict[str, Any] = {}
    notes: list[str] = []
    for what, channels, rows in (("actions", body.actions, episode.actions), ("state", body.state, episode.state)):
        width = spec.action_dim if what == "actions" else spec.state_dim
        if not channels or not width:
            continue
        if rows is not None and rows.shape[1:] != (width,):
            raise DataError(f"{what} has shape {rows.shape}; expected {width} numbers a row")
        facts |= _facts(channels, spec, what)  # of episodes whose actions are missing, too: it is one body
        if rows is not None:
            arrays[what] = _converted(rows, channels, spec, what, notes)
    return replace(
        episode,
        embodiment=replace(spec, description=body.description or spec.description, **facts),
        views={new: episode.views[old] for new, old in views.items() if old in episode.views},
        notes=(*episode.notes, *notes),
        **arrays,
    )


def _converted(
    rows: Float[np.ndarray, "n d"], channels: Sequence[ChannelConfig], spec: EmbodimentSpec, what: str, notes: list[str]
) -> Float[np.ndarray, "n e"]:
    wide, columns, used = rows.astype(np.float64), [], set()
    for channel in channels:
        places = [_place(name, channel, spec, what) for name in channel.channels]
        used.update(places)
        part, unit = wide[:, places], _recorded_unit(channel, spec, what, places)
        if channel.recorded_rotation:
            if channel.recorded_rotation in _ANGLES:
                part = part * UNITS[unit][1]
            turned = convert_rotation(torch.from_numpy(part), channel.recorded_rotation, channel.stored_rotation)
            columns.append(turned.numpy())
        elif channel.gripper is not None:
            columns.append((part - channel.gripper.closed) / (channel.gripper.open - channel.gripper.closed))
        else:
            factor = UNITS[unit][1] / UNITS[channel.unit or unit][1]
            columns.append(part * factor / channel.recorded_scale)
    left = sorted(set(range(rows.shape[1])) - used)
    notes += [f"channels_left_out:{what}:{len(left)}"] if left else []
    return np.ascontiguousarray(np.concatenate(columns, axis=1), np.float32)


def _place(name: str, channel: ChannelConfig, spec: EmbodimentSpec, what: str) -> int:
    names = spec.action_names if what == "actions" else spec.state_names
    width = spec.action_dim if what == "actions" else spec.state_dim
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < width:
        return int(name)
    allowed = [*names, f"0 to {width - 1}"]
    raise ConfigError(one_of(f"channel {channel.name!r}: {what} {name!r} of the recording; it", name, allowed))


def _recorded_unit(channel: ChannelConfig, spec: EmbodimentSpec, what: str, places: Sequence[int]) -> str:
    """Return the unit of the recording: what the file says and the source does not deny."""
    units = spec.action_units if what == "actions" else spec.state_units
    said = {units[place] for place in places} - {"", "unknown"} if units else set()
    if channel.recorded_scale != 1:
        said.discard("normalised")  # what the scale undoes
    stated = channel.recorded_unit
    if stated and (other := sorted(said - {stated})):
        raise ConfigError(
            f"channel {channel.name!r} has recorded_unit {stated!r}, the source says {other[0]!r}; mend the file"
        )
    unit = stated or (said.pop() if len(said) == 1 else "") or channel.unit
    if channel.recorded_rotation in _ANGLES and UNITS.get(unit, ("",))[0] != "angle":
        raise ConfigError(f"channel {channel.name!r} is recorded as angles; say which with recorded_unit: rad or deg")
    unit = unit or "unknown"
    if channel.unit and (unit not in UNITS or UNITS[unit][0] != UNITS[channel.unit][0]):
        raise ConfigError(f"channel {channel.name!r} is recorded in {unit}, which can't become {channel.unit}")
    return unit if unit in UNITS else "unknown"


def _facts(channels: Sequence[ChannelConfig], spec: EmbodimentSpec, what: str) -> dict[str, Any]:
    """Return the fields of the spec that the channels decide."""
    names, units, kinds, frames, rotations = [], [], [], [], []
    for channel in channels:
        count = len(channel.names)
        places = [_place(name, channel, spec, what) for name in channel.channels]
        names += channel.names
        kinds += [channel.kind] * count
        frames += [channel.frame] * count
        rotations += [channel.stored_rotation] * count
        if channel.recorded_rotation:
            unit = "rad" if channel.stored_rotation in _ANGLES else "normalised"
        elif channel.gripper is not None:
            unit = OPEN
        else:
            unit = channel.unit or _recorded_unit(channel, spec, what, places)
        units += [unit] * count
    prefix = "action" if what == "actions" else "state"
    facts: dict[str, Any] = {
        f"{prefix}_dim": len(names),
        f"{prefix}_names": tuple(names),
        f"{prefix}_units": tuple(units),
    }
    facts[f"{prefix}_rotations"] = tuple(rotations) if any(rotations) else ()
    if what == "actions":
        facts["action_kinds"] = tuple(kinds) if any(kinds) else ()
        facts["action_frames"] = tuple(frames) if any(frames) else ()
    return facts
