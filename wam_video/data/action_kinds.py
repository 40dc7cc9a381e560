"""Actions as a model is told them: as recorded, relative to the state at time 0, or as steps from one to the next.

Recordings, batches and what a pipeline returns hold actions as the robot takes them. On the way into a model, absolute ones may
become relative: a position less that of the state, a rotation as seen from the state's (`R_state^T R_action`); or deltas: the same,
each from the action before it, the first from the state. Both are undone exactly with the same state.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from wam_video.data.rotations import WIDTHS, convert_rotation, from_matrix, to_matrix
from wam_video.data.schema import EmbodimentSpec
from wam_video.errors import ConfigError, one_of

KINDS = ("stored", "relative", "delta")
"""`stored` is as the shards hold it."""
ALL = "*"
"""Stands for every channel that is not named."""

Kinds = Mapping[str, Mapping[str, str]]
"""Embodiment -> channel (or rotation, or `*`) -> one of `KINDS`."""


@dataclass(frozen=True)
class _Change:
    """One number, or one rotation, that is told otherwise than it is stored."""

    kind: str
    action: slice
    state: slice
    rotation: str
    """Of the action; empty for a number."""
    state_rotation: str


class ActionKinds:
    """How one embodiment's actions are told to a model."""

    def __init__(self, spec: EmbodimentSpec, kinds: Mapping[str, str]) -> None:
        """Find the state's channel of each action's, by name.

        Raises:
            ConfigError: An unknown channel or kind, an action that is not known to be absolute, or a state without its channel.
        """
        self._name = spec.name
        names = spec.action_names or tuple(str(i) for i in range(spec.action_dim))
        units = _units(spec)
        for channel, kind in kinds.items():
            if kind not in KINDS:
                raise ConfigError(one_of(f"data.actions.{spec.name}.{channel}", kind, KINDS))
            if channel != ALL and channel not in units:
                raise ConfigError(one_of(f"channel of data.actions.{spec.name}", channel, [ALL, *units]))
        self.changes: list[_Change] = []
        for name, place in units.items():
            kind = kinds.get(name, kinds.get(ALL, "stored"))
            if kind != "stored":
                self.changes.append(_change(spec, kind, name, place, names[place]))

    def needed(self, state_mask: Bool[Tensor, "b ds"]) -> Bool[Tensor, " b"]:
        """Return for each row of a mask `b ds` whether all of the state that is needed is known."""
        known = torch.ones(len(state_mask), dtype=torch.bool, device=state_mask.device)
        for change in self.changes:
            known &= state_mask[:, change.state].all(dim=1)
        return known

    def tell(self, actions: Float[Tensor, "b ta da"], state: Float[Tensor, "b ds"]) -> Float[Tensor, "b ta da"]:
        """Return recorded actions as the model is told them, float32."""
        return self._through(actions, state, _tell_number, _tell_rotation)

    def recall(self, actions: Float[Tensor, "b ta da"], state: Float[Tensor, "b ds"]) -> Float[Tensor, "b ta da"]:
        """Return what a model says as the robot takes it; undoes `tell`."""
        return self._through(actions, state, _recall_number, _recall_rotation)

    def _through(self, actions: Tensor, state: Tensor, number, rotation) -> Tensor:
        told, wide, origin = actions.double().clone(), actions.double(), state.double()
        for change in self.changes:
            part, start = wide[..., change.action], origin[:, None, change.state]
            if not change.rotation:
                told[..., change.action] = number(part, start, change.kind)
                continue
            turned = rotation(_matrix(part, change.rotation), _matrix(start, change.state_rotation), change.kind)
            told[..., change.action] = from_matrix(turned, change.rotation)
        return told.float()


def _matrix(x: Tensor, source: str) -> Tensor:
    """Return rotation matrices, also of nine numbers that a model says, which are none by themselves."""
    return to_matrix(convert_rotation(x, source, "rot6d"), "rot6d") if source == "matrix" else to_matrix(x, source)


def _tell_number(part: Tensor, start: Tensor, kind: str) -> Tensor:
    before = start if kind == "relative" else torch.cat([start, part[:, :-1]], dim=1)
    return part - before


def _recall_number(part: Tensor, start: Tensor, kind: str) -> Tensor:
    return start + (part if kind == "relative" else part.cumsum(dim=1))


def _tell_rotation(part: Tensor, start: Tensor, kind: str) -> Tensor:
    before = start if kind == "relative" else torch.cat([start, part[:, :-1]], dim=1)
    return rearrange(before, "... i j -> ... j i") @ part


def _recall_rotation(part: Tensor, start: Tensor, kind: str) -> Tensor:
    if kind == "relative":
        return start @ part
    turned = [start[:, 0] @ part[:, 0]]
    for step in part.unbind(1)[1:]:
        turned.append(turned[-1] @ step)
    return torch.stack(turned, dim=1)


def _units(spec: EmbodimentSpec) -> dict[str, slice]:
    """Return the place of each number by its name, and of each rotation by its own."""
    names = spec.action_names or tuple(str(i) for i in range(spec.action_dim))
    found: dict[str, slice] = {}
    place = 0
    while place < spec.action_dim:
        rotation = spec.action_rotations[place] if spec.action_rotations else ""
        width = WIDTHS.get(rotation, 1)
        name = names[place].removesuffix("_0") if rotation else names[place]
        found[name] = slice(place, place + width)
        place += width
    return found


def _change(spec: EmbodimentSpec, kind: str, name: str, place: slice, names: tuple[str, ...]) -> _Change:
    what = f"data.actions.{spec.name}.{name} is {kind!r}"
    remedy = "convert with --embodiment FILE.yaml that says so, or set it to stored"
    if not spec.action_kinds or set(spec.action_kinds[place]) != {"absolute"}:
        found = set(spec.action_kinds[place]) - {""} if spec.action_kinds else set()
        raise ConfigError(f"{what}, but the action is {', '.join(found) or 'not known to be absolute'}; {remedy}")
    rotation = spec.action_rotations[place.start] if spec.action_rotations else ""
    state_names = list(spec.state_names)
    first = next((n for n in (names[0], name, f"{name}_0") if n in state_names), None)
    if first is None:
        raise ConfigError(
            f"{what}, but the state has no {name!r} (it has {', '.join(state_names) or 'no names'}); {remedy}"
        )
    start = state_names.index(first)
    state_rotation = spec.state_rotations[start] if spec.state_rotations else ""
    if bool(rotation) != bool(state_rotation):
        raise ConfigError(f"{what}, but only one of action and state is known to be a rotation; {remedy}")
    stop = start + WIDTHS.get(state_rotation, 1)
    units = (
        spec.action_units[place.start] if spec.action_units else "",
        spec.state_units[start] if spec.state_units else "",
    )
    if not rotation and units[0] != units[1]:
        raise ConfigError(
            f"{what}, but the action is in {units[0] or 'no known unit'}, the state in {units[1] or 'none'}; {remedy}"
        )
    return _Change(kind, place, slice(start, stop), rotation, state_rotation)
