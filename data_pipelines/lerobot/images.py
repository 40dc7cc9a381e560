"""A view whose frames are encoded images in a Parquet column instead of a video."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.lerobot.tables import iterate_column
from wam_video.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class ParquetImageView:
    """Frames of one episode in a Parquet file; rows hold `{bytes, path}`, or the bytes alone. Decoded when read."""

    root: Path
    """Of the dataset; a row's `path` is relative to it."""
    path: Path
    column: str
    episode: int | None
    """Only rows of this `episode_index`; None takes the whole file."""
    times: Float[np.ndarray, " f"]

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Yield the frames as RGB, in the order of the rows.

        Raises:
            DataError: A row holds no readable image, or there are fewer rows than frames.
        """
        count = 0
        for count, value in enumerate(iterate_column(self.path, self.column, self.episode), 1):
            if count > len(self.times):
                return
            yield self._decode(value, count - 1)
        if count < len(self.times):
            raise DataError(f"{self.path}: column {self.column!r} has {count} images; {len(self.times)} are needed")

    def _decode(self, value: Any, row: int) -> UInt8[np.ndarray, "h w c"]:
        from PIL import Image, UnidentifiedImageError

        where = f"{self.path}: column {self.column!r}, row {row}"
        content, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        try:
            if content is None and name:
                file = (self.root / name).resolve()
                if not file.is_relative_to(self.root.resolve()):
                    raise DataError(f"{where}: points to {name!r} outside the dataset; images must lie inside it")
                content = file.read_bytes()
            if not isinstance(content, bytes):
                raise DataError(f"{where}: holds {type(content).__name__}; it must be an encoded image")
            return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{where}: not a readable image ({error})") from error
