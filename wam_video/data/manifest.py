"""The manifest of a folder of shards: what is where, to the byte, and what the converter left out and why."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wam_video.data.schema import SCHEMA_VERSION, EmbodimentSpec
from wam_video.data.store import Store, as_store
from wam_video.errors import DataError

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class SampleEntry:
    """One clip in a shard."""

    key: str
    offset: int
    """Byte of the shard at which the first member's header starts."""
    bytes: int
    """Length of all its members with their headers and padding."""
    num_frames: int
    num_actions: int
    embodiment: str
    episode_id: str


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One tar file."""

    name: str
    split: str
    bytes: int
    sha256: str
    samples: tuple[SampleEntry, ...]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A recording that is not in the shards."""

    episode_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of a folder of shards, in their stored order."""

    schema_version: int = SCHEMA_VERSION
    dataset: str
    converter: str
    options: Mapping[str, Any]
    """Everything that the bytes of the shards depend on, as it was given."""
    embodiments: Mapping[str, EmbodimentSpec]
    shards: tuple[ShardEntry, ...]
    counts: Mapping[str, Any]
    """Episodes, samples, frames, actions and seconds, in all and per split."""
    skipped: tuple[Skipped, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)
    """How many episodes carry each note."""

    def split(self, split: str) -> tuple[tuple[ShardEntry, SampleEntry], ...]:
        """Return the samples of one split in their stored order, each with its shard."""
        return tuple((shard, sample) for shard in self.shards if shard.split == split for sample in shard.samples)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold at least one sample."""
        return tuple(sorted({shard.split for shard in self.shards if shard.samples}))


def save_manifest(manifest: Manifest, folder: Path) -> Path:
    """Write `manifest.json` into `folder`; the same manifest gives the same bytes."""
    path = Path(folder) / MANIFEST_NAME
    path.write_text(json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return path


def load_manifest(folder: Path | str | Store) -> Manifest:
    """Read the manifest of a folder of shards, on disk or in a store.

    Raises:
        DataError: The folder or its manifest is missing, broken, or of a newer schema, or the store does not answer.
    """
    store = as_store(folder)
    path = store.where(MANIFEST_NAME)
    try:
        text = store.read(MANIFEST_NAME).decode("utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{store.path!r} holds no {MANIFEST_NAME}; give a folder that `wam-video data convert` wrote"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} can't be read: {error.strerror or error}; check the address and your rights"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: not a manifest ({error}); convert the dataset again") from error
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: not a manifest ({error}); convert the dataset again") from error
    if not isinstance(raw, dict) or "schema_version" not in raw:
        raise DataError(f"{path}: not a manifest (no mapping with a schema_version); convert the dataset again")
    version = raw["schema_version"]
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema version is {version}; this library reads up to {SCHEMA_VERSION}: update wam-video"
        )
    try:
        return _from_dict(raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: a field is missing or wrong ({error}); convert the dataset again") from error


def _from_dict(raw: dict[str, Any]) -> Manifest:
    shards = (dict(s, samples=tuple(SampleEntry(**e) for e in s["samples"])) for s in raw["shards"])
    values = dict(
        raw,
        embodiments={name: EmbodimentSpec.from_dict(spec) for name, spec in raw["embodiments"].items()},
        shards=tuple(ShardEntry(**s) for s in shards),
        skipped=tuple(Skipped(**s) for s in raw["skipped"]),
    )
    manifest = Manifest(**values)
    for shard in manifest.shards:
        if Path(shard.name).name != shard.name or not shard.name.endswith(".tar"):
            raise TypeError(f"shard name {shard.name!r} is not the name of a tar file")
    return manifest


def hash_file(path: Path) -> str:
    """Return the sha256 of a file as hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_shard(folder: Path | str, shard: ShardEntry, *, hashes: bool = True) -> None:
    """Check that a shard is the file that the manifest describes.

    Args:
        folder: Where the shard lies.
        shard: Its entry.
        hashes: Also read the whole file and compare its sha256; otherwise only its size.

    Raises:
        DataError: It is missing, or its size or hash differs.
    """
    path = Path(folder) / shard.name
    if not path.is_file():
        raise DataError(f"shard {str(path)!r} is missing; copy the folder again or convert the dataset again")
    size = path.stat().st_size
    if size != shard.bytes:
        raise DataError(
            f"shard {str(path)!r} has {size} bytes; the manifest says {shard.bytes}: it is cut short or altered"
        )
    if hashes and (found := hash_file(path)) != shard.sha256:
        raise DataError(
            f"shard {str(path)!r} has sha256 {found[:12]}; the manifest says {shard.sha256[:12]}: it was altered"
        )


def verify_manifest(folder: Path | str, manifest: Manifest, *, hashes: bool = True) -> None:
    """Check every shard of a folder; see `verify_shard`.

    Raises:
        DataError: A shard is missing or altered.
    """
    for shard in manifest.shards:
        verify_shard(folder, shard, hashes=hashes)
