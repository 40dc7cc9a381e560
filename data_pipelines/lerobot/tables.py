"""Reads the tables of a LeRobot dataset: JSON, JSON lines and Parquet; the only module here that imports pyarrow."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from wam_video.errors import DataError, MissingDependencyError


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file.

    Raises:
        DataError: The file is missing, is not JSON, or holds no mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); a LeRobot dataset needs it") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); repair it or download it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}; it must be a JSON object")
    return content


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON lines file; blank lines are allowed.

    Raises:
        DataError: A line is no JSON object.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number} is not valid JSON ({error}); repair that line") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number} is a {type(row).__name__}; each line must be a JSON object")
        rows.append(row)
    return rows


def column_names(path: Path) -> list[str]:
    """Return the columns of a Parquet file without reading its rows."""
    with _ParquetErrors(path):
        return list(_parquet().read_schema(path).names)


def read_rows(path: Path, columns: Sequence[str], episode: int | None = None) -> dict[str, list[Any]]:
    """Return columns of a Parquet file as Python lists.

    Args:
        path: The file.
        columns: Names; those that the file lacks are left out of the answer.
        episode: Keep only rows of this `episode_index`; other row groups are not read.

    Raises:
        DataError: The file is missing or no Parquet.
    """
    present = [name for name in columns if name in column_names(path)]
    filters = None if episode is None else [("episode_index", "=", episode)]
    with _ParquetErrors(path):
        return _parquet().read_table(path, columns=present, filters=filters).to_pydict()


def iterate_column(path: Path, column: str, episode: int | None) -> Iterator[Any]:
    """Yield one column's values a few rows at a time, for columns of images that would not fit into memory."""
    wanted = [column] if episode is None else [column, "episode_index"]
    with _ParquetErrors(path):
        file = _parquet().ParquetFile(path)
        for batch in file.iter_batches(batch_size=16, columns=wanted):
            values = batch.column(0) if episode is None else batch.column(batch.schema.get_field_index(column))
            episodes = (
                None if episode is None else batch.column(batch.schema.get_field_index("episode_index")).to_pylist()
            )
            for row in range(batch.num_rows):
                if episodes is None or episodes[row] == episode:
                    yield values[row].as_py()


def as_matrix(values: Sequence[Any]) -> Float[np.ndarray, "t d"]:
    """Return a column of scalars or of equally long (nested) lists as float32, one row each.

    Raises:
        DataError: The rows differ in length or hold something that is no number.
    """
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"rows are no numbers or differ in length ({error})") from error
    return matrix.reshape(len(values), -1).astype(np.float32)


class _ParquetErrors:
    """Turns the many errors of a broken Parquet file into one `DataError` that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        if not self.path.is_file():
            raise DataError(f"missing file {self.path}")

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, (DataError, GeneratorExit, KeyboardInterrupt)):
            return
        import pyarrow

        if isinstance(error, (pyarrow.ArrowException, OSError, KeyError)):
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{self.path}: can't be read as Parquet ({message}); download or write it again") from error


def _parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "data", "reading a LeRobot dataset") from error
    return parquet
