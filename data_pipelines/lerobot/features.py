"""Which columns of a LeRobot dataset are the views, the actions, the state and the instruction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.lerobot.layout import Layout
from data_pipelines.options import safe_name
from wam_video.errors import ConfigError, DataError, one_of

BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")

_NONE = "none"
_ACTION_KEYS = ("action", "actions")
_STATE_KEYS = ("observation.state", "state", "observation.states", "observation.qpos", "observation.robot_state")
_INSTRUCTION_WORDS = ("task_description", "language", "instruction", "action_text", "coarse_action")
_VIEW_PREFIXES = ("observation.images.", "observation.image.", "observation.", "images.")


@dataclass(frozen=True, kw_only=True)
class LeRobotConfig:
    """Options of the source; the defaults find the columns themselves."""

    views: tuple[str, ...] = ()
    """Cameras to keep, by view name or full feature key, in this order; empty keeps all that have files."""
    action_key: str = ""
    """Feature with the actions; `none` reads the dataset as video without actions."""
    state_key: str = ""
    """Feature with the proprioception; `none` leaves it out."""
    prompt_key: str = ""
    """Column with the instruction, as a task index or as text; empty looks for one."""
    embodiment: str = ""
    """Name of the body; empty takes `robot_type`."""
    action_units: tuple[str, ...] = ()
    """One unit for all dimensions or one each, e.g. `rad` or `normalised`; the format does not record them."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The choice that was made."""

    views: Mapping[str, str]
    """Feature key by view name."""
    action: str | None
    state: str | None
    prompts: tuple[str, ...]
    """Columns with the instruction, best first; empty falls back on the episode table."""
    annotations: tuple[str, ...]
    """Other annotation columns, kept as facts of the episode."""
    notes: tuple[str, ...]


def choose_columns(layout: Layout, config: LeRobotConfig) -> Columns:
    """Decide which features are read.

    Raises:
        ConfigError: An option names a feature that is not there, or the choice is ambiguous.
        DataError: No camera has frames.
    """
    views, notes = _choose_views(layout, config.views)
    action = _choose_vector(layout, "action_key", config.action_key, _ACTION_KEYS, ("action",))
    state = _choose_vector(layout, "state_key", config.state_key, _STATE_KEYS, ("state", "qpos"))
    if action is None:
        notes.append("no_action_feature")
    if state is None:
        notes.append("no_state_feature")
    annotations = [key for key in layout.features if key.startswith("annotation.")]
    texts = [key for key in layout.features if layout.features[key].get("dtype") == "string" and "." not in key]
    wanted = [key for key in (*annotations, *texts) if any(word in key for word in _INSTRUCTION_WORDS)]
    if config.prompt_key:
        if config.prompt_key not in layout.features:
            raise ConfigError(one_of("prompt_key", config.prompt_key, layout.features))
        wanted = [config.prompt_key]
    elif "task_index" in layout.features and not wanted:
        wanted = ["task_index"]
    others = tuple(key for key in annotations if key not in wanted)
    return Columns(
        views=views, action=action, state=state, prompts=tuple(wanted), annotations=others, notes=tuple(notes)
    )


def view_name(key: str, layout: Layout) -> str:
    """Return the name of a camera: `modality.json`'s if it has one, else the key without its prefix; no dots."""
    for name, entry in (layout.modality.get("video") or {}).items():
        if isinstance(entry, dict) and entry.get("original_key") == key:
            return safe_name(name)
    for prefix in _VIEW_PREFIXES:
        if key.startswith(prefix):
            return safe_name(key.removeprefix(prefix))
    return safe_name(key)


def dimension_names(layout: Layout, key: str | None, group: str, dim: int) -> tuple[str, ...]:
    """Return a name for each dimension of a vector feature, or nothing if the dataset has none that fit.

    `modality.json` slices (`left_arm` 0:7) win over `names` of info.json, for they say what moves.
    """
    if key is None:
        return ()
    named = [""] * dim
    for part, entry in (layout.modality.get(group) or {}).items():
        original = entry.get("original_key") or key if isinstance(entry, dict) else None
        if original != key or not {"start", "end"} <= set(entry):
            continue
        start, end = int(entry["start"]), int(entry["end"])
        for i in range(max(start, 0), min(end, dim)):
            named[i] = safe_name(part) if end - start == 1 else f"{safe_name(part)}_{i - start}"
    if all(named):
        return tuple(named)
    names = _flatten(layout.features[key].get("names"))
    return tuple(names) if len(names) == dim else ()


def is_channels_first(feature: Mapping[str, Any]) -> bool:
    """Return whether the declared shape of an image is channel, height, width."""
    shape, names = list(feature.get("shape") or ()), _flatten(feature.get("names"))
    if len(names) == 3:
        return names[0].startswith("channel")
    return len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4)


def declared_codec(feature: Mapping[str, Any]) -> str | None:
    """Return the codec that info.json declares (`info` in newer files, `video_info` in older), or None."""
    details = feature.get("info") or feature.get("video_info") or {}
    codec = details.get("video.codec")
    return str(codec) if codec else None


def _choose_views(layout: Layout, wanted: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    notes, usable = [], {}
    for key, feature in layout.features.items():
        if feature.get("dtype") not in ("video", "image"):
            continue
        details = feature.get("info") or feature.get("video_info") or {}
        name = view_name(key, layout)
        asked = key in wanted or name in wanted
        if details.get("video.is_depth_map") and not asked:
            notes.append(f"depth_view_left_out:{safe_name(key)}")
        elif feature["dtype"] == "video" and not layout.has_video_files(key):
            notes.append(f"declared_view_without_files:{safe_name(key)}")
        else:
            usable[name if name not in usable else safe_name(key)] = key
    if wanted:
        keys = {key: name for name, key in usable.items()}
        for name in wanted:
            if name not in usable and name not in keys:
                raise ConfigError(one_of("view", name, usable))
        usable = {keys.get(name, name): usable[keys.get(name, name)] for name in wanted}
    if not usable and layout.episodes:
        declared = [key for key, feature in layout.features.items() if feature.get("dtype") in ("video", "image")]
        raise DataError(
            f"{layout.root}: no camera has frames (declared: {', '.join(declared) or 'none'}); a world action model needs video"
        )
    return usable, notes


def _choose_vector(layout: Layout, option: str, asked: str, usual: Sequence[str], words: Sequence[str]) -> str | None:
    """Return the asked feature, else the first usual one, else the only one whose name says so."""
    vectors = [
        key
        for key, feature in layout.features.items()
        if key not in BOOKKEEPING
        and str(feature.get("dtype")).startswith(("float", "int"))
        and not key.startswith(("annotation.", "next."))
    ]
    if asked == _NONE:
        return None
    if asked:
        if asked not in vectors:
            raise ConfigError(one_of(option, asked, [*vectors, _NONE]))
        return asked
    for key in usual:
        if key in vectors:
            return key
    likely = [key for key in vectors if any(word in key.split(".")[-1] for word in words)]
    if len(likely) > 1:
        raise ConfigError(
            f"{option} is not given and several features fit: {', '.join(likely)}; choose one with --option {option}=..."
        )
    return likely[0] if likely else None


def _flatten(names: Any) -> list[str]:
    """Return `names` of info.json as one list; files hold null, lists, lists of lists and mappings of lists."""
    if isinstance(names, Mapping):
        return [name for value in names.values() for name in _flatten(value)]
    if isinstance(names, (list, tuple)):
        return [name for value in names for name in _flatten(value)]
    return [str(names)] if isinstance(names, str) else []
