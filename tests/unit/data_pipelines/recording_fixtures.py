"""Frames that say which episode and row they are, for small datasets in documented layouts (format fixtures)."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32


def frame(episode: int, row: int, size: int = SIZE) -> np.ndarray:
    """Red counts rows, green episodes; the upper half is brighter, the left quarter blue: turning it shows."""
    image = np.zeros((size, size, 3), np.uint8)
    image[..., 0] = 20 + 10 * row
    image[..., 1] = 30 * (episode % 5 + 1)
    image[: size // 2] += 40
    image[:, : size // 4, 2] = 200
    return image


def frames(episode: int, rows: int, size: int = SIZE) -> np.ndarray:
    return np.stack([frame(episode, row, size) for row in range(rows)])


def numbers(episode: int, rows: int, dim: int, dtype=np.float32) -> np.ndarray:
    """Row r holds episode + r / 16 + d / 256: exact in float32, so that equality is to the bit."""
    grid = np.arange(rows)[:, None] / 16 + np.arange(dim)[None] / 256
    return (episode + grid).astype(dtype)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return sink.getvalue()


def shown(view) -> np.ndarray:
    """All frames of a view."""
    return np.stack(list(view.frames()))


def cut(path: Path, keep: float = 0.5) -> Path:
    """Truncate a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path
