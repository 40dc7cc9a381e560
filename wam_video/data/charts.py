"""Pictures of a dataset as bytes: contact sheets and plots; the only module of `data` that imports matplotlib."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from wam_video.errors import MissingDependencyError

_COLUMNS = 4
_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b7791f", "#c53030", "#0b7285", "#5f3dc4")
_GAP = 2


@dataclass(frozen=True, kw_only=True)
class Series:
    """One clip's numbers over time."""

    label: str
    times: Float[np.ndarray, " t"]
    """Seconds since the episode began."""
    values: Float[np.ndarray, "t d"]


def contact_sheet(frames: Sequence[UInt8[np.ndarray, "h w c"]], height: int = 112) -> bytes:
    """Return frames side by side as a JPEG, each `height` pixels high, with a thin gap between them."""
    tiles = []
    for frame in frames:
        width = max(1, round(frame.shape[1] * height / frame.shape[0]))
        method = Image.Resampling.NEAREST if frame.shape[0] < height // 2 else Image.Resampling.LANCZOS
        tiles.append(np.asarray(Image.fromarray(frame).resize((width, height), method)))
    gap = np.full((height, _GAP, 3), 255, np.uint8)
    row = [part for tile in tiles for part in (tile, gap)][:-1]
    sink = io.BytesIO()
    Image.fromarray(np.concatenate(row, axis=1)).save(sink, format="JPEG", quality=88)
    return sink.getvalue()


def plot_dimensions(series: Sequence[Series], names: Sequence[str], stats: Mapping[str, Any] | None) -> bytes:
    """Return a PNG with a small plot per dimension: every clip over time, and the range from q01 to q99 shaded."""
    with _figure(len(names), height=1.5) as (axes, sink):
        for i, (axis, name) in enumerate(zip(axes, names, strict=True)):
            if stats is not None:
                axis.axhspan(stats["q01"][i], stats["q99"][i], color="#e2e8f0", linewidth=0)
            for number, one in enumerate(series):
                colour = _COLOURS[number % len(_COLOURS)]
                axis.plot(one.times, one.values[:, i], color=colour, linewidth=0.9, label=one.label)
            _title(axis, name, i, stats)
        if axes:
            axes[0].figure.supxlabel("seconds since the episode began", fontsize=8)
    return sink.getvalue()


def plot_histograms(values: Float[np.ndarray, "n d"], names: Sequence[str], stats: Mapping[str, Any] | None) -> bytes:
    """Return a PNG with a histogram per dimension; dashed lines are q01 and q99."""
    with _figure(len(names), height=1.2) as (axes, sink):
        for i, (axis, name) in enumerate(zip(axes, names, strict=True)):
            column = values[:, i]
            if column.max() > column.min():
                axis.hist(column, bins=40, color=_COLOURS[0])
            else:  # numpy can't cut a range without width into bins
                axis.bar([float(column[0])], [len(column)], width=0.1, color=_COLOURS[1])
            if stats is not None:
                for mark in ("q01", "q99"):
                    axis.axvline(stats[mark][i], color="#4a5568", linewidth=0.8, linestyle="--")
            axis.set_yticks([])
            _title(axis, name, i, stats)
    return sink.getvalue()


def plot_lengths(seconds: Sequence[float]) -> bytes:
    """Return a PNG with a histogram of episode lengths."""
    with _figure(1, height=1.8) as (axes, sink):
        axes[0].hist(seconds, bins=min(30, max(5, len(seconds))), color=_COLOURS[0])
        axes[0].set_xlabel("episode length, seconds", fontsize=8)
        axes[0].set_ylabel("episodes", fontsize=8)
    return sink.getvalue()


def plot_lines(
    axis_label: str,
    lines: Mapping[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]],
    marks: Sequence[float] = (),
) -> bytes:
    """Return a PNG with named lines (x, y) over one axis, and dashed marks on it."""
    with _figure(1, height=1.9, width=5.4) as (axes, sink):
        for number, (label, (x, y)) in enumerate(lines.items()):
            axes[0].plot(x, y, color=colour(number), linewidth=1.1, label=label)
        for mark in marks:
            axes[0].axvline(mark, color="#4a5568", linewidth=0.8, linestyle="--")
        axes[0].set_xlabel(axis_label, fontsize=8)
        axes[0].legend(fontsize=7, frameon=False)
    return sink.getvalue()


def plot_bounds(values: Float[np.ndarray, " n"], bounds: Sequence[float]) -> bytes:
    """Return a PNG with a histogram (its counts on a logarithmic axis) and dashed bounds."""
    with _figure(1, height=1.9, width=5.4) as (axes, sink):
        axes[0].hist(values, bins=60, color=_COLOURS[0], log=True)
        for bound in bounds:
            axes[0].axvline(bound, color="#c53030", linewidth=1.0, linestyle="--")
        axes[0].set_ylabel("how often", fontsize=8)
    return sink.getvalue()


def colour(number: int) -> str:
    """Return the colour in which the clip `number` is drawn."""
    return _COLOURS[number % len(_COLOURS)]


def _title(axis: Any, name: str, index: int, stats: Mapping[str, Any] | None) -> None:
    constant = stats is not None and stats["min"][index] == stats["max"][index]
    suffix = " (constant)" if constant else ""
    axis.set_title(f"{index}: {name}{suffix}", fontsize=8, loc="left", color="#c53030" if constant else "black")


@contextmanager
def _figure(count: int, height: float, width: float = 2.9) -> Iterator[tuple[list[Any], io.BytesIO]]:
    """Lay out `count` small axes, and write the figure as PNG into the sink at the end."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "data", "drawing plots") from error
    columns = min(_COLUMNS, max(count, 1))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(width * columns, height * rows + 0.35), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axis in grid:
        axis.tick_params(labelsize=7, length=2)
        axis.locator_params(axis="both", nbins=4)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in grid[count:]:
        axis.set_visible(False)
    sink = io.BytesIO()
    yield list(grid[:count]), sink
    figure.savefig(sink, format="png")
