"""What all pages share: the frame around their sections, and how a page and its record are put in a folder."""

import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from wam_video.errors import DataError
from wam_video.markup import Html, el

PAGE = "report.html"


def frame(title: str, sections: Iterable[Html | None], css: str = "", *, refresh_s: int | None = None) -> str:
    """Return a self-contained page: the common stylesheet, then `css`, around the sections; read again every `refresh_s`."""
    style = files("wam_video").joinpath("page.css").read_text(encoding="utf-8")
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        None if refresh_s is None else el("meta", http_equiv="refresh", content=refresh_s),
        el("title", title),
        el("style", Html(style + css)),
    )
    return "<!doctype html>\n" + el("html", head, el("body", el("main", *sections)), lang="en")


def write_page(folder: Path, record: str, document: Mapping[str, Any], page: str) -> tuple[Path, Path]:
    """Write a record and its page into `folder`, each whole or not at all.

    Args:
        folder: Made if need be.
        record: Name of the record's file.
        document: Its contents, JSON-able.
        page: From `frame`.

    Returns:
        The paths of the record and of the page.

    Raises:
        DataError: The folder can't be written.
    """
    written = write_whole(folder, record, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    return written, write_whole(folder, PAGE, page.encode())


def write_whole(folder: Path, name: str, contents: bytes) -> Path:
    """Write a file whole or not at all, into a folder that is made if need be, and return its path.

    Raises:
        DataError: The folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{name}.partial"
        try:
            partial.write_bytes(contents)
            partial.replace(folder / name)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"output {str(folder)!r} can't be written ({error.strerror}); choose another folder") from error
    return folder / name
