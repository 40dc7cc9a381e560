"""The structure of an RLDS dataset: `features.json` as a flat table of leaves, and what is known of famous datasets."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wam_video.errors import DataError

_MAX_JSON_BYTES = 64 << 20
_CHANGES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
_METRES = ("m", "m", "m", "rad", "rad", "rad", "normalised")
_JOINTS = tuple(f"joint_{i}" for i in range(7))


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One array of the structure."""

    kind: str
    """`image`, `text` or `tensor`."""
    shape: tuple[int, ...]
    """Of one step; -1 where it varies."""
    dtype: str
    stepwise: bool
    """Whether it has a value for each step."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the documentation of a dataset says and its files do not."""

    fps: float
    actions: tuple[str, ...] = ()
    """Leaves under `steps`, end to end."""
    state: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    action_units: tuple[str, ...] = ()
    robot: str = ""
    description: str = ""


KNOWN: Mapping[str, Known] = {
    "bridge_dataset": Known(
        fps=5,
        robot="widowx",
        action_names=_CHANGES,
        action_units=_METRES,
        description="BridgeData V2: change of pose of the gripper, gripper 0 closed, 1 open",
    ),
    "bridge": Known(
        fps=5,
        robot="widowx",
        actions=("action/world_vector", "action/rotation_delta", "action/open_gripper"),
        action_names=_CHANGES,
        action_units=_METRES,
        description="BridgeData in Open X-Embodiment: change of pose of the gripper, open_gripper 1 opens",
    ),
    "droid": Known(
        fps=15,
        robot="droid",
        actions=("action_dict/joint_position", "action_dict/gripper_position"),
        state=("observation/joint_position", "observation/gripper_position"),
        action_names=(*_JOINTS, "gripper"),
        action_units=(*("rad",) * 7, "normalised"),
        description="DROID: absolute joint targets of a Franka arm, gripper 0 open, 1 closed",
    ),
    "fractal20220817_data": Known(
        fps=3,
        robot="google_robot",
        actions=("action/world_vector", "action/rotation_delta", "action/gripper_closedness_action"),
        action_names=_CHANGES,
        action_units=_METRES,
        description="RT-1: change of pose of the gripper, gripper_closedness 1 closes",
    ),
    "libero": Known(
        fps=20,
        robot="libero_panda",
        action_names=_CHANGES,
        action_units=("normalised",) * 7,
        description="LIBERO: change of pose in [-1, 1] (OSC_POSE), gripper as the copy defines it",
    ),
}
"""By name, or by how the name starts."""


def known(name: str) -> Known | None:
    """Return what is known of a dataset: `droid_100` is `droid`, `libero_10_no_noops` is `libero`."""
    names = [key for key in KNOWN if name == key or name.startswith(f"{key}_") or name == f"{key}s"]
    return KNOWN[max(names, key=len)] if names else None


def read_leaves(path: Path) -> dict[str, Leaf]:
    """Return the leaves of `features.json` by path, e.g. `steps/observation/image`.

    Raises:
        DataError: It is missing or broken, or describes no steps.
    """
    content = read_json(path)
    try:
        leaves = dict(_walk(content, (), stepwise=False))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: a feature is described in a way that is not known ({error})") from error
    if not any(leaf.stepwise for leaf in leaves.values()):
        raise DataError(f"{path}: describes no steps; an RLDS dataset has a sequence 'steps'")
    return leaves


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        DataError: It is missing, huge, or no JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); an RLDS dataset needs it") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}; it must be a JSON object")
    return content


def instruction_leaves(leaves: Mapping[str, Leaf]) -> list[str]:
    """Return the leaves with instructions, e.g. `language_instruction`, `_2` and `_3` of DROID."""
    words = ("language_instruction", "natural_language_instruction", "instruction", "task_instruction")
    found = []
    for path, leaf in leaves.items():
        name = path.rpartition("/")[2]
        usual = any(name == word or name.removeprefix(word).lstrip("_").isdigit() for word in words)
        if leaf.stepwise and usual and (leaf.kind == "text" or leaf.dtype in ("int32", "int64", "uint8", "string")):
            found.append(path)
    return sorted(found)


def action_leaves(leaves: Mapping[str, Leaf]) -> tuple[str, ...]:
    """Return the leaves that make up the action where nothing is known of the dataset: a tensor, or a group of them."""
    if "steps/action" in leaves:
        return ("action",)
    order = ("world_vector", "rotation_delta", "open_gripper", "gripper_closedness_action", "gripper_action")
    names = [path.removeprefix("steps/action/") for path in leaves if path.startswith("steps/action/")]
    names = [name for name in names if leaves[f"steps/action/{name}"].kind == "tensor" and "terminate" not in name]
    chosen = [name for name in order if name in names]
    return tuple(f"action/{name}" for name in (chosen or sorted(names)))


def _walk(node: Mapping[str, Any], path: Sequence[str], *, stepwise: bool) -> Iterator[tuple[str, Leaf]]:
    if "featuresDict" in node:
        for name, child in node["featuresDict"].get("features", {}).items():
            yield from _walk(child, (*path, name), stepwise=stepwise)
    elif "sequence" in node and not stepwise:
        yield from _walk(node["sequence"]["feature"], path, stepwise=path == ("steps",))
    elif "image" in node or "tensor" in node:
        kind = "image" if "image" in node else "tensor"
        shape = tuple(int(n) if n not in (None, "") else -1 for n in node[kind].get("shape", {}).get("dimensions", ()))
        dtype = str(node[kind].get("dtype") or ("uint8" if kind == "image" else "float32"))
        text = kind == "tensor" and dtype in ("string", "object")
        yield "/".join(path), Leaf(kind="text" if text else kind, shape=shape, dtype=dtype, stepwise=stepwise)
    elif "text" in node:
        yield "/".join(path), Leaf(kind="text", shape=(), dtype="string", stepwise=stepwise)
    else:  # a sequence in a sequence, a video, a label: named among what is left out
        yield "/".join(path), Leaf(kind="other", shape=(), dtype="unknown", stepwise=stepwise)
