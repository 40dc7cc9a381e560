"""Tars as sequences of samples: members with one name up to the first dot. Nothing is ever unpacked to disk."""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wam_video.errors import DataError

MAX_SAMPLE_BYTES = 2 << 30
_READ = ("mp4", "json", "txt", "npy", "npz", "jpg", "jpeg", "png", "webp", "cls")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample of a tar."""

    key: str
    members: Mapping[str, bytes]
    """By what follows the first dot of the name; only kinds that are read."""
    left_out: tuple[str, ...] = field(default=())
    """Kinds of the others, e.g. `pkl`, which are never opened."""


def tar_files(path: Path) -> list[Path]:
    """Return the tar at `path`, or those in the folder or in its folder `shards`, by name."""
    if path.is_file():
        return [path] if path.suffix == ".tar" else []
    folders = [path, path / "shards"] if path.is_dir() else []
    return sorted(p for folder in folders if folder.is_dir() for p in folder.glob("*.tar") if p.is_file())


def read_samples(path: Path) -> Iterator[Sample | DataError]:
    """Yield the samples of a tar in order; where it can't be read on, the error is the last item."""
    key, members, left_out, size = "", {}, [], 0
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if not info.isreg():
                    left_out += [] if info.isdir() else ["link"]
                    continue
                folder, slash, base = info.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if folder + slash + stem != key:
                    if members or left_out:
                        yield Sample(key=key, members=members, left_out=tuple(left_out))
                    key, members, left_out, size = folder + slash + stem, {}, [], 0
                kind = suffix.rpartition(".")[2].lower()
                size += info.size
                if kind not in _READ or size > MAX_SAMPLE_BYTES or suffix in members:
                    left_out.append(kind if kind not in _READ else "too_large" if suffix not in members else "doubled")
                    continue
                content = tar.extractfile(info)
                members[suffix] = content.read() if content else b""
                if len(members[suffix]) != info.size:
                    raise DataError(f"{path}: member {info.name!r} is cut off; the tar is truncated: copy it again")
            end = tar.offset
        if members or left_out:
            yield Sample(key=key, members=members, left_out=tuple(left_out))
        _check_end(path, end)
    except DataError as error:
        yield error
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        yield DataError(f"{path}: the tar can't be read on after {key!r} ({error}); it is truncated: copy it again")


def _check_end(path: Path, end: int) -> None:
    """Refuse what follows the last member if it is not zeros: tarfile takes a broken header for the end of the archive."""
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(tarfile.RECORDSIZE)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise DataError(
            f"{path}: ends without the mark of its end, or is damaged at byte {end}; samples may be missing"
        )
