"""The instructions that lie beside plain videos: a JSON lines file, or a text file of the same name as the video."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wam_video.errors import DataError

FILE_KEYS = ("file", "file_name", "filename", "video", "video_path", "path")
TEXT_KEYS = ("instruction", "instructions", "caption", "captions", "prompt", "text", "language_instruction")


def find_captions(folder: Path, given: str) -> Path | None:
    """Return the captions file: the one that is given, else the only `*.jsonl` of the folder whose lines name files.

    Raises:
        DataError: The given file is missing, or several would do.
    """
    if given:
        path = next((p for p in (Path(given), folder / given) if p.is_file()), None)
        if path is None:
            raise DataError(f"captions file {given!r} does not exist, neither as given nor in {folder}")
        return path
    found = [path for path in sorted(folder.glob("*.jsonl")) if _first_key(_first_row(path), FILE_KEYS)]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder}: several files could hold the captions ({names}); choose with --option captions=...")
    return found[0] if found else None


def read_captions(path: Path) -> dict[str, tuple[tuple[str, ...], dict[str, Any]]]:
    """Return the paraphrases and the other facts of each video, by its path as written there.

    Raises:
        DataError: A line is no JSON object, or names no file.
    """
    captions = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        row = _parse(line)
        key = _first_key(row, FILE_KEYS)
        if row is None or key is None:
            raise DataError(
                f"{path}: line {number} is no JSON object with one of the keys {', '.join(FILE_KEYS)}; repair it"
            )
        text_key = _first_key(row, TEXT_KEYS)
        value = row.get(text_key) if text_key else None
        texts = value if isinstance(value, list) else [value]
        extra = {k: v for k, v in row.items() if k not in (key, text_key)}
        captions[str(row[key])] = (tuple(str(text).strip() for text in texts if text and str(text).strip()), extra)
    return captions


def sidecar_caption(video: Path) -> tuple[str, ...]:
    """Return the non-empty lines of `<video>.txt`, each a paraphrase."""
    path = video.with_suffix(".txt")
    if not path.is_file():
        return ()
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _first_row(path: Path) -> dict[str, Any] | None:
    with path.open(encoding="utf-8", errors="replace") as lines:
        return _parse(lines.readline())


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _first_key(row: Mapping[str, Any] | None, keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if row and key in row), None)
