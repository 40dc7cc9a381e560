"""Shards back to arrays: one sample by its byte offset, members checked by name before anything is decoded."""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from jaxtyping import Float, Shaped, UInt8, UInt16

from wam_video.data.lazy_video import LazyVideo
from wam_video.data.manifest import SampleEntry, ShardEntry
from wam_video.data.rows import Rows, Span
from wam_video.data.schema import MEMBER_SUFFIXES, SCHEMA_VERSION
from wam_video.data.store import LocalStore, Store, UnreachableError, as_store
from wam_video.data.video import open_video
from wam_video.errors import DataError

MAX_CLIP_BYTES = 8 << 30
"""Decoded pixels of one clip; more is refused before anything is decoded."""

LAZY_BYTES = 8 << 20
"""A view of so many decoded bytes is decoded as its frames are taken, where that is asked for; a smaller one at once."""

_MAX_JSON_BYTES = 16 << 20
_ARRAYS = ("actions", "state", "reward")
_ENCODED = ("latents", "teacher")
"""Kinds of members by view that hold what was made of each window before training."""


REASONS = ("missing", "unreachable", "truncated", "tar", "json", "video", "arrays", "manifest", "listed")
"""Why a sample can't be used: not there, no answer in time, cut short, broken, against the manifest, or named in `data.skip`."""


class SampleError(DataError):
    """One sample that can't be used, and which of `REASONS` it is; the others of its shard may be sound."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, str]]:
        """Cross from a worker process with both arguments."""
        return SampleError, (str(self), self.reason)


@contextmanager
def because(reason: str) -> Iterator[None]:
    """Turn a `DataError` that is raised within into a `SampleError` for this reason."""
    try:
        yield
    except SampleError:
        raise
    except DataError as error:
        raise SampleError(str(error), reason) from error


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
    latents: Mapping[str, UInt16[np.ndarray, "n c t h w"] | Rows] = field(default_factory=dict)
    """By view, of every encoded window; see `data.latents`."""
    teacher: Mapping[str, UInt16[np.ndarray, "n d t h w"] | Rows] = field(default_factory=dict)
    """Likewise, a teacher's features."""

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        encoded = (*self.latents.values(), *self.teacher.values())
        arrays = (*self.video.values(), *encoded, self.actions, self.state, self.reward)
        return sum(array.nbytes for array in arrays if array is not None)


def read_sample(folder: Path | str | Store, shard: ShardEntry, sample: SampleEntry) -> dict[str, bytes]:
    """Read the members of one sample, by suffix (`front.mp4`, `actions.npy`, ...), and nothing else of the shard.

    Raises:
        SampleError: The shard is missing or cut short, its tar headers are broken, or a member is not allowed in a shard.
    """
    store = as_store(folder)
    where = store.where(shard.name)
    try:
        spans = ((other.offset, other.bytes) for other in shard.samples)
        data = store.read(shard.name, (sample.offset, sample.bytes), tag=shard.sha256, spans=spans)
    except OSError as error:
        kinds = {FileNotFoundError: "missing", UnreachableError: "unreachable"}
        raise SampleError(
            f"shard {where!r} can't be read ({error.strerror or error}); copy or convert the dataset again",
            kinds.get(type(error), "unreachable"),
        ) from error
    if len(data) != sample.bytes:
        raise SampleError(
            f"shard {where!r} ends within sample {sample.key!r}; it is cut short: copy or convert it again", "truncated"
        )
    with because("tar"):
        return parse_members(data, sample.key, where)


def parse_members(data: bytes, key: str, where: str) -> dict[str, bytes]:
    """Parse a slice of a tar that holds exactly one sample; see `read_sample`.

    Raises:
        DataError: Broken headers, a link or a path as member, a foreign or repeated or unlisted member.
    """
    return _parse(io.BytesIO(data), len(data), key, where, None)


