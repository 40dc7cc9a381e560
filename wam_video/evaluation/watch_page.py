"""The page of a training run under way: what it learns, how fast, and what went wrong; from the files in its folder."""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from wam_video.errors import DataError
from wam_video.evaluation.svg import Axes, Series, line_chart, number
from wam_video.markup import Html, el, join, table
from wam_video.page import frame, write_whole

PAGE = "watch.html"
METRICS = "metrics.jsonl"

_REFRESH_S = 15
_POINTS = 300
"""Of a curve; more are averaged."""
_ROWS = 8
"""Of a table of events."""

Line = Mapping[str, float]

_WORDS = {
    "loss_video": "video",
    "loss_action": "actions",
    "loss_teacher": "teacher",
    "loss_forward": "actions given (forward)",
    "loss_video_only": "actions unknown (video)",
    "loss_joint_video": "between (joint)",
    "loss_policy": "video unknown (policy)",
    "loss_inverse": "video given (inverse)",
    "loss_joint_action": "between (joint)",
}


def write_watch_page(folder: Path) -> Path:
    """Write `watch.html` of a run's folder, whole or not at all, and return its path.

    Raises:
        DataError: The folder is no run's, or can't be written.
    """
    return write_whole(folder, PAGE, watch_page(folder).encode())


def watch_page(folder: Path) -> str:
    """Return the page of a run's folder.

    Raises:
        DataError: The folder is no run's.
    """
    if not (folder / METRICS).is_file():
        raise DataError(f"{str(folder)!r} holds no {METRICS}; give the output_dir of a training run")
    lines = _read(folder / METRICS)
    steps = [line for line in lines if "samples_per_second" in line]
    checks = [line for line in lines if any(name.startswith("val_") for name in line)]
    sections = [
        _head(folder, steps),
        _losses(steps),
        _validation(checks),
        _speed(steps),
        _events(folder, steps),
    ]
    return frame(f"{folder.name}: training", sections, refresh_s=_REFRESH_S)


def _head(folder: Path, steps: Sequence[Line]) -> Html:
    config = (folder / "config.yaml").read_text() if (folder / "config.yaml").is_file() else ""
    found = re.search(r"^steps: (\d+)", config, re.MULTILINE)
    last = steps[-1] if steps else {}
    done, total = int(last.get("step", 0)), int(found[1]) if found else None
    chips = [f"step {done}" + (f" of {total} ({done / total:.0%})" if total else "")]
    if last:
        chips.append(f"{number(last['samples_per_second'])} samples/s")
        if total and done < total and last.get("step_s_p50"):
            chips.append(f"{_duration((total - done) * last['step_s_p50'])} left")
        chips.append(f"waits for data {last['data_wait_share']:.0%} of the time")
        chips += [f"{last['mfu']:.0%} of the device's peak"] if "mfu" in last else []
        chips += [f"{number(last['memory_gb'])} GB"] if "memory_gb" in last else []
    read = (folder / METRICS).stat().st_mtime
    chips.append(f"last line at {datetime.fromtimestamp(read).astimezone():%Y-%m-%d %H:%M:%S}")
    return join(
        el("h1", f"Training {folder.name}"),
        el(
            "p", f"Read again by itself every {_REFRESH_S} seconds; written by the run after its log lines.", css="note"
        ),
        el("ul", *(el("li", chip) for chip in chips), css="chips"),
    )


def _losses(steps: Sequence[Line]) -> Html:
    names = {name for line in steps for name in line}
    sets = sorted({name.split("/")[1] for name in names if name.startswith("dataset/")})
    charts = [
        _chart(steps, "all", ["loss_video", "loss_action", "loss_teacher"]),
        _chart(
            steps, "video, by what is known of the actions", ["loss_forward", "loss_video_only", "loss_joint_video"]
        ),
        _chart(steps, "actions, by what is known of the video", ["loss_policy", "loss_inverse", "loss_joint_action"]),
        _by_clock(steps),
    ]
    for modality in ("video", "action"):
        for start in range(0, len(sets), 5):
            some = {f"dataset/{name}/{modality}": name for name in sets[start : start + 5]}
            charts.append(_chart(steps, f"{modality}, by dataset", list(some), some))
    return el(
        "section",
        el("h2", "Losses"),
        el("p", "Mean errors of the training windows between two log lines, in the units that the loss is taken in."),
        el("div", *charts, css="cols"),
    )


