"""The page about what was found: a table of all findings, and pictures of those that matter. One file, no network."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wam_video.data.charts import contact_sheet, plot_bounds, plot_lines
from wam_video.data.checks.finding import SEVERITIES, Bars, Curves, Finding, Sheet, ordered
from wam_video.data.manifest import Manifest, SampleEntry, ShardEntry
from wam_video.data.reader import load_clip
from wam_video.errors import DataError
from wam_video.markup import Html, el, join, picture, table
from wam_video.page import frame, write_whole

_FRAMES = 8
_MAX_PICTURED = 60
_COLOURS = {"note": "var(--soft)", "warning": "var(--unknown)", "error": "var(--no)"}

_STYLE = "table.findings td { vertical-align: top; text-align: left; } .s { font-weight: 600; }"


def write_report(folder: Path | str, manifest: Manifest, findings: Sequence[Finding], page: Path | str) -> Path:
    """Write the page, and `findings.json` beside it.

    Args:
        folder: The shards, of which some frames are decoded again for the pictures.
        manifest: Theirs.
        findings: All of them, in any order.
        page: HTML file to write.

    Returns:
        The path of the JSON.

    Raises:
        DataError: The page can't be written.
    """
    folder, page = Path(folder), Path(page)
    findings = ordered(findings)
    frames = _Frames(folder, manifest)
    bold = [finding for finding in findings if finding.severity != "note"]
    sections = [
        el("header", el("div", _head(manifest, findings))),
        el("section", el("h2", "All findings"), _table(findings)),
    ]
    if bold:
        sections.append(el("h2", "Warnings and errors"))
        sections += [
            _section(finding, frames if number < _MAX_PICTURED else None) for number, finding in enumerate(bold)
        ]
    document = frame(f"{manifest.dataset}: checks", sections, _STYLE)
    data = {"dataset": manifest.dataset, "counts": _counts(findings), "findings": [f.to_dict() for f in findings]}
    listed = write_whole(page.parent, "findings.json", (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())
    write_whole(page.parent, page.name, document.encode())
    return listed


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    return {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}


def _head(manifest: Manifest, findings: Sequence[Finding]) -> Html:
    counts, total = _counts(findings), manifest.counts.get("total", {})
    return join(
        el("h1", f"{manifest.dataset}: checks"),
        el(
            "p",
            f"{total.get('episodes', 0):,} episodes, {total.get('frames', 0):,} frames, {total.get('actions', 0):,} actions; "
            f"converted by {manifest.converter}.",
            css="note",
        ),
        el(
            "p",
            f"{counts['error']} error(s), {counts['warning']} warning(s), {counts['note']} note(s). An error makes data unusable; "
            "a warning is most likely a fault; a note is worth knowing.",
        ),
    )


def _table(findings: Sequence[Finding]) -> Html:
    rows = [[_severity(f), f.check, f.where, f.text] for f in findings]
    return table(["severity", "check", "where", "what"], rows, css="findings")


def _severity(finding: Finding) -> Html:
    return el("span", finding.severity, css="s", style=f"color: {_COLOURS[finding.severity]}")


def _section(finding: Finding, frames: "_Frames | None") -> Html:
    figures = [] if frames is None else [_figure(figure, frames) for figure in finding.figures]
    title = el("h3", _severity(finding), f" {finding.check} ", el("span", finding.where, css="note"))
    return el("section", title, el("p", finding.text), el("div", *figures, css="plots"))


def _figure(figure: Curves | Bars | Sheet, frames: "_Frames") -> Html:
    if isinstance(figure, Curves):
        return _framed(figure.title, picture(plot_lines(figure.axis, figure.lines, figure.marks), figure.title))
    if isinstance(figure, Bars):
        return _framed(figure.title, picture(plot_bounds(figure.values, figure.bounds), figure.title))
    rows = []
    for episode in figure.episodes:
        found = frames.of(episode, figure.view)
        if found is not None:
            sheet = picture(contact_sheet(found), f"{figure.view} of {episode}", "jpeg")
            rows += [el("div", episode, css="note"), sheet]
    return _framed(figure.title, *rows)


class _Frames:
    """Decodes some frames of an episode's first clip."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        self._first: dict[str, tuple[ShardEntry, SampleEntry]] = {}
        for shard in manifest.shards:
            for sample in shard.samples:
                self._first.setdefault(sample.episode_id, (shard, sample))

    def of(self, episode: str, view: str) -> list[np.ndarray] | None:
        """Return evenly spread frames, or None where the clip can't be read: that is a finding of its own."""
        if episode not in self._first:
            return None
        try:
            video: Mapping[str, Any] = load_clip(self._folder, *self._first[episode], views=[view]).video
        except DataError:
            return None
        if view not in video:
            return None
        picks = np.unique(np.linspace(0, len(video[view]) - 1, _FRAMES).round().astype(int))
        return [video[view][i] for i in picks]


def _framed(title: str, *content: Html) -> Html:
    return el("figure", *content, el("figcaption", title))