def _parse(
    file: IO[bytes], length: int, key: str, where: str, later: dict[str, tuple[int, int]] | None
) -> dict[str, bytes]:
    """Parse a tar of one sample; with `later`, what was encoded is not read but put there as (first byte, length)."""
    members: dict[str, bytes] = {}
    end = 0
    at = f"shard {where!r}, sample {key!r}"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                suffix = _check_member(info, key, at)
                if suffix in members or suffix in (later or ()):
                    raise DataError(f"{at}: member {info.name!r} comes twice; the shard was altered: convert it again")
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if later is not None and suffix.partition(".")[0] in _ENCODED:
                    later[suffix] = (info.offset_data, info.size)
                    continue
                content = tar.extractfile(info)
                members[suffix] = content.read(info.size) if content else b""
                if len(members[suffix]) != info.size:
                    raise DataError(f"{at}: member {info.name!r} is cut short; copy or convert the dataset again")
    except (tarfile.TarError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{at}: the tar is corrupt ({error}); copy or convert the dataset again") from error
    if end != length:  # tarfile takes a broken header after the first for the end of the archive
        raise DataError(f"{at}: the tar is corrupt at byte {end} of {length}; copy or convert the dataset again")
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
        known = parts[0] in _ENCODED or (parts[0] == "source" and parts[1] in _ARRAYS)
        return known and parts[2] == "npy"
    return suffix in MEMBER_SUFFIXES and suffix not in ("mp4", "source", *_ENCODED)


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
    members: Mapping[str, bytes],
    *,
    views: Sequence[str] | None = None,
    decoder: str = "auto",
    where: str = "sample",
    latent_views: Sequence[str] = (),
    lazy: bool = False,
) -> Clip:
    """Decode the members of one sample.

    Args:
        members: As `read_sample` returns them.
        views: Cameras to decode, in that order; absent ones are left out. All, by name, by default.
        decoder: See `video.open_video`; shards are H.264, which both decoders know.
        where: Shard and key, for messages.
        latent_views: Cameras whose stored latents and teacher features are read, too.
        lazy: Large videos are `LazyVideo`s, for windows; what is broken in them shows when it is taken.

    Raises:
        SampleError: A member is broken or contradicts the json; the message names it.
    """
    with because("json"):
        info = sample_info(members, where)
    with because("arrays"):
        arrays = sample_arrays(members, info, where)
    present = [suffix.removesuffix(".mp4") for suffix in sorted(members) if suffix.endswith(".mp4")]
    with because("video"):
        video = {
            view: _decode_video(
                members[f"{view}.mp4"], info.get("num_frames"), decoder, f"{where}, member {view}.mp4", lazy
            )
            for view in (views if views is not None else present)
            if view in present
        }
    with because("arrays"):
        latents, teacher = (_decode_encoded(kind, members, latent_views, where) for kind in _ENCODED)
    # a LazyVideo has what `cut_window` needs of an array, and who asks for it cuts windows
    return Clip(video=cast(Mapping[str, np.ndarray], video), info=info, latents=latents, teacher=teacher, **arrays)


def _decode_encoded(
    kind: str, members: Mapping[str, bytes], views: Sequence[str], where: str
) -> dict[str, UInt16[np.ndarray, "n c t h w"]]:
    found = {}
    for view in views:
        suffix = f"{kind}.{view}.npy"
        if suffix not in members:
            continue
        array = load_npy(members[suffix], f"{where}: {suffix}")
        if array.ndim != 5 or array.dtype != np.uint16:
            raise DataError(
                f"{where}: {suffix} has type {array.dtype} and shape {array.shape}; expected uint16 of n c t h w"
            )
        found[view] = array
    return found


def _decode_video(
    data: bytes, num_frames: int | None, decoder: str, name: str, lazy: bool
) -> UInt8[np.ndarray, "f h w c"] | LazyVideo:
    reader = open_video(data, decoder=decoder, name=name) if decoder == "decord" else LazyVideo(data, name)
    count = len(reader)
    if count != num_frames:
        raise DataError(
            f"{name} has {count} frames, its json says {num_frames}; it is truncated: convert the dataset again"
        )
    size = reader.nbytes if isinstance(reader, LazyVideo) else reader.get([0]).nbytes * count
    if size > MAX_CLIP_BYTES:
        raise DataError(f"{name} would take {size >> 20} MiB decoded; allowed: {MAX_CLIP_BYTES >> 20} MiB")
    if isinstance(reader, LazyVideo):
        return reader if lazy and size >= LAZY_BYTES else reader.whole()
    frames = reader.get(range(count))
    reader.close()
    return frames


def load_clip(
    folder: Path | str | Store,
    shard: ShardEntry,
    sample: SampleEntry,
    *,
    views: Sequence[str] | None = None,
    decoder: str = "auto",
    latent_views: Sequence[str] = (),
    lazy: bool = False,
) -> Clip:
    """Read and decode one sample; see `read_sample` and `decode_clip`."""
    store = as_store(folder)
    where = f"shard {store.where(shard.name)!r}, sample {sample.key!r}"
    if latent_views and isinstance(store, LocalStore):
        members, (latents, teacher) = _read_rows(store.folder / shard.name, sample, latent_views)
        clip = decode_clip(members, views=views, decoder=decoder, where=where)
        return replace(clip, latents=latents, teacher=teacher)
    members = read_sample(store, shard, sample)
    return decode_clip(members, views=views, decoder=decoder, where=where, latent_views=latent_views, lazy=lazy)


def _read_rows(
    path: Path, sample: SampleEntry, views: Sequence[str]
) -> tuple[dict[str, bytes], tuple[dict[str, Rows], dict[str, Rows]]]:
    """Read a sample on disk but for what was encoded, of which a window needs little: its latents and teacher features."""
    later: dict[str, tuple[int, int]] = {}
    try:
        with because("tar"), path.open("rb") as file:
            # buffered, because headers are read in small pieces
            span = io.BufferedReader(Span(file, sample.offset, sample.bytes), 4096)
            members = _parse(span, sample.bytes, sample.key, str(path), later)
    except OSError as error:
        raise SampleError(f"shard {str(path)!r} can't be read: {error.strerror or error}", "missing") from error
    with because("arrays"):
        rows: dict[str, dict[str, Rows]] = {kind: {} for kind in _ENCODED}
        for name, view in ((f"{kind}.{view}.npy", view) for kind in _ENCODED for view in views):
            if place := later.get(name):
                what = f"shard {str(path)!r}, sample {sample.key!r}: {name}"
                rows[name.partition(".")[0]][view] = Rows(path, sample.offset + place[0], place[1], what)
    return members, (rows["latents"], rows["teacher"])
