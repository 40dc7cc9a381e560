"""What several commands read from their arguments and show while they work."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from wam_video.errors import ConfigError
from wam_video.log import get_logger

_GENERIC = ("export", "final", "model", "checkpoint", "latest", "pipeline", "weights")


def parse_named(what: str, values: Sequence[str]) -> dict[str, str]:
    """Split `NAME=PATH`; a bare path is called by its own name, or its parent's where that says nothing.

    Raises:
        ConfigError: Two have the same name.
    """
    named: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or "/" in name:
            path = value
            parts = Path(value).resolve().parts
            named_parts = [part for part in parts if Path(part).stem not in (*_GENERIC, "metrics")]
            name = named_parts[-1] if named_parts else value
        if name in named:
            raise ConfigError(f"{what} has the name {name!r} twice; give each one its own: NAME=PATH")
        named[name] = path
    return named


def parse_size(text: str) -> tuple[int, int]:
    """Read `HEIGHTxWIDTH` in pixels.

    Raises:
        ConfigError: It is something else.
    """
    height, separator, width = text.lower().partition("x")
    if not separator or not height.isdigit() or not width.isdigit():
        raise ConfigError(f"--size is {text!r}; it must be HEIGHTxWIDTH in pixels, e.g. 128x128")
    return int(height), int(width)


def parse_options(pairs: Sequence[str], what: str = "--option") -> dict[str, str]:
    """Read `KEY=VALUE` pairs.

    Raises:
        ConfigError: One has no key or no `=`.
    """
    options = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise ConfigError(f"{what} is {pair!r}; it must be KEY=VALUE, e.g. {what} action_key=actions")
        options[key] = value
    return options


def check_output(folder: Path) -> None:
    """Refuse a folder that could not be made, before the work that would be lost; nothing is made yet.

    Raises:
        ConfigError: It is a file, lies under one, or may not be written.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"--output is {str(folder)!r}, but {str(there)!r} is a file; give a folder to make")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"--output is {str(folder)!r}, but {str(there)!r} may not be written; give another folder")


def check_page(option: str, page: Path) -> None:
    """Refuse a page that could not be written, before the work that it would show.

    Raises:
        ConfigError: It is a folder, or its own folder could not be made.
    """
    there = next(path for path in page.absolute().parents if path.exists())
    if page.is_dir() or not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{option} is {str(page)!r}, can't write a page there; give a file to make, e.g. out/page.html"
        )


def torch_device(name: str | None) -> str:
    """Return a device that torch can use; None is CUDA where there is one.

    Raises:
        ConfigError: Torch can't use it.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device is {name!r}, which torch can't use ({reason}); allowed: cpu, cuda, cuda:N, mps"
        ) from error
    return name


def add_speed(add: Callable[..., object], *, dtype: bool = True) -> None:
    """Add `--compile` and `--quantize`, and `--dtype` unless the command has one of its own."""
    add(
        "--compile",
        default="none",
        metavar="MODE",
        help="none (default); default: torch.compile of each block; graphs: of the whole network, replayed as CUDA graphs",
    )
    add(
        "--quantize",
        default="none",
        metavar="KIND",
        help="none (default), int8 or fp8: of the blocks' linear layers, by torchao (extra 'speed'); changes the actions a little",
    )
    if dtype:
        add("--dtype", metavar="NAME", help="float32, bfloat16 or float16 (default: as the checkpoint is loaded)")


def show_progress(unit: str) -> Callable[[str, int, int], None]:
    """Return what shows how far a piece of work is: a bar on a terminal, else a line every ten seconds and at the end."""
    bars: dict[str, object] = {}
    last = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        if sys.stderr.isatty():
            from tqdm import tqdm

            bar = bars.setdefault(what, tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True))
            bar.update(done - bar.n)  # type: ignore[attr-defined]
            if done == total:
                bar.close()  # type: ignore[attr-defined]
        elif done == total or time.monotonic() - last > 10:
            last = time.monotonic()
            get_logger(__name__).info("%s: %d of %d %ss", what, done, total, unit)

    return show
