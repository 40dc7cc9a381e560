"""The page and the Markdown table of an ablation, made from its record alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wam_video.errors import DataError
from wam_video.evaluation.ablation_record import NAME
from wam_video.evaluation.svg import Bar, bar_chart, number
from wam_video.markup import Html, el, join, table
from wam_video.page import frame, write_page

_WORDS = {"better": "better", "worse": "worse", "none": "no difference can be claimed"}
_CSS = {"better": "verdict yes", "worse": "verdict no", "none": "note"}
_MARK = {"better": " **better**", "worse": " *worse*", "none": ""}

Row = Mapping[str, Any]


def write(document: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write `ablation.json` and `report.html` into `folder`, each whole or not at all, and return their paths.

    Raises:
        DataError: The folder can't be written.
    """
    return write_page(folder, NAME, document, render(document))


def render(document: Mapping[str, Any]) -> str:
    """Return the page."""
    modes = list(dict.fromkeys(metric["mode"] for metric in document["metrics"]))
    sections = [_introduction(document), *(_mode(document, mode) for mode in modes), _method(document)]
    return frame(f"Ablation {document['name']}", sections)


def markdown(document: Mapping[str, Any]) -> str:
    """Return the table for a model card.

    Raises:
        DataError: It is no record of an ablation.
    """
    try:
        variants, missing = _variants(document), [f"- {line}" for line in _missing(document)]
        fewer = " (fewer where some are missing, see below)" if missing else ""
        head = [
            f"{len(document['seeds'])} seeds a variant{fewer}, {_lengths(document)}; reference: `{document['reference']}`. "
            f"{document['method']} In brackets the interval; **better** and *worse* than the reference where that may be claimed, "
            "unmarked where it may not.",
            "",
            f"| | {' | '.join(f'`{v}`' for v in variants)} |",
            f"|---{'|---' * len(variants)}|",
        ]
        lines = [
            f"| {_title(metric, body)} | {' | '.join(_cell(document, metric, body, v) for v in variants)} |"
            for metric, body in _columns(document)
        ]
        claims = [f"- {line}" for line in conclusions(document)]
        return "\n".join([*head, *lines, "", *claims, *(["", "Not in the table:", "", *missing] if missing else [])])
    except (KeyError, TypeError) as error:
        raise DataError(f"the ablation lacks {error}; give the ablation.json that `wam-video ablate` wrote") from error


def _lengths(document: Mapping[str, Any]) -> str:
    """Say how long the variants were trained, where some of them set it themselves."""
    own = {
        name: [s.removeprefix("steps=") for s in settings if s.startswith("steps=")][-1:]
        for name, settings in document["variants"].items()
    }
    if not any(own.values()):
        return "the same steps and data"
    told = (f"`{name}` {steps[0] if steps else 'as configured'}" for name, steps in own.items())
    return f"the same data, steps by variant ({', '.join(told)})"


