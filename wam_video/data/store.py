"""Where shards lie: a folder on disk, or a place that fsspec knows (`s3://`, `gs://`, `hf://`, `http(s)://`), read alike."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import sleep
from typing import Any, Protocol, TypeVar

from wam_video.data.disk_cache import DiskCache
from wam_video.errors import ConfigError, DataError, MissingDependencyError

T = TypeVar("T")
Span = tuple[int, int]
"""First byte and number of bytes."""

_LONGEST_WAIT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """How shards that are not on this machine's disk are read."""

    cache_dir: str | None = None
    """Folder for samples that were read from afar; None: `.cache/wam-video/shards` in the home folder."""
    cache_gb: float = 50.0
    """Most that the folder ever holds, over all processes of the machine; 0 keeps nothing."""
    retries: int = 4
    """Further tries of a read that failed or took too long, after about 0.5, 1, 2, ... seconds."""
    timeout_s: float = 60.0
    """Longest that one try may take."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of fsspec's file system, e.g. `anon: true` for a public bucket."""

    def __post_init__(self) -> None:
        for what, low in (("cache_gb", 0), ("retries", 0)):
            if getattr(self, what) < low:
                raise ConfigError(f"data.store.{what} is {getattr(self, what)}; it must be at least {low}")
        if not self.timeout_s > 0:
            raise ConfigError(f"data.store.timeout_s is {self.timeout_s}; it must be above 0 seconds")


class UnreachableError(OSError):
    """A store failed or was too slow, again and again: it may answer another time."""


class Store(Protocol):
    """A folder of files that are read in pieces."""

    path: str
    """As it was given."""
    is_local: bool

    def where(self, name: str) -> str:
        """Return the full name of a file, for messages."""
        ...

    def read(self, name: str, span: Span | None = None, *, tag: str = "", spans: Iterable[Span] = ()) -> bytes:
        """Return a file, or a span of it, shorter where the file ends early.

        Args:
            name: Of the file.
            span: What is wanted; the whole file by default, which is never cached.
            tag: Changes with the contents (a hash), so that a cache never answers with older ones.
            spans: What else will be asked of this file, for stores that only send whole files.

        Raises:
            FileNotFoundError: It is not there.
            UnreachableError: The store does not answer.
            OSError: It can't be read.
        """
        ...


class LocalStore:
    """A folder on disk."""

    is_local = True

    def __init__(self, path: Path | str) -> None:
        self.path, self.folder = str(path), Path(path)

    def where(self, name: str) -> str:
        """Return the path of a file."""
        return str(self.folder / name)

    def read(self, name: str, span: Span | None = None, *, tag: str = "", spans: Iterable[Span] = ()) -> bytes:
        """Return a file or a span of it; see `Store.read`."""
        with (self.folder / name).open("rb") as file:
            if span is None:
                return file.read()
            file.seek(span[0])
            return file.read(span[1])


class RemoteStore:
    """A folder that fsspec reaches: spans by byte range, tried again with growing pauses, kept in a local cache."""

    is_local = False

    def __init__(self, url: str, config: StoreConfig | None = None) -> None:
        """Prepare to read; nothing is asked of the store yet.

        Raises:
            DataError: fsspec knows no such kind of store.
        """
        import fsspec

        self.path, self._root, self._config = url, url.rstrip("/"), config or StoreConfig()
        protocol = url.partition("://")[0]
        if protocol not in fsspec.available_protocols():
            raise DataError(
                f"{url!r}: there is no store {protocol}://; allowed: a folder, s3://, gs://, hf://, http(s)://"
            )
        folder = self._config.cache_dir or Path.home() / ".cache" / "wam-video" / "shards"
        self._cache = DiskCache(folder, int(self._config.cache_gb * 2**30))
        self._system: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the connections behind when a worker process gets a copy."""
        return {**self.__dict__, "_system": None}

    def where(self, name: str) -> str:
        """Return the address of a file."""
        return f"{self._root}/{name}"

    def read(self, name: str, span: Span | None = None, *, tag: str = "", spans: Iterable[Span] = ()) -> bytes:
        """Return a file or a span of it; see `Store.read`."""
        address = self.where(name)
        system = self._open()
        if span is None:
            return self._persist(address, lambda: system.cat_file(address))

        def key(part: Span) -> str:
            return f"{address}|{tag}|{part[0]}+{part[1]}"

        if (held := self._cache.get(key(span))) is not None:
            return held
        start, length = span
        data = self._persist(address, lambda: system.cat_file(address, start=start, end=start + length))
        if len(data) > length:  # this store sends the whole file whatever is asked: keep what will be asked next, too
            for part in spans:
                if part != span:
                    self._cache.put(key(part), data[part[0] : sum(part)])
            data = data[start : start + length]
        if len(data) == length:
            self._cache.put(key(span), data)
        return data

    def _open(self) -> Any:
        import fsspec

        if self._system is None:
            try:
                self._system, _ = fsspec.core.url_to_fs(self._root, **self._config.options)
            except ImportError as error:
                package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
                protocol = self._root.partition("://")[0]
                raise MissingDependencyError(
                    package.get(protocol, protocol), "data", f"reading {protocol}://"
                ) from error
        return self._system

    def _persist(self, address: str, call: Callable[[], bytes]) -> bytes:
        """Call until it succeeds, as often as the configuration says."""
        last: BaseException = TimeoutError()
        for attempt in range(self._config.retries + 1):
            if attempt:
                sleep(_pause(address, attempt))
            try:
                return _within(self._config.timeout_s, call)
            except (FileNotFoundError, PermissionError):
                raise  # asking again would not change it
            except Exception as error:  # noqa: BLE001 - each kind of store has errors of its own
                last = error
        raise UnreachableError(
            f"no answer in {self._config.retries + 1} tries, the last: {type(last).__name__}: {last}"
        ) from last


def as_store(folder: "Path | str | Store", config: StoreConfig | None = None) -> Store:
    """Return the store of a folder or address; a store as it is.

    Raises:
        DataError: fsspec knows no such kind of store.
    """
    if isinstance(folder, LocalStore | RemoteStore):
        return folder
    if "://" in str(folder):
        return RemoteStore(str(folder), config)
    return LocalStore(folder)  # type: ignore[arg-type]


def _pause(address: str, attempt: int) -> float:
    """Return seconds to wait: doubling, and between half and one and a half times that, so that readers spread out."""
    shift = hashlib.sha256(f"{address}:{attempt}".encode()).digest()[0] / 255
    return min(_LONGEST_WAIT_S, 0.5 * 2 ** (attempt - 1)) * (0.5 + shift)


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Return what `call` returns, or give up on it; a thread that hangs is left behind, and ends with the process.

    Raises:
        TimeoutError: It took longer.
    """
    answers: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

    def run() -> None:
        try:
            answers.put((True, call()))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            answers.put((False, error))

    Thread(target=run, daemon=True).start()
    try:
        good, answer = answers.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"took longer than {seconds:g} s") from None
    if not good:
        raise answer
    return answer
