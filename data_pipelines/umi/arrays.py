"""Zarr v2 arrays in a folder or a zip, read chunk by chunk.

An own reader and not zarr's: it reads only numbers, never a pickle, never more than a chunk's declared size, and it knows
which chunks are missing, which zarr fills with zeros without a word.
"""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from data_pipelines.frames import as_uint8
from data_pipelines.umi.chunks import check_codec, decode_chunk
from wam_video.errors import DataError

MAX_CHUNK_BYTES = 1 << 30
MAX_TABLE_BYTES = 1 << 30
_MAX_HEADER_BYTES = 1 << 20


class Store:
    """A folder or a zip, as files by name.

    Raises:
        DataError: It is neither, or the zip is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        self._names: frozenset[str] = frozenset()
        if path.is_file():
            try:
                self._zip = zipfile.ZipFile(path)
            except (zipfile.BadZipFile, OSError) as error:
                raise DataError(f"{path}: not a readable zip ({error}); it is truncated: copy it again") from error
            self._names = frozenset(self._zip.namelist())
        elif not path.is_dir():
            raise DataError(f"{path}: is neither a folder nor a zip")

    def __contains__(self, name: str) -> bool:
        return name in self._names if self._zip else (self.path / name).is_file()

    def read(self, name: str, limit: int = 2 * MAX_CHUNK_BYTES) -> bytes:
        """Return a file of at most `limit` bytes.

        Raises:
            DataError: It is larger, missing or damaged.
        """
        try:
            if self._zip:
                size = self._zip.getinfo(name).file_size
                content = self._zip.read(name) if size <= limit else b""
            else:
                size = (self.path / name).stat().st_size
                content = (self.path / name).read_bytes() if size <= limit else b""
        except (OSError, KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
            raise DataError(f"{self.path}: {name} can't be read ({error}); it is truncated or damaged") from error
        if size > limit:
            raise DataError(f"{self.path}: {name} has {size} bytes; at most {limit} are read")
        return content

    def arrays(self, group: str) -> list[str]:
        """Return the names of the arrays in a group, in alphabetical order."""
        if self._zip:
            parts = [name.split("/") for name in self._names if name.startswith(f"{group}/")]
            return sorted({p[1] for p in parts if len(p) == 3 and p[2] == ".zarray"})
        folder = self.path / group
        return sorted(p.name for p in folder.iterdir() if (p / ".zarray").is_file()) if folder.is_dir() else []


def open_store(path: Path) -> Store:
    """Open a folder or zip, once in a process while it does not change: the index of a large zip takes seconds."""
    return _open_store(path, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=4)
def _open_store(path: Path, changed: int) -> Store:
    return Store(path)


class ZarrArray:
    """One array.

    Raises:
        DataError: Its header is broken, or asks for what is not read: objects, filters, foreign compressors, huge chunks.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.where = f"{store.path}: {name}"
        try:
            header = json.loads(store.read(f"{name}/.zarray", _MAX_HEADER_BYTES))
            self.shape = tuple(int(n) for n in header["shape"])
            self.chunks = tuple(int(n) for n in header["chunks"])
            self.dtype = np.dtype(header["dtype"])
            self.compressor: dict[str, Any] | None = header["compressor"]
            self._order = str(header["order"])
            self._separator = str(header.get("dimension_separator", "."))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.where}: its .zarray is broken ({error}); copy the dataset again") from error
        if self.dtype.kind not in "fiub" or header.get("filters"):
            raise DataError(
                f"{self.where}: type {self.dtype}, filters {header.get('filters')}; only plain numbers are read"
            )
        if header.get("zarr_format") != 2 or len(self.shape) != len(self.chunks) or min((1, *self.chunks)) < 1:
            raise DataError(
                f"{self.where}: shape {self.shape}, chunks {self.chunks}; it is broken or not zarr version 2"
            )
        if self.dtype.itemsize * float(np.prod(self.chunks, dtype=np.float64)) > MAX_CHUNK_BYTES:
            raise DataError(f"{self.where}: chunks of {self.chunks}; at most {MAX_CHUNK_BYTES >> 20} MiB: rechunk it")
        check_codec(self.compressor, self.where)
        self._fill = header.get("fill_value") or 0
        self._last: tuple[tuple[int, ...], np.ndarray] | None = None

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def read(self, start: int, stop: int) -> Shaped[np.ndarray, "t ..."]:
        """Return the rows `start .. stop - 1`; missing chunks hold the fill value.

        Raises:
            DataError: A chunk is damaged, or the rows would take more than `MAX_TABLE_BYTES`.
        """
        shape = (stop - start, *self.shape[1:])
        if self.dtype.itemsize * float(np.prod(shape, dtype=np.float64)) > MAX_TABLE_BYTES:
            raise DataError(f"{self.where}: rows of shape {shape}; no recording is so long, it is not read")
        out = np.full(shape, self._fill, self.dtype)
        for index in self._indices(start, stop):
            chunk = self._chunk(index)
            if chunk is None:
                continue
            low = [i * n for i, n in zip(index, self.chunks, strict=True)]
            first = max(start, low[0])
            last = min(stop, low[0] + self.chunks[0])
            target = [slice(first - start, last - start)]
            source = [slice(first - low[0], last - low[0])]
            for at, n, total in zip(low[1:], self.chunks[1:], self.shape[1:], strict=True):
                target.append(slice(at, min(at + n, total)))
                source.append(slice(0, min(n, total - at)))
            out[tuple(target)] = chunk[tuple(source)]
        return out

    def missing_chunks(self, start: int, stop: int) -> int:
        """Return how many chunks of these rows have no file: never written, all zeros, or lost in a copy."""
        return sum(self._file(index) not in self.store for index in self._indices(start, stop))

    def _indices(self, start: int, stop: int) -> Iterator[tuple[int, ...]]:
        spans = [range(start // self.chunks[0], -(-stop // self.chunks[0]))]
        spans += [range(-(-total // n)) for total, n in zip(self.shape[1:], self.chunks[1:], strict=True)]
        yield from product(*spans)

    def _file(self, index: tuple[int, ...]) -> str:
        return f"{self.name}/{self._separator.join(str(i) for i in index)}"

    def _chunk(self, index: tuple[int, ...]) -> np.ndarray | None:
        if self._last is not None and self._last[0] == index:
            return self._last[1]
        name = self._file(index)
        if name not in self.store:
            return None
        shape = self.chunks if self._order == "C" else self.chunks[::-1]
        try:
            chunk = decode_chunk(self.store.read(name), self.compressor, shape, self.dtype)
        except DataError as error:
            raise DataError(f"{self.store.path}: chunk {name} {error}") from error
        self._last = (index, chunk if self._order == "C" else chunk.T)
        return self._last[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class ZarrView:
    """A camera whose frames are rows of a zarr array, read one chunk at a time (a `schema.ViewSource`)."""

    path: Path
    name: str
    """Of the array in the store."""
    start: int
    """Row of the first frame."""
    times: Float[np.ndarray, " f"]

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Yield every frame in order.

        Raises:
            DataError: A chunk is damaged.
        """
        array = ZarrArray(open_store(self.path), self.name)
        for row in range(self.start, self.start + len(self.times)):
            yield as_uint8(array.read(row, row + 1)[0], f"{array.where}, row {row}")