def conclusions(document: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each figure: who is better or worse than the reference, or that nothing can be claimed."""
    told = []
    for metric, body in _columns(document):
        rows = _rows(document, "differences", metric, body)
        by = {word: [r for r in rows if r["verdict"] == word] for word in ("better", "worse")}
        parts = [f"{', '.join(map(_effect, found))} {word}" for word, found in by.items() if found]
        rest = [r["variant"] for r in rows if r["verdict"] == "none"]
        if rest and parts:
            parts.append(f"no difference can be claimed for {', '.join(rest)}")
        elif rest:
            parts.append("no difference to the reference can be claimed for any variant")
        if rows:
            told.append(f"{_title(metric, body)}: {'; '.join(parts)}.")
    return told


def _introduction(document: Mapping[str, Any]) -> Html:
    variants = _variants(document)
    chips = [
        f"{len(document['variants'])} variants",
        f"{len(document['seeds'])} seeds",
        f"reference: {document['reference']}",
        f"data: {document['data'].get('dataset', 'unknown')}, {document['data'].get('split', '')} split",
    ]
    rows = [
        [_title(metric, body), *(_glance(document, metric, body, variant) for variant in variants)]
        for metric, body in _columns(document)
    ]
    missing = _missing(document)
    absent = [el("h3", "Not in the table"), el("ul", *(el("li", line) for line in missing))] if missing else []
    return join(
        el("h1", f"Ablation: {document['name']}"),
        el("p", "Every variant was trained and scored in the same way, but for what its name stands for.", css="lead"),
        el("ul", *(el("li", chip) for chip in chips), css="chips"),
        el(
            "section",
            el("h2", "At a glance"),
            table(["", *variants], rows, css="glance"),
            el("h3", "What may be claimed"),
            el("ul", *(el("li", line) for line in conclusions(document))),
            *absent,
            id="glance",
        ),
    )


def _glance(document: Mapping[str, Any], metric: Row, body: str, variant: str) -> Html:
    mean = _find(document, "means", metric, body, variant)
    if mean is None:
        return el("span", "not scored", css="note")
    found = _find(document, "differences", metric, body, variant)
    word = None if found is None else el("span", _WORDS[found["verdict"]], css=_CSS[found["verdict"]])
    label = "reference" if variant == document["reference"] else None
    figure = el("b", f"{number(mean['mean'])} {metric['unit']}".strip())
    return join(figure, el("br"), el("span", _span(mean), css="note"), el("br"), word, label)


def _mode(document: Mapping[str, Any], mode: str) -> Html:
    parts = []
    for metric, body in _columns(document):
        if metric["mode"] == mode:
            means = _rows(document, "means", metric, body)
            differences = _rows(document, "differences", metric, body)
            direction = "more is better" if metric["better"] > 0 else "less is better"
            charts = [
                el("div", el("h4", f"Mean over seeds ({direction})"), _bars(means, metric)),
                el("div", el("h4", f"Difference to {document['reference']}"), _bars(differences, metric)),
            ]
            shown = charts if differences else charts[:1]
            parts += [el("h3", _title(metric, body)), el("div", *shown, css="cols"), _table(document, metric, body)]
    return el("section", el("h2", mode), *parts, id=mode)


def _bars(rows: Sequence[Row], metric: Row) -> Html:
    unit = f" {metric['unit']}".rstrip()
    bars = [
        Bar(
            label=row["variant"],
            value=row["mean"],
            low=row["low"],
            high=row["high"],
            style="model" if row.get("verdict", "") != "none" else "control",
        )
        for row in rows
    ]
    return bar_chart(bars, unit=unit, title=metric["label"])


def _table(document: Mapping[str, Any], metric: Row, body: str) -> Html:
    rows = []
    for mean in _rows(document, "means", metric, body):
        found = _find(document, "differences", metric, body, mean["variant"])
        values = [
            f["value"]
            for cell in document["cells"]
            if cell["variant"] == mean["variant"]
            for f in cell["figures"]
            if (f["metric"], f["embodiment"]) == (metric["name"], body)
        ]
        told = (
            ["-"] * 3
            if found is None
            else [f"{_signed(found['mean'])}, {_span(found)}", _p(found), _WORDS[found["verdict"]]]
        )
        rows.append(
            [
                mean["variant"],
                ", ".join(map(number, values)),
                number(mean["mean"]),
                number(mean["deviation"]),
                _span(mean),
                *told,
            ]
        )
    head = ["Variant", "Each seed", "Mean", "Deviation", "Interval", "Difference", "p (Holm)", "Verdict"]
    return el("details", el("summary", "All figures"), table(head, rows))


def _method(document: Mapping[str, Any]) -> Html:
    differs = [[name, el("code", " ".join(values) or "nothing")] for name, values in document["variants"].items()]
    same = [[key, el("code", json.dumps(value))] for key, value in document["conditions"].items()]
    same += [["held-out data", el("code", f"manifest sha256 {document['data'].get('manifest_sha256', 'unknown')}")]]
    same += [["command", el("code", document.get("command", ""))], ["commit", el("code", str(document.get("commit")))]]
    return el(
        "section",
        *(el("h2", "How this was measured"), el("p", document["method"])),
        *(el("h3", "What differs"), table(["Variant", "Settings"], differs)),
        *(el("h3", "What is the same"), table(["", ""], same)),
        id="method",
    )


def _variants(document: Mapping[str, Any]) -> list[str]:
    """The reference first."""
    reference = document["reference"]
    return [reference, *(name for name in document["variants"] if name != reference)]


def _columns(document: Mapping[str, Any]) -> list[tuple[Row, str]]:
    return [
        (metric, body)
        for metric in document["metrics"]
        for body in dict.fromkeys(r["embodiment"] for r in document["means"] if r["metric"] == metric["name"])
    ]


def _rows(document: Mapping[str, Any], what: str, metric: Row, body: str) -> list[Row]:
    return [r for r in document[what] if (r["metric"], r["embodiment"]) == (metric["name"], body)]


def _find(document: Mapping[str, Any], what: str, metric: Row, body: str, variant: str) -> Row | None:
    return next((r for r in _rows(document, what, metric, body) if r["variant"] == variant), None)


def _title(metric: Row, body: str) -> str:
    unit = f" ({metric['unit']})" if metric["unit"] else ""
    return f"{metric['mode']}, {metric['label']}{unit}" + (f", {body}" if body else "")


def _cell(document: Mapping[str, Any], metric: Row, body: str, variant: str) -> str:
    mean = _find(document, "means", metric, body, variant)
    if mean is None:
        return "not scored"
    found = _find(document, "differences", metric, body, variant)
    return f"{number(mean['mean'])} ({_span(mean)}){_MARK[found['verdict']] if found else ''}"


def _span(row: Row) -> str:
    return "no interval" if row["low"] is None else f"{number(row['low'])} to {number(row['high'])}"


def _effect(row: Row) -> str:
    return f"{row['variant']} ({_signed(row['mean'])}, {_span(row)})"


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{number(value)}"


def _p(row: Row) -> str:
    return "-" if row["p_holm"] is None else f"{row['p_holm']:.2g}"


def _missing(document: Mapping[str, Any]) -> list[str]:
    return [f"{m['variant']}, seed {m['seed']}: {m['reason']}" for m in document["missing"]]
