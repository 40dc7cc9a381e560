"""Reads HDF5 files of any writer; the only module here that imports h5py. Nothing outside the file is ever followed."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from data_pipelines.frames import as_uint8, decode_image
from data_pipelines.recording import MAX_ROWS
from wam_video.data.video import MAX_FRAME_PIXELS
from wam_video.errors import DataError, MissingDependencyError, WamError

SUFFIXES = (".hdf5", ".h5")
MAX_CHUNK_BYTES = 1 << 30
"""HDF5 decompresses whole chunks; a larger one is refused."""

MAX_TABLE_BYTES = 1 << 30
"""Of a column of numbers; a header that promises more is refused before memory is asked for."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_FRAMES_AT_ONCE = 16
_SLACK_BYTES = 4096
"""What a compressor may add to noise."""


def hdf5_files(path: Path | str) -> list[Path]:
    """Return the HDF5 file at `path`, or those in the folder (not deeper) in the order of their numbers."""
    path = Path(path)
    if path.is_file():
        return [path] if path.suffix.lower() in SUFFIXES and _is_hdf5(path) else []
    if not path.is_dir():
        return []
    found = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != "."]
    return sorted(found, key=natural_key)


def natural_key(name: Path | str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts `demo_10` after `demo_9`."""
    text = name.name if isinstance(name, Path) else name
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open a file for reading; whatever goes wrong with it becomes one `DataError` that names it.

    Raises:
        DataError: It is missing, truncated, damaged, or no HDF5.
        MissingDependencyError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError("h5py", "data", f"reading {path.name}") from error
    if not path.is_file():
        raise DataError(f"missing file {path}")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, WamError):
            raise
        reason = str(error).strip("'\" ").splitlines()[0][:160] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: can't be read as HDF5 ({reason}); it is truncated or damaged: copy it again"
        ) from error


def dataset(file: Any, name: str) -> Any | None:
    """Return the dataset `name` of a file or group, or None if there is none.

    Raises:
        DataError: It, or a group above it, leads out of the file, or its chunks are too large to be decompressed.
    """
    node = _walk(file, name)
    if node is None or not hasattr(node, "shape"):
        return None
    if node.external or node.is_virtual:
        raise DataError(f"{node.name} keeps its values in other files; that is not followed: repack it with h5repack")
    size = node.dtype.itemsize * int(np.prod(node.chunks or (1,), dtype=np.float64))
    if size > MAX_CHUNK_BYTES:
        raise DataError(f"{node.name} has chunks of {size >> 20} MiB; at most {MAX_CHUNK_BYTES >> 20}: repack it")
    return node


def group(file: Any, name: str) -> Any | None:
    """Return the group `name`, or None; see `dataset`."""
    node = _walk(file, name)
    return None if node is None or hasattr(node, "shape") else node


def read_table(file: Any, name: str) -> Shaped[np.ndarray, "t ..."] | None:
    """Return a whole dataset of numbers, or None if there is none.

    Raises:
        DataError: It holds no numbers, or would need more memory than any recording does.
    """
    node = dataset(file, name)
    if node is None:
        return None
    if node.dtype.kind not in "fiub" or not node.shape:
        raise DataError(f"{node.name} has type {node.dtype} and shape {node.shape}; expected rows of numbers")
    if node.shape[0] > MAX_ROWS or node.dtype.itemsize * float(np.prod(node.shape, dtype=np.float64)) > MAX_TABLE_BYTES:
        raise DataError(f"{node.name} has shape {node.shape}; no recording is so long, it is not read")
    _check_chunks(node, 0, len(node))
    return np.asarray(node[()])


def attribute(node: Any, name: str) -> Any:
    """Return an attribute as plain Python (bytes become text), or None if it is absent or of a strange type."""
    value = node.attrs.get(name)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True, kw_only=True, eq=False)
class HDF5View:
    """A camera whose frames are a dataset of an HDF5 file, read a few at a time (a `schema.ViewSource`).

    The dataset is `f h w 3` of numbers, or `f` rows of encoded images: text of any length, or uint8 `f n` with zeros at
    the end.
    """

    path: Path
    name: str
    """Of the dataset in the file."""
    times: Float[np.ndarray, " f"]
    swap_colours: bool = False
    """Exchange red and blue."""

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Yield every frame in order.

        Raises:
            DataError: The file ends before, or a frame is damaged.
        """
        count = len(self.times)
        for start in range(0, count, _FRAMES_AT_ONCE):
            with open_hdf5(self.path) as file:  # opened anew, for no file may stay open between two frames
                node = dataset(file, self.name)
                if node is None or len(node) < count:
                    raise DataError(
                        f"{self.path}: {self.name} has {0 if node is None else len(node)} of {count} frames"
                    )
                _check_chunks(node, start, min(start + _FRAMES_AT_ONCE, count))
                rows = list(node[start : min(start + _FRAMES_AT_ONCE, count)])
            for number, row in enumerate(rows, start):
                yield self._decode(row, f"{self.path}: {self.name}, frame {number}")

    def _decode(self, row: Any, where: str) -> UInt8[np.ndarray, "h w c"]:
        if isinstance(row, bytes):
            return decode_image(row, where, swap_colours=self.swap_colours)
        row = np.asarray(row)
        if row.ndim == 1:
            return decode_image(row.tobytes(), where, swap_colours=self.swap_colours)
        frame = as_uint8(row, where)
        return frame[..., ::-1] if self.swap_colours else frame


def is_images(node: Any) -> bool:
    """Return whether a dataset holds colour frames of a bearable size, or encoded images."""
    if node is None or not node.shape:
        return False
    if len(node.shape) == 4:
        return (
            node.shape[-1] in (3, 4) and node.shape[1] * node.shape[2] <= MAX_FRAME_PIXELS and node.dtype.kind in "uf"
        )
    return is_encoded(node)


def is_encoded(node: Any) -> bool:
    """Return whether a dataset holds encoded images: bytes of any length, or rows of uint8 padded with zeros."""
    if len(node.shape) == 1:
        return node.dtype.kind in "SO"
    return len(node.shape) == 2 and node.dtype == np.uint8 and node.shape[1] > 16


def _check_chunks(node: Any, start: int, stop: int) -> None:
    """Refuse chunks of these rows that are stored larger than they are: HDF5 would inflate them, however much comes out."""
    if node.chunks is None or node.compression is None:
        return
    raw = node.dtype.itemsize * int(np.prod(node.chunks))
    first = start // node.chunks[0] * node.chunks[0]
    spans = [range(first, stop, node.chunks[0])]
    spans += [range(0, total, size) for total, size in zip(node.shape[1:], node.chunks[1:], strict=True)]
    for place in product(*spans):
        stored = node.id.get_chunk_info_by_coord(place).size
        if stored > raw + _SLACK_BYTES:
            raise DataError(
                f"{node.name}: chunk at {place} is stored in {stored} bytes and should hold {raw}; it is damaged"
            )


def _walk(node: Any, name: str) -> Any | None:
    import h5py

    for part in name.strip("/").split("/"):
        if not isinstance(node, h5py.Group):
            return None
        link = node.get(part, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise DataError(f"{node.name}/{part} is a link to another file; that is not followed: copy the data in")
        node = node.get(part)
    return node


def _is_hdf5(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SIGNATURE)) == _SIGNATURE
    except OSError:
        return False
