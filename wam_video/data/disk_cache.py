"""A folder of byte strings with a bound: least recently used out first, safe with many processes and after any kill."""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wam_video.log import get_logger

_LOG = get_logger(__name__)
_DIGEST = hashlib.sha256().digest_size


class DiskCache:
    """Bytes by key in a folder that never holds more than `max_bytes`, whoever else uses it.

    Whatever is written is written under the folder's lock: first old entries go, then the new one is written beside its
    place and renamed. So a file that is not renamed is of a process that was killed, and the next one removes it. Each
    entry begins with the sha256 of what follows: a damaged one is no entry. Reading takes no lock.
    """

    def __init__(self, folder: Path | str, max_bytes: int) -> None:
        """Use `folder`, which is made when something is first kept; 0 bytes keep nothing."""
        self._folder, self._max = Path(folder), max_bytes

    def get(self, key: str) -> bytes | None:
        """Return the bytes of a key, or None if they are not held whole."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        data = content[_DIGEST:]
        if hashlib.sha256(data).digest() != content[:_DIGEST]:
            with suppress(OSError):
                path.unlink()
            return None
        now = time.time_ns()  # the clock that the kernel stamps files with is too coarse to order reads
        with suppress(OSError):
            os.utime(path, ns=(now, now))
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep bytes, in the place of the least recently used ones; what is larger than the bound, or has no room, is not kept."""
        need = _DIGEST + len(data)
        if need > self._max:
            return
        path = self._path(key)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._make_room(need)
                if not path.exists():
                    self._write(path, data)
        except OSError as error:  # a full or read-only disk costs time, not data
            _LOG.warning("nothing is kept in the cache %s: %s", self._folder, error.strerror or error)

    @property
    def used(self) -> int:
        """Bytes in the folder now, unfinished ones included."""
        if not self._folder.is_dir():
            return 0
        with self._locked():
            return sum(entry.stat().st_size for entry in self._files())

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.bin"

    def _files(self) -> Iterator[os.DirEntry[str]]:
        if self._folder.is_dir():
            with os.scandir(self._folder) as entries:
                yield from (entry for entry in entries if entry.name.endswith((".bin", ".tmp")))

    def _make_room(self, need: int) -> None:
        """Remove what was left unfinished, and the oldest entries until `need` more bytes fit."""
        held = []
        for entry in self._files():
            if entry.name.endswith(".tmp"):
                Path(entry.path).unlink(missing_ok=True)
            else:
                with suppress(FileNotFoundError):
                    stat = entry.stat()
                    held.append((stat.st_mtime_ns, stat.st_size, entry.path))
        total = sum(size for _, size, _ in held)
        for _, size, path in sorted(held):
            if total + need <= self._max:
                return
            Path(path).unlink(missing_ok=True)
            total -= size

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                file.write(hashlib.sha256(data).digest())
                file.write(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl  # not on Windows, where shards are read from the disk alone

        with (self._folder / ".lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
