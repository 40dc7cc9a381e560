"""Arrays of `.npy` and `.npz` files of unknown origin: numbers only, and never more memory than the file's own size."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from wam_video.errors import DataError

MAX_ARRAY_BYTES = 1 << 30


@contextmanager
def open_npz(source: Path | bytes, where: str) -> Iterator[zipfile.ZipFile]:
    """Open an `.npz`; whatever is wrong with it becomes one `DataError`.

    Raises:
        DataError: It is missing, truncated or damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"missing file {where}") from error
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: not a readable npz ({error}); it is truncated: copy it again") from error


def npz_names(file: zipfile.ZipFile) -> list[str]:
    """Return the names of the arrays."""
    return [name.removesuffix(".npy") for name in file.namelist() if name.endswith(".npy")]


def npz_array(file: zipfile.ZipFile, name: str, where: str) -> Shaped[np.ndarray, "..."]:
    """Return one array of an `.npz`.

    Raises:
        DataError: There is none of that name, or see `npy_array`.
    """
    member = f"{name}.npy"
    if member not in file.namelist():
        raise DataError(f"{where}: has no array {name!r}; it has {', '.join(npz_names(file))}")
    if (size := file.getinfo(member).file_size) > MAX_ARRAY_BYTES:
        raise DataError(f"{where}: array {name!r} unpacks to {size} bytes; at most {MAX_ARRAY_BYTES} are read")
    return npy_array(file.read(member), f"{where}: {name}")


def npy_array(content: bytes, where: str) -> Shaped[np.ndarray, "..."]:
    """Return the array of an `.npy` file.

    Raises:
        DataError: It is damaged, its header promises another size than it has, or it holds objects (pickles), which are
            never opened.
    """
    data = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(data)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(data)
    except (ValueError, EOFError, SyntaxError, TypeError) as error:
        raise DataError(f"{where}: not a readable npy array ({error}); it is truncated or damaged") from error
    if dtype.kind not in "fiubUS":
        raise DataError(f"{where}: holds {dtype}; only numbers and texts are read, never objects")
    size = dtype.itemsize * int(np.prod(shape, dtype=object))
    if size != len(content) - data.tell():
        raise DataError(
            f"{where}: promises {size} bytes and has {len(content) - data.tell()}; it is truncated or damaged"
        )
    array = np.frombuffer(content, dtype, offset=data.tell())
    return array.reshape(shape, order="F" if fortran else "C")
