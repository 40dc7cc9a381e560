"""Single rows of a large `.npy` member of a shard on disk, read when they are asked for."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt16

from wam_video.errors import DataError


class Span(io.RawIOBase):
    """Some bytes of an open file, as a file of their own."""

    def __init__(self, file: io.BufferedReader, first: int, length: int) -> None:
        super().__init__()
        self._file, self._first, self._length, self._at = file, first, length, 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that one can move in it."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, as in any file."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        return self._at

    def tell(self) -> int:
        """Return the place in it."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer as far as there are bytes."""
        self._file.seek(self._first + self._at)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._length - self._at)])
        self._at += count
        return count


class Rows:
    """The rows of a uint16 array in a file; only those that are asked for are read."""

    nbytes = 0
    """Memory that it holds."""

    def __init__(self, path: Path, first: int, length: int, what: str) -> None:
        """Read the array's header.

        Args:
            path: Of the shard.
            first: Byte at which the npy begins.
            length: Its bytes.
            what: Shard, sample and member, for messages.

        Raises:
            DataError: It is no such array, or of another length than its header says.
        """
        with path.open("rb") as file:
            span = Span(file, first, length)
            try:
                if np.lib.format.read_magic(span) != (1, 0):  # type: ignore[arg-type]
                    raise ValueError("unknown version")
                self.shape, fortran, dtype = np.lib.format.read_array_header_1_0(span)  # type: ignore[arg-type]
            except (ValueError, EOFError, OSError, SyntaxError) as error:
                raise DataError(f"{what} is no numeric .npy array ({error}); encode the dataset again") from error
            self._path, self._first, self._what = path, first + span.tell(), what
            whole = span.tell() + 2 * int(np.prod(self.shape, dtype=np.int64))
        if fortran or dtype != np.uint16 or len(self.shape) != 5 or whole != length:
            raise DataError(
                f"{what} has type {dtype}, shape {self.shape} and {length} bytes; expected uint16 of n c t h w: encode the "
                "dataset again"
            )

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, row: int) -> UInt16[np.ndarray, "c t h w"]:
        """Return one row.

        Raises:
            DataError: The file ends within it, or can't be read.
        """
        size = 2 * int(np.prod(self.shape[1:], dtype=np.int64))
        try:
            with self._path.open("rb") as file:
                file.seek(self._first + row * size)
                data = file.read(size)
        except OSError as error:
            raise DataError(f"{self._what} can't be read: {error.strerror or error}") from error
        if len(data) != size:
            raise DataError(f"{self._what} ends within row {row}; it is cut short: copy or encode it again")
        return np.frombuffer(data, np.uint16).reshape(self.shape[1:])