def _by_clock(steps: Sequence[Line]) -> Html | None:
    """Draw the error along the clocks, of the last fifth of the log lines."""
    recent = steps[-max(len(steps) // 5, 1) :]
    series = []
    for style, modality in enumerate(("video", "action"), 1):
        prefix = f"clock/{modality}/"
        names = sorted({name for line in recent for name in line if name.startswith(prefix)})
        middles = [sum(map(float, name.removeprefix(prefix).split("-"))) / 2 for name in names]
        means = [_mean([line[name] for line in recent if name in line]) for name in names]
        series.append(Series(label=modality, x=middles, y=means, style=f"s{style}"))
    series = [one for one in series if one.x]
    if not series:
        return None
    axes = Axes(x_label="clock: 0 is data, 1 is noise", dots=True, title="error by clock")
    return el("div", el("h4", "by clock, lately"), line_chart(series, axes))


def _validation(checks: Sequence[Line]) -> Html:
    if not checks:
        return el("section", el("h2", "Validation"), el("p", "None yet.", css="note"))
    groups = (
        ["val_forward", "val_forward_shuffled", "val_video", "val_joint_video"],
        ["val_policy", "val_inverse", "val_joint_action"],
    )
    words = {"val_forward_shuffled": "forward, another window's actions (control)"}
    words |= {name: name.removeprefix("val_") for group in groups for name in group if name not in words}
    titles = ("video", "actions")
    last = {name: value for line in checks for name, value in line.items() if name.startswith("val_")}
    rows = [[words.get(name, name.removeprefix("val_")), number(value)] for name, value in sorted(last.items())]
    return el(
        "section",
        el("h2", "Validation"),
        el("p", f"Held-out windows with the averaged weights, last at step {int(checks[-1]['step'])}."),
        el(
            "div",
            *(_chart(checks, title, list(group), words) for title, group in zip(titles, groups, strict=True)),
            css="cols",
        ),
        table(["mode", "last error"], rows),
    )


def _speed(steps: Sequence[Line]) -> Html:
    ranks = {n: n.split("/")[1] for line in steps[-1:] for n in line if n.startswith("data_wait_share/")}
    charts = [
        _chart(steps, "samples a second", ["samples_per_second"]),
        _chart(steps, "frames a second", ["frames_per_second"]),
        _chart(steps, "seconds a step", ["step_s_p50", "step_s_p95"], {"step_s_p50": "median", "step_s_p95": "95 %"}),
        _chart(steps, "share of the time that waits for data", ["data_wait_share"]),
        *([_chart(steps, "the same, by process", list(ranks)[:5], ranks)] if ranks else []),
        _chart(steps, "share of the device's peak (MFU)", ["mfu"]),
        _chart(steps, "most memory held, GB", ["memory_gb"]),
        _chart(steps, "own work of the slowest process, over the others'", ["slowest_ratio"]),
    ]
    return el("section", el("h2", "Speed"), el("div", *charts, css="cols"))


def _events(folder: Path, steps: Sequence[Line]) -> Html:
    bad = _read(folder / "bad_batches.jsonl")
    rows = [[str(e["step"]), str(e["rank"]), ", ".join(e["terms"]), _windows(e["samples"])] for e in bad if e["terms"]]
    skipped = len({entry["step"] for entry in bad})
    spikes = int(sum(line.get("spikes", 0) for line in steps))
    saved = []
    for commit in sorted((folder / "checkpoints").glob("step-*/COMMIT.json"), reverse=True):
        size = sum(path.stat().st_size for path in commit.parent.iterdir() if path.is_file())
        when = datetime.fromtimestamp(commit.stat().st_mtime).astimezone()
        saved.append([commit.parent.name, f"{size / 1e6:.1f} MB", f"{when:%Y-%m-%d %H:%M:%S}"])
    hung = [path.name for path in sorted(folder.glob("hang-rank*.txt"))]
    return el(
        "section",
        el("h2", "Events"),
        el("p", f"{skipped} step(s) skipped, {spikes} jump(s) of the loss told."),
        el("p", f"It hung once; stacks in {', '.join(hung)}.", css="flag") if hung else None,
        el("h3", "Skipped steps"),
        table(["step", "process", "what was wrong", "windows"], rows[-_ROWS:])
        if rows
        else el("p", "None.", css="note"),
        el("h3", "Checkpoints"),
        table(["step", "size", "written"], saved[:_ROWS]) if saved else el("p", "None yet.", css="note"),
        el("p", f"Page written {time.strftime('%Y-%m-%d %H:%M:%S %z')}.", css="note"),
    )


def _windows(samples: Sequence[Mapping[str, Any]]) -> str:
    named = ", ".join(str(sample["key"]) for sample in samples[:3])
    return named + (f" and {len(samples) - 3} more" if len(samples) > 3 else "")


def _chart(lines: Sequence[Line], title: str, names: Sequence[str], words: Mapping[str, str] = _WORDS) -> Html | None:
    """Draw the curves of these names over the steps, if there are any."""
    series = []
    for name in names:
        points = _thin([(line["step"], line[name]) for line in lines if name in line])
        if points:
            x, y = zip(*points, strict=True)
            series.append(Series(label=words.get(name, name), x=x, y=y, style=f"s{len(series) + 1}"))
    if not series:
        return None
    axes = Axes(x_label="step", title=title, legend=len(series) > 1)
    return el("div", el("h4", title), line_chart(series, axes))


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `_POINTS` points, each the mean of its neighbours."""
    width = -(-len(points) // _POINTS) or 1
    cut = [points[i : i + width] for i in range(0, len(points), width)]
    return [(_mean([x for x, _ in part]), _mean([y for _, y in part])) for part in cut]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines; a line that is being written is left out."""
    return list(_objects(path.read_text().splitlines())) if path.is_file() else []


def _objects(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "step" in found:
            yield found


def _duration(seconds: float) -> str:
    minutes = int(max(seconds, 0)) // 60
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
