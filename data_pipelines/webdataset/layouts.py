"""What a sample of a WebDataset holds, in the two layouts that are read: video clips, and frames with a table beside them."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.frames import EncodedImagesView
from data_pipelines.npz import npy_array, npz_array, npz_names, open_npz
from data_pipelines.options import safe_name
from wam_video.data.schema import ViewSource
from wam_video.data.video import open_video
from wam_video.errors import DataError

FOUNDRY_RATE = 10.0
"""Steps per second of TRI's recordings; the shards do not record it."""

_FRAME = re.compile(r"(?P<camera>.+)_t(?P<step>-?\d+)\.(jpg|jpeg|png|webp)$")
_TEXT_KEYS = ("caption", "captions", "text", "texts", "instruction", "language_instruction", "prompt", "prompts")
_ACTION_KEYS, _STATE_KEYS = ("actions", "action"), ("state", "states", "observation.state", "proprio")
_MAX_JSON_BYTES = 64 << 20


@dataclass(kw_only=True)
class Content:
    """One sample, understood."""

    views: dict[str, ViewSource]
    num_frames: int
    fps: float
    action_rate: float
    actions: np.ndarray | None = None
    state: np.ndarray | None = None
    action_names: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipView:
    """A camera whose video lies in memory (a `schema.ViewSource`)."""

    video: bytes
    times: Float[np.ndarray, " f"]
    where: str

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Yield every frame in order.

        Raises:
            DataError: The video is damaged.
        """
        reader = open_video(self.video, name=self.where)
        try:
            for start in range(0, len(self.times), 32):
                yield from reader.get(range(start, min(start + 32, len(self.times))))
        finally:
            reader.close()


def is_foundry(members: Mapping[str, Any]) -> bool:
    """Return whether a sample is one of vla_foundry: frames `<camera>_t<step>.jpg` and `lowdim.npz`."""
    return "lowdim.npz" in members and any(_FRAME.fullmatch(name) for name in members)


def is_clip(members: Mapping[str, Any]) -> bool:
    """Return whether a sample holds video."""
    return any(name == "mp4" or name.endswith(".mp4") for name in members)


def read_clip(members: Mapping[str, bytes], where: str, fps: float) -> Content:
    """Understand a clip: `mp4` or `<camera>.mp4`, `txt`, `json`, and actions and state as `.npy`, in an `.npz` or the json.

    Raises:
        DataError: A part is damaged.
    """
    facts = read_json(members.get("json"), where)
    videos = {
        name.removesuffix("mp4").rstrip(".") or "camera": name for name in sorted(members) if name.endswith("mp4")
    }
    counts, rates = {}, {}
    for camera, name in videos.items():
        reader = open_video(members[name], name=f"{where}.{name}")
        counts[camera], rates[camera] = len(reader), reader.fps
        reader.close()
    rate = fps or next(iter(rates.values()))
    if not rate > 0 or (not fps and max(rates.values()) > 1.01 * min(rates.values())):
        raise DataError(
            f"{where}: its cameras have rates {rates}; they must be one and above 0, or give --option fps=F"
        )
    count = min(counts.values())
    times = np.arange(count, dtype=np.float64) / rate
    views: dict[str, ViewSource] = {
        safe_name(camera): ClipView(video=members[name], times=times, where=f"{where}.{name}")
        for camera, name in videos.items()
    }
    content = Content(views=views, num_frames=count, fps=rate, action_rate=rate)
    content.notes += [f"longer_than_other_views:{safe_name(c)}" for c, n in counts.items() if n > count]
    arrays = _arrays(members, facts, where)
    content.actions = _first(arrays, _ACTION_KEYS)
    content.state = _first(arrays, _STATE_KEYS)
    content.notes += [f"array_left_out:{safe_name(n)}" for n in arrays if n not in (*_ACTION_KEYS, *_STATE_KEYS)]
    text = members["txt"].decode("utf-8", "replace").strip() if "txt" in members else ""
    content.prompts = texts(facts) or ((text,) if text else ())
    content.extra = {
        key: facts[key] for key in ("url", "key", "status", "episode_id") if isinstance(facts.get(key), str)
    }
    return content


def read_foundry(members: Mapping[str, bytes], where: str, rate: float, asked: Sequence[str]) -> Content:
    """Understand a sample of vla_foundry: some frames around a moment, and a table with more steps.

    Args:
        members: Of the sample.
        where: For messages.
        rate: Steps per second; 0 takes `FOUNDRY_RATE`.
        asked: Columns that make up the action; the commanded poses and grippers by default.

    Raises:
        DataError: A part is damaged, or the frames are not evenly spaced steps of the table.
    """
    facts = read_json(members.get("metadata.json"), where)
    if facts.get("is_padded") or facts.get("past_padding") or facts.get("future_padding"):
        raise DataError(f"{where}: is padded at an end of its recording with steps that never happened")
    frames: dict[str, dict[int, bytes]] = {}
    for name, content in members.items():
        if match := _FRAME.fullmatch(name):
            frames.setdefault(match["camera"], {})[int(match["step"])] = content
    steps = sorted(next(iter(frames.values())))
    gaps = np.diff(steps)
    if any(sorted(camera) != steps for camera in frames.values()) or len(set(gaps.tolist())) != 1:
        raise DataError(
            f"{where}: its cameras have frames at {steps}; all must have the same, evenly spaced, at least 2"
        )
    rate, spacing = rate or FOUNDRY_RATE, int(gaps[0])
    with open_npz(members["lowdim.npz"], f"{where}.lowdim.npz") as file:
        names = npz_names(file)
        action = list(asked) or foundry_columns(names, "robot__action__")
        state = foundry_columns(names, "robot__actual__")
        if missing := [name for name in action if name not in names]:
            raise DataError(f"{where}: lowdim.npz has no {missing[0]!r}; it has {', '.join(names)}")
        columns = {name: npz_array(file, name, where) for name in (*action, *state)}
    shown = list(facts.get("image_timesteps") or ())
    first = int(facts.get("lowdim_start_timestep") or 0)
    skip = int(shown[0]) - first if shown else 0
    if skip < 0 or len(shown) not in (0, len(steps)):
        raise DataError(f"{where}: its frames are of steps {shown}, its table starts at {first}; they don't meet")
    times = np.arange(len(steps)) * spacing / rate
    views: dict[str, ViewSource] = {
        safe_name(camera): EncodedImagesView(images=[kept[s] for s in steps], times=times, where=f"{where}.{camera}")
        for camera, kept in sorted(frames.items())
    }
    language = read_json(members.get("language_instructions.json"), where)
    texts_found = [t for part in ("original", "randomized") for t in language.get(part) or () if isinstance(t, str)]
    return Content(
        views=views,
        num_frames=len(steps),
        fps=rate / spacing,
        action_rate=rate,
        actions=_stack(columns, action)[skip:],
        state=_stack(columns, state)[skip:] if state else None,
        action_names=tuple(f"{safe_name(name)}_{i}" for name in action for i in range(_width(columns[name]))),
        prompts=tuple(dict.fromkeys(text.strip() for text in texts_found if text.strip())),
        extra={k: facts[k] for k in ("episode_id", "anchor_timestep") if k in facts},
    )


def foundry_columns(names: Sequence[str], prefix: str) -> list[str]:
    """Return the columns of a pose: of each arm xyz, rotation (6 numbers) and gripper, the absolute ones."""
    kept = []
    poses = [n for n in names if n.startswith(f"{prefix}poses__") and n.endswith(("__xyz", "__rot_6d"))]
    arms = sorted({name.removeprefix(f"{prefix}poses__").partition("::")[0] for name in poses})
    for arm in arms:
        own = [n for n in poses if n.startswith(f"{prefix}poses__{arm}::")]
        kept += sorted(own, key=lambda n: n.endswith("rot_6d"))
        kept += sorted(n for n in names if n.startswith(f"{prefix}grippers__{arm}::"))
    return kept


def texts(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the captions in a sample's json."""
    for key in _TEXT_KEYS:
        value = facts.get(key)
        found = [text.strip() for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
        if any(found):
            return tuple(dict.fromkeys(text for text in found if text))
    return ()


def read_json(content: bytes | None, where: str) -> dict[str, Any]:
    """Return the object in a json member; nothing if there is none.

    Raises:
        DataError: It is no JSON object, or huge.
    """
    if content is None:
        return {}
    try:
        if len(content) > _MAX_JSON_BYTES:
            raise ValueError(f"{len(content)} bytes")
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: its json is broken ({error})") from error
    return found if isinstance(found, dict) else {}


def _arrays(members: Mapping[str, bytes], facts: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
    """Return all arrays of a clip by name: of `.npy`, of any `.npz`, and lists of the json that look like columns."""
    arrays = {}
    for name in sorted(members):
        if name.endswith(".npy"):
            arrays[name.removesuffix(".npy")] = npy_array(members[name], f"{where}.{name}")
        elif name.endswith("npz"):
            with open_npz(members[name], f"{where}.{name}") as file:
                arrays |= {key: npz_array(file, key, where) for key in npz_names(file)}
    for key in (*_ACTION_KEYS, *_STATE_KEYS):
        if key not in arrays and isinstance(facts.get(key), list):
            try:
                arrays[key] = np.asarray(facts[key], np.float64)
            except (TypeError, ValueError) as error:
                raise DataError(f"{where}: {key} of its json are no numbers or differ in length ({error})") from error
    return arrays


def _first(arrays: Mapping[str, np.ndarray], keys: Sequence[str]) -> np.ndarray | None:
    return next((arrays[key] for key in keys if key in arrays), None)


def _stack(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    if len({len(columns[name]) for name in names}) != 1:
        raise DataError("its columns differ in length, or there are none; steps are missing")
    return np.concatenate([columns[name].reshape(len(columns[name]), -1) for name in names], axis=1)


def _width(column: np.ndarray) -> int:
    return int(np.prod(column.shape[1:]))
