"""The page of `wam-video bench delays`: seams, task and standstill over the delay, a curve for each way to join chunks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wam_video import page
from wam_video.evaluation.svg import Axes, Series, line_chart
from wam_video.markup import Html, el, table

RECORD = "delays.json"

_CHARTS = {
    "seam_jump": ("Jump at a seam", "units of actions"),
    "best_progress": ("How far the task came at best", "share of the task"),
    "mean_reward": ("Reward of a step", "the simulator's"),
    "held_share": ("Steps without a plan", "share of the steps"),
}


def write(figures: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write the record and its page; return their paths.

    Raises:
        DataError: The folder can't be written.
    """
    return page.write_page(folder, RECORD, figures, page.frame("Decisions that take their time", _sections(figures)))


def _sections(figures: Mapping[str, Any]) -> list[Html]:
    horizon, rate, half = figures["action_horizon"], figures["action_rate"], figures["action_horizon"] // 2
    return [
        el("h1", "Decisions that take their time"),
        el("p", f"{figures['model']} in {figures['env']}: a chunk has {horizon} actions, {rate:g} a second; {figures['episodes']} "
           f"episodes of each cell on the same starts, seed {figures['seed']}. Bands are 95 % intervals over episodes."),
        el("p", f"One decision is made at a time. Up to a delay of {half} steps, half of a chunk, the body never waits but for the "
           "first decision; beyond that its chunk ends before the next one comes, and it holds still.", css="note"),
        *(_chart(figures, name) for name in _CHARTS),
        el("h2", "In numbers"),
        table(
            ["delay", "way", "seam", "within a chunk", "of the task", "reward", "succeeded", "seam, difference to the first way"],
            [_row(cell) for cell in figures["cells"]],
        ),
    ]  # fmt: skip


def _chart(figures: Mapping[str, Any], name: str) -> Html:
    series = []
    for i, way in enumerate(figures["ways"]):
        cells = [cell for cell in figures["cells"] if cell["way"] == way["name"]]
        found = [cell["figures"][name] for cell in cells]
        series.append(
            Series(
                label=way["name"],
                x=[cell["delay"] for cell in cells],
                y=[one["value"] for one in found],
                low=[one["low"] for one in found],
                high=[one["high"] for one in found],
                style=f"s{i}",
            )
        )
    title, unit = _CHARTS[name]
    axes = Axes(x_label="delay, control steps", y_label=unit, title=title, dots=True)
    return el("section", el("h3", title), line_chart(series, axes))


def _row(cell: Mapping[str, Any]) -> list[Any]:
    won, found = cell["success"], cell["figures"]
    shown = [_interval(found[name]) for name in ("seam_jump", "within_jump", "best_progress", "mean_reward")]
    difference = cell.get("difference")
    return [
        cell["delay"], cell["way"], *shown, f"{won['successes']}/{won['episodes']}",
        "" if difference is None else _interval(difference["seam_jump"]),
    ]  # fmt: skip


def _interval(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return ""
    return f"{one['value']:.3g}" + ("" if one["low"] is None else f" ({one['low']:.3g} to {one['high']:.3g})")
