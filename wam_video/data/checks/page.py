"""The page about what was found: a table of all findings, and pictures of those that matter. One file, no network."""

import base64
import html
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

_FRAMES = 8
_MAX_PICTURED = 60
_COLOURS = {"note": "#4a5568", "warning": "#b7791f", "error": "#c53030"}

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1a202c;max-width:1180px;margin:2em auto;padding:0 1em}
h1{margin-bottom:0}h2{margin-top:2em;border-bottom:1px solid #cbd5e0}img{max-width:100%;display:block}
table{border-collapse:collapse;margin:.6em 0}td,th{padding:.2em .9em .2em 0;text-align:left;vertical-align:top}
.grey{color:#4a5568}section{margin:1.2em 0;padding:.2em 0 .2em 1em;border-left:4px solid}
figure{display:inline-block;margin:.4em 1em .4em 0;vertical-align:top}figcaption{color:#4a5568;font-size:.9em}
.s{font-weight:600}
"""


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
    parts = [_head(manifest, findings), "<h2>All findings</h2>", _table(findings)]
    if bold:
        parts.append("<h2>Warnings and errors</h2>")
        parts += [_section(finding, frames if number < _MAX_PICTURED else None) for number, finding in enumerate(bold)]
    content = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(manifest.dataset)}: checks</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    data = {"dataset": manifest.dataset, "counts": _counts(findings), "findings": [f.to_dict() for f in findings]}
    target = page.with_name("findings.json")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(content, encoding="utf-8")
        target.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"can't write {str(page)!r}: {error.strerror}; give another --report") from error
    return target


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    return {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}


def _head(manifest: Manifest, findings: Sequence[Finding]) -> str:
    counts, total = _counts(findings), manifest.counts.get("total", {})
    return (
        f"<h1>{_text(manifest.dataset)}: checks</h1>"
        f'<p class="grey">{total.get("episodes", 0):,} episodes, {total.get("frames", 0):,} frames, '
        f"{total.get('actions', 0):,} actions; converted by {_text(manifest.converter)}.</p>"
        f"<p>{counts['error']} error(s), {counts['warning']} warning(s), {counts['note']} note(s). An error makes data "
        "unusable; a warning is most likely a fault; a note is worth knowing.</p>"
    )


def _table(findings: Sequence[Finding]) -> str:
    rows = "".join(
        f'<tr><td class="s" style="color:{_COLOURS[f.severity]}">{f.severity}</td><td>{_text(f.check)}</td>'
        f"<td>{_text(f.where)}</td><td>{_text(f.text)}</td></tr>"
        for f in findings
    )
    return f"<table><tr><th>severity</th><th>check</th><th>where</th><th>what</th></tr>{rows}</table>"


def _section(finding: Finding, frames: "_Frames | None") -> str:
    figures = [] if frames is None else [_figure(figure, frames) for figure in finding.figures]
    return (
        f'<section style="border-color:{_COLOURS[finding.severity]}"><b>{_text(finding.check)}</b> '
        f'<span class="grey">{_text(finding.where)}</span><div>{_text(finding.text)}</div>{"".join(figures)}</section>'
    )


def _figure(figure: Curves | Bars | Sheet, frames: "_Frames") -> str:
    if isinstance(figure, Curves):
        return _framed(figure.title, _image(plot_lines(figure.axis, figure.lines, figure.marks), figure.title))
    if isinstance(figure, Bars):
        return _framed(figure.title, _image(plot_bounds(figure.values, figure.bounds), figure.title))
    rows = []
    for episode in figure.episodes:
        found = frames.of(episode, figure.view)
        if found is not None:
            label = f"{figure.view} of {episode}"
            rows.append(f'<div class="grey">{_text(episode)}</div>{_image(contact_sheet(found), label, "jpeg")}')
    return _framed(figure.title, "".join(rows))


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


def _framed(title: str, content: str) -> str:
    return f"<figure>{content}<figcaption>{_text(title)}</figcaption></figure>"


def _image(content: bytes, alt: str, kind: str = "png") -> str:
    return f'<img alt="{_text(alt)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def _text(value: Any) -> str:
    return html.escape(str(value))
