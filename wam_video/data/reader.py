"""Shards back to arrays: one sample by its byte offset, members checked by name before anything is decoded."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from wam_video.data.manifest import SampleEntry, ShardEntry
from wam_video.data.schema import MEMBER_SUFFIXES, SCHEMA_VERSION
from wam_video.data.video import open_video
from wam_video.errors import DataError

MAX_CLIP_BYTES = 8 << 30
"""Decoded pixels of one clip; more is refused before anything is decoded."""

_MAX_JSON_BYTES = 16 << 20
_ARRAYS = ("actions", "state", "reward")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One decoded sample: a stretch of one episode, in physical units."""

    video: Mapping[str, UInt8[np.ndarray, "f h w c"]]
    """By view, in the order of the embodiment's views."""
    actions: Float[np.ndarray, "ta da"] | None
    state: Float[np.ndarray, "ta1 ds"] | None
    reward: Float[np.ndarray, " ta"] | None
    info: Mapping[str, Any]
    """The sample's json."""

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        return sum(a.nbytes for a in (*self.video.values(), self.actions, self.state, self.reward) if a is not None)


def read_sample(folder: Path | str, shard: ShardEntry, sample: SampleEntry) -> dict[str, bytes]:
    """Read the members of one sample, by suffix (`front.mp4`, `actions.npy`, ...), and nothing else of the shard.

    Raises:
        DataError: The shard is missing or cut short, its tar headers are broken, or a member is not allowed in a shard.
    """
    path = Path(folder) / shard.name
    try:
        with path.open("rb") as file:
            file.seek(sample.offset)
            data = file.read(sample.bytes)
    except OSError as error:
        raise DataError(
            f"shard {str(path)!r} can't be read ({error.strerror}); copy or convert the dataset again"
        ) from error
    if len(data) != sample.bytes:
        raise DataError(
            f"shard {str(path)!r} ends within sample {sample.key!r}; it is cut short: copy or convert it again"
        )
    return parse_members(data, sample.key, str(path))


