"""Tars as sequences of samples: members with one name up to the first dot. Nothing is ever unpacked to disk."""

import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
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
    key = ""
    try:
        with tarfile.open(path, "r:") as tar:
            for key, members in groupby((info for info in tar if not info.isdir()), lambda info: _split(info.name)[0]):
                yield _sample(path, tar, key, members)
            end = tar.offset
        _check_end(path, end)
    except DataError as error:
        yield error
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        yield DataError(f"{path}: the tar can't be read on after {key!r} ({error}); it is truncated: copy it again")


def _sample(path: Path, tar: tarfile.TarFile, key: str, infos: Iterable[tarfile.TarInfo]) -> Sample:
    """Read the members of one sample that are of a kind that is read."""
    members: dict[str, bytes] = {}
    left_out: list[str] = []
    size = 0
    for info in infos:
        suffix = _split(info.name)[1]
        size += info.size
        if why := _reason(info, suffix, members, size):
            left_out.append(why)
            continue
        content = tar.extractfile(info)
        members[suffix] = content.read() if content else b""
        if len(members[suffix]) != info.size:
            raise DataError(f"{path}: member {info.name!r} is cut off; the tar is truncated: copy it again")
    return Sample(key=key, members=members, left_out=tuple(left_out))


def _reason(info: tarfile.TarInfo, suffix: str, members: Mapping[str, bytes], size: int) -> str:
    """Return why a member is left out, or nothing."""
    kind = suffix.rpartition(".")[2].lower()
    if not info.isreg():
        return "link"
    if kind not in _READ:
        return kind or "unnamed"
    if suffix in members:
        return "doubled"
    return "too_large" if size > MAX_SAMPLE_BYTES else ""


def _split(name: str) -> tuple[str, str]:
    """Return the key of a member, and what follows its first dot; dots of folders don't count."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix


def _check_end(path: Path, end: int) -> None:
    """Refuse what follows the last member if it is not zeros: tarfile takes a broken header for the end of the archive."""
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(tarfile.RECORDSIZE)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise DataError(
            f"{path}: ends without the mark of its end, or is damaged at byte {end}; samples may be missing"
        )
