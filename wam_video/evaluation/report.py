"""The page: one self-contained HTML file that says what a model does, to somebody who has never seen one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wam_video.evaluation.by_episode import EpisodeSums
from wam_video.evaluation.sections import Unit, mode_section, overview
from wam_video.evaluation.study_page import study_left_out, study_sections
from wam_video.evaluation.study_run import Studied
from wam_video.evaluation.svg import Axes, Series, line_chart
from wam_video.evaluation.wording import GLOSSARY, LEFT_OUT
from wam_video.markup import Html, el, join, table
from wam_video.page import frame, write_page
from wam_video.tensors import Mode

MAX_BYTES = 3_000_000
"""Of the page; fewer windows are shown rather than more bytes written."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the page shows."""

    units: Sequence[Unit]
    modes: Sequence[Mode]
    document: Mapping[str, Any]
    """The contents of `metrics.json`."""
    training: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Lines of each training log, by the name of the run."""
    studies: Mapping[str, Sequence[tuple[str, Studied]]] = field(
        default_factory=dict[str, Sequence[tuple[str, Studied]]]
    )
    """What the studies found, by the name of the model: (embodiment, study)."""
    sums: Mapping[str, Sequence[EpisodeSums]] = field(default_factory=dict[str, Sequence[EpisodeSums]])
    """What was added up over each episode, by the name of the model, one a body; not on the page."""


def render(report: Report, max_windows: int = 6) -> str:
    """Return the page, with fewer windows if it would grow beyond `MAX_BYTES`."""
    page = ""
    for count in [n for n in (max_windows, 4, 2, 1, 0) if n <= max_windows]:
        page = _page(report, count)
        if len(page.encode()) <= MAX_BYTES:
            break
    return page


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `metrics.json` and `report.html` into `folder`, each whole or not at all, and return their paths."""
    return write_page(folder, "metrics.json", report.document, render(report))


def _page(report: Report, max_windows: int) -> str:
    sections = [
        _introduction(report),
        el("section", el("h2", "At a glance"), overview(report.units, report.modes), _square_note(), id="glance"),
        *(mode_section(mode, report.units, max_windows) for mode in report.modes),
        *study_sections(report.studies, max_windows),
        _training(report),
        _method(report),
    ]
    return frame("World action model: what it can do", sections)


def _introduction(report: Report) -> Html:
    data = report.document["data"]
    models = report.document["models"]
    chips = [
        f"data: {data['dataset']}, {data['split']} split",
        f"{data['num_windows']} moments from {data['num_episodes']} episodes",
    ]
    chips += [f"{m['name']}: {m['num_parameters'] / 1e6:.2f} M parameters" for m in models]
    lead = (
        "A world action model is one network that learned from videos of a robot together with the robot's actions. "
        "Depending on what it is told and what it is asked for, it acts, predicts, explains or imagines. "
    )
    held_out = (
        "that it never saw in training"
        if data["split"] == "val"
        else "of its own training data (this is no test of generalisation)"
    )
    how = f"Here it does each of these on moments {held_out}, next to what one would get without a model."
    return join(
        el("h1", "What can this world action model do?"),
        el("p", lead, how, css="lead"),
        el("ul", *(el("li", chip) for chip in chips), css="chips"),
    )


def _square_note() -> Html:
    text = (
        "The small squares show what makes the modes one model: both video and actions can be anything from pure noise (left, "
        "bottom) to fully known (right, top). Training covers the whole square; a mode is a way across it, from the ring to "
        "the tip of the arrow. What is given starts known, what is asked for starts as noise, what is neither stays noise."
    )
    return el("p", text, css="note")


def _training(report: Report) -> Html | None:
    columns = []
    for name, lines in report.training.items():
        keys = sorted({k for line in lines for k in line if "loss" in k and isinstance(line[k], int | float)})[:4]
        series = []
        for i, key in enumerate(keys):
            points = [
                (line["step"], float(line[key]))
                for line in lines
                if isinstance(line.get(key), int | float) and "step" in line
            ]
            if points:
                x, y = zip(*_thin(points), strict=True)
                series.append(Series(label=key, x=x, y=y, style=f"s{(i + 1) % 5}"))
        if series:
            columns.append(
                el(
                    "div",
                    el("h4", name),
                    line_chart(series, Axes(x_label="training step", y_label="loss", title=f"Loss of {name}")),
                )
            )
    if not columns:
        return None
    text = el("p", "How wrong the network was while it learned; lower is better.")
    return el("section", el("h2", "Training"), text, el("div", *columns, css="cols"), id="training")


def _thin(points: Sequence[tuple[float, float]], count: int = 240) -> list[tuple[float, float]]:
    """Average neighbours, so that a long log stays a small picture."""
    size = -(-len(points) // count)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _method(report: Report) -> Html:
    document = report.document
    facts: list[list[Any]] = [["Command", el("code", document["command"])]]
    facts += [
        [
            f"Model {m['name']}",
            join(
                el("code", m["path"]),
                el("br"),
                el("code", f"sha256 {m['model_hash']}"),
                el("br"),
                f"{m['num_inference_steps']} steps from noise to data, solver {m['solver']}",
            ),
        ]
        for m in document["models"]
    ]
    data, settings, env = document["data"], document["settings"], document["environment"]
    facts += [
        ["Data", join(el("code", data["path"]), el("br"), el("code", f"manifest sha256 {data['manifest_sha256']}"))],
        ["Sampling", ", ".join(f"{k} {v}" for k, v in settings.items())],
        ["Where", ", ".join(f"{k} {v}" for k, v in env.items() if v is not None)],
        ["Code", f"wam_video {document['library_version']}, commit {document['commit'] or 'unknown'}"],
        ["Time", f"{document['timing']['seconds']:.0f} s, {document['timing']['started']}"],
    ]
    words = el("div", *(el("p", el("strong", term), ": ", text) for term, text in GLOSSARY))
    absent = el(
        "ul",
        *(
            el("li", el("strong", name), f": {reason}.")
            for name, reason in (*LEFT_OUT, *study_left_out(report.studies))
        ),
    )
    notes = [el("p", note, css="note") for note in data.get("notes", ())]
    return el(
        "section", el("h2", "How this was measured"), words, *notes, el("h3", "Not measured, and why"), absent,
        el("h3", "To repeat it"), table(["", ""], facts), id="method",
    )  # fmt: skip
