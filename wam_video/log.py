"""Logging and progress: the only module besides `cli` that writes to a terminal.

Loggers are silent on every rank but the first; progress is a bar on a terminal and a plain line now and then elsewhere.
"""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_ROOT = "wam_video"
_PLAIN_INTERVAL_S = 10.0


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module of this package (`name` is its `__name__`)."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def setup_logging(*, level: int = logging.INFO, main_process: bool = True) -> None:
    """Send this package's messages to stderr, one plain line each; other ranks only report errors."""
    root = logging.getLogger(_ROOT)
    root.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    root.addHandler(handler)
    root.setLevel(level if main_process else logging.ERROR)
    root.propagate = False


def progress(items: Iterable[T], *, total: int | None = None, what: str = "", enabled: bool = True) -> Iterator[T]:
    """Yield `items` while showing how far they are: a bar on a terminal, else a line every ten seconds."""
    if not enabled:
        yield from items
    elif sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=what, dynamic_ncols=True)
    else:
        yield from _plain_progress(items, total, what)


def _plain_progress(items: Iterable[T], total: int | None, what: str) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= _PLAIN_INTERVAL_S:
            last = now
            of = f"/{total}" if total is not None else ""
            get_logger(__name__).info("%s %d%s, %.1f per second", what, done, of, done / (now - start))
