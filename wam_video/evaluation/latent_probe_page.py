"""The page of a probe of latent actions, made from its record alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wam_video.evaluation.latent_probe import NAME
from wam_video.evaluation.svg import Bar, bar_chart
from wam_video.markup import Html, el, join, table
from wam_video.page import frame, write_page

_TARGETS = {
    "recorded": "Actions as they were recorded",
    "relative": "Actions relative to the state at the beginning of the pair",
}


def write_probe(document: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write `latent_probe.json` and `report.html` into `folder` and return their paths.

    Raises:
        DataError: The folder can't be written.
    """
    return write_page(folder, NAME, document, render(document))


def render(document: Mapping[str, Any]) -> str:
    """Return the page."""
    model = document["latent_actions"]["config"]
    chips = [
        f"{model['method']}, {model['dim']} numbers of {model['interval_s']:g} s",
        f"data: {document['data']['dataset']}, judged on {document['data']['judged_on']}",
        f"{document['pairs']} pairs, {document['episodes']['judged']} episodes judged",
    ]
    head = join(
        el("h1", "Latent actions: can the true ones be read out of them?"),
        el(
            "p",
            "A line is fitted from latents to true actions on some episodes and judged on others. 1 is all of their variance, 0 no "
            "more than their mean; whiskers are 95 % intervals over episodes.",
            css="lead",
        ),
        el("ul", *(el("li", chip) for chip in chips), css="chips"),
        el("ul", *(el("li", flag, css="no") for flag in document["flags"]), css="checks")
        if document["flags"]
        else None,
    )
    targets = dict.fromkeys(row["target"] for row in document["rows"])
    return frame("Latent actions", [head, *(_target(document, target) for target in targets)])


def _target(document: Mapping[str, Any], target: str) -> Html:
    rows = [row for row in document["rows"] if row["target"] == target]
    bars = [
        Bar(
            label=document["conditions"][row["condition"]],
            value=row["r2"]["value"],
            low=row["r2"]["low"],
            high=row["r2"]["high"],
            style="model" if row["condition"] == "latent" else "control",
        )
        for row in rows
        if row["dimension"] is None
    ]
    each = [[row["dimension"], _interval(row["r2"])] for row in rows if row["dimension"] is not None]
    gains = [
        [document["conditions"][row["control"]], _interval(row["r2_more"])]
        for row in document["differences"]
        if row["target"] == target
    ]
    return el(
        "section",
        el("h2", _TARGETS.get(target, target)),
        bar_chart(bars, width=620, title=f"R2, {target}"),
        el("h3", "R2 more than the controls"),
        table(["control", "difference"], gains),
        el("h3", "By dimension"),
        table(["dimension", "R2"], each),
    )


def _interval(estimate: Mapping[str, float | None]) -> str:
    if estimate["value"] is None:
        return "not defined"
    ends = "" if estimate["low"] is None else f" [{estimate['low']:.3f}, {estimate['high']:.3f}]"
    return f"{estimate['value']:.3f}{ends}"