def parse_members(data: bytes, key: str, where: str) -> dict[str, bytes]:
    """Parse a slice of a tar that holds exactly one sample; see `read_sample`.

    Raises:
        DataError: Broken headers, a link or a path as member, a foreign or repeated or unlisted member.
    """
    members: dict[str, bytes] = {}
    end = 0
    at = f"shard {where!r}, sample {key!r}"
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                suffix = _check_member(info, key, at)
                if suffix in members:
                    raise DataError(f"{at}: member {info.name!r} comes twice; the shard was altered: convert it again")
                content = tar.extractfile(info)
                members[suffix] = content.read(info.size) if content else b""
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if len(members[suffix]) != info.size:
                    raise DataError(f"{at}: member {info.name!r} is cut short; copy or convert the dataset again")
    except (tarfile.TarError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{at}: the tar is corrupt ({error}); copy or convert the dataset again") from error
    if end != len(data):  # tarfile takes a broken header after the first for the end of the archive
        raise DataError(f"{at}: the tar is corrupt at byte {end} of {len(data)}; copy or convert the dataset again")
    if "json" not in members:
        raise DataError(f"{at}: it has no json member; the shard is corrupt: copy or convert the dataset again")
    return members


def _check_member(info: tarfile.TarInfo, key: str, at: str) -> str:
    """Return the suffix of a member that may be decoded."""
    if not info.isreg():
        raise DataError(
            f"{at}: member {info.name!r} is a link or no plain file, which a shard never holds; don't use this shard"
        )
    stem, _, suffix = info.name.partition(".")
    if stem != key or "/" in suffix or ".." in info.name:
        raise DataError(
            f"{at}: member {info.name!r} does not belong to it; the shard was altered: copy or convert it again"
        )
    if not allowed_suffix(suffix):
        raise DataError(
            f"{at}: member {info.name!r} is not allowed; a shard holds only .{', .'.join(MEMBER_SUFFIXES)}, "
            "and nothing else is ever opened: don't use this shard, or convert the dataset again"
        )
    return suffix


def allowed_suffix(suffix: str) -> bool:
    """Return whether a member `<key>.<suffix>` may stand in a shard."""
    parts = suffix.split(".")
    if len(parts) == 2 and parts[1] == "mp4":
        return bool(parts[0])
    if len(parts) == 3:
        return parts[0] == "latents" and parts[2] == "npy"
    return suffix in MEMBER_SUFFIXES and suffix not in ("mp4", "latents")


def load_npy(data: bytes, what: str) -> Shaped[np.ndarray, "..."]:
    """Decode a numeric array, never an object.

    Raises:
        DataError: Not an `.npy` file, of another type than numbers, or shorter than its header says.
    """
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise DataError(f"{what} is no numeric .npy array ({error}); convert the dataset again") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise DataError(
            f"{what} has type {getattr(array, 'dtype', type(array))}; only numbers are read: convert the dataset again"
        )
    return array


def sample_info(members: Mapping[str, bytes], at: str) -> dict[str, Any]:
    """Parse the json of a sample.

    Raises:
        DataError: It is no JSON object, too large, or of a newer schema.
    """
    raw = members["json"]
    try:
        if len(raw) > _MAX_JSON_BYTES:
            raise ValueError(f"{len(raw)} bytes")
        info = json.loads(raw)
        version = info["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{at}: its json is broken ({error}); convert the dataset again") from error
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise DataError(
            f"{at}: schema version is {version}; this library reads up to {SCHEMA_VERSION}: update wam-video"
        )
    return info


def sample_arrays(members: Mapping[str, bytes], info: Mapping[str, Any], at: str) -> dict[str, np.ndarray | None]:
    """Decode actions, state and reward, float32, and check their lengths against the sample's json.

    Raises:
        DataError: An array is broken, not finite, or of another length than the json says.
    """
    arrays: dict[str, np.ndarray | None] = {}
    rows = {
        "actions": info.get("num_actions", 0),
        "reward": info.get("num_actions", 0),
        "state": info.get("num_actions", 0) + 1,
    }
    for name in _ARRAYS:
        if f"{name}.npy" not in members:
            arrays[name] = None
            continue
        array = load_npy(members[f"{name}.npy"], f"{at}: {name}.npy").astype(np.float32, copy=False)
        if array.ndim != (1 if name == "reward" else 2) or len(array) != rows[name] or not np.isfinite(array).all():
            raise DataError(
                f"{at}: {name} of shape {array.shape} should be {rows[name]} finite rows; convert the dataset again"
            )
        arrays[name] = array
    return arrays


def decode_clip(
    members: Mapping[str, bytes], *, views: Sequence[str] | None = None, decoder: str = "auto", where: str = "sample"
) -> Clip:
    """Decode the members of one sample.

    Args:
        members: As `read_sample` returns them.
        views: Cameras to decode, in that order; absent ones are left out. All, by name, by default.
        decoder: See `video.open_video`; shards are H.264, which both decoders know.
        where: Shard and key, for messages.

    Raises:
        DataError: A member is broken or contradicts the json; the message names it.
    """
    info = sample_info(members, where)
    present = [suffix.removesuffix(".mp4") for suffix in sorted(members) if suffix.endswith(".mp4")]
    video = {}
    for view in [v for v in (views if views is not None else present) if v in present]:
        name = f"{where}, member {view}.mp4"
        reader = open_video(members[f"{view}.mp4"], decoder=decoder, name=name)
        count = len(reader)
        if count != info.get("num_frames"):
            raise DataError(
                f"{name} has {count} frames, its json says {info.get('num_frames')}; it is truncated: convert the dataset again"
            )
        first = reader.get([0])
        if first.nbytes * count > MAX_CLIP_BYTES:
            raise DataError(
                f"{name} would take {first.nbytes * count >> 20} MiB decoded; allowed: {MAX_CLIP_BYTES >> 20} MiB"
            )
        video[view] = reader.get(range(count))
        reader.close()
    return Clip(video=video, info=info, **sample_arrays(members, info, where))


def load_clip(
    folder: Path | str,
    shard: ShardEntry,
    sample: SampleEntry,
    *,
    views: Sequence[str] | None = None,
    decoder: str = "auto",
) -> Clip:
    """Read and decode one sample; see `read_sample` and `decode_clip`."""
    where = f"shard {str(Path(folder) / shard.name)!r}, sample {sample.key!r}"
    return decode_clip(read_sample(folder, shard, sample), views=views, decoder=decoder, where=where)
