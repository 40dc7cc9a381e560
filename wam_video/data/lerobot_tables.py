"""The tables of a LeRobot v3.0 dataset: rows, episodes, tasks and statistics, as that format wants them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from wam_video.errors import MissingDependencyError

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
CHUNK_FILES = 1000
"""Files in a folder."""
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


class RowsWriter:
    """The rows of all episodes, a row group each, in files that close once they are large."""

    def __init__(self, root: Path, file_mb: float = DATA_FILE_MB) -> None:
        self._root, self._limit = root, int(file_mb * (1 << 20))
        self._parquet = _pyarrow()
        self._writer: Any = None
        self._number, self._size = 0, 0

    def add(self, columns: Mapping[str, Shaped[np.ndarray, "t ..."]]) -> tuple[int, int]:
        """Append an episode and return the chunk and the file that hold it."""
        import pyarrow as pa

        if self._writer is not None and self._size > self._limit:
            self.close()
            self._number, self._size = self._number + 1, 0
        table = pa.table({name: _arrow(values) for name, values in columns.items()})
        place = (self._number // CHUNK_FILES, self._number % CHUNK_FILES)
        if self._writer is None:
            path = self._root / DATA_PATH.format(chunk_index=place[0], file_index=place[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._parquet.ParquetWriter(path, table.schema)
        self._writer.write_table(table)
        self._size += table.nbytes
        return place

    def close(self) -> None:
        """Finish the open file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def write_tasks(root: Path, tasks: Sequence[str]) -> None:
    """Write `meta/tasks.parquet`: the text is the index of the frame, for LeRobot looks it up there."""
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingDependencyError("pandas", "data", "writing a LeRobot dataset") from error
    (root / "meta").mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"task_index": range(len(tasks))}, index=list(tasks)).to_parquet(root / "meta" / "tasks.parquet")


def write_episodes(root: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the episode table."""
    import pyarrow as pa

    path = root / EPISODES_PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    _pyarrow().write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file; the same content gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def vector_stats(values: Shaped[np.ndarray, "t ..."]) -> dict[str, list[Any]]:
    """Return LeRobot's statistics of a column, per dimension."""
    matrix = values.reshape(len(values), -1).astype(np.float64)
    stats = {"min": matrix.min(0), "max": matrix.max(0), "mean": matrix.mean(0), "std": matrix.std(0)}
    stats |= {name: np.quantile(matrix, q, axis=0) for name, q in _QUANTILES.items()}
    return {**{name: value.tolist() for name, value in stats.items()}, "count": [len(matrix)]}


class ImageStats:
    """Statistics of a camera from some of its frames, by counting: exact for those, whatever their number."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self.num_frames = 0

    def add(self, frames: UInt8[np.ndarray, "f h w c"]) -> None:
        """Count the pixels of some frames."""
        for channel in range(3):
            self._counts[channel] += np.bincount(frames[..., channel].reshape(-1), minlength=256)
        self.num_frames += len(frames)

    def merge(self, other: "ImageStats") -> None:
        """Add what another one counted."""
        self._counts += other._counts
        self.num_frames += other.num_frames

    def stats(self) -> dict[str, list[Any]]:
        """Return LeRobot's statistics, of values from 0 to 1, shaped channel, 1, 1."""
        levels = np.arange(256) / 255
        weights = self._counts / np.maximum(self._counts.sum(1, keepdims=True), 1)
        mean = weights @ levels
        seen = self._counts > 0
        values: dict[str, Float[np.ndarray, " c"]] = {
            "min": levels[seen.argmax(1)],
            "max": levels[255 - seen[:, ::-1].argmax(1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(weights @ levels**2 - mean**2, 0)),
        }
        summed = weights.cumsum(1)
        values |= {name: levels[(summed < q - 1e-12).sum(1).clip(0, 255)] for name, q in _QUANTILES.items()}
        return {**{name: v.reshape(3, 1, 1).tolist() for name, v in values.items()}, "count": [self.num_frames]}


def _arrow(values: np.ndarray) -> Any:
    """Return a column: scalars, or lists of one length (a single dimension is a scalar, as in LeRobot)."""
    import pyarrow as pa

    flat = values.reshape(len(values), -1)
    if flat.shape[1] == 1:
        return pa.array(flat[:, 0])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "data", "writing a LeRobot dataset") from error
    return parquet
