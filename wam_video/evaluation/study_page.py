"""The page's sections of the studies: for each one its checks, charts beside their controls, curves, films and a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from wam_video.evaluation import clips
from wam_video.evaluation.scores import Row
from wam_video.evaluation.sections import checks_list, interval
from wam_video.evaluation.study import Curve, Film, StudyWords
from wam_video.evaluation.study_run import Studied
from wam_video.evaluation.svg import Axes, Bar, Series, bar_chart, line_chart, number
from wam_video.markup import Html, el, join, table

Found = Mapping[str, Sequence[tuple[str, Studied]]]
"""Name of the model -> (embodiment, study)."""

_STYLES = ("s1", "s2", "s3", "s4", "s0")
_MAX_FILMS = 4


def study_sections(found: Found, max_films: int = _MAX_FILMS) -> list[Html]:
    """Return one section a study, the models and bodies side by side, with at most so many films each."""
    names = list(dict.fromkeys(s.study.name for studied in found.values() for _, s in studied))
    return [_section(name, found, min(max_films, _MAX_FILMS)) for name in names]


def study_left_out(found: Found) -> list[tuple[str, str]]:
    """Return what the studies had to leave out, each once."""
    pairs = [pair for studied in found.values() for _, s in studied for pair in s.findings.left_out]
    return list(dict.fromkeys(pairs))


def _section(name: str, found: Found, max_films: int) -> Html:
    units = [
        (f"{model}, {body}" if len({b for b, _ in studied}) > 1 else model, s)
        for model, studied in found.items()
        for body, s in studied
        if s.study.name == name
    ]
    words = units[0][1].study.words
    columns = [_column(title, s, len(units) > 1, max_films) for title, s in units]
    return el(
        "section",
        el("h2", words.title),
        el("p", words.sentence),
        el("div", *columns, css="cols" if len(columns) > 1 else None),
        id=f"study-{name}",
    )


def _column(title: str, studied: Studied, named: bool, max_films: int) -> Html:
    found, words = studied.findings, studied.study.words
    parts: list[Any] = [el("h4", title) if named else None, checks_list(found.answers) if found.answers else None]
    charts = [chart for metric in words.metrics for chart in _charts(metric, words, found.rows)]
    charts = [_curve(curve) for curve in found.curves] + charts
    parts.append(el("div", *charts, css="cols") if charts else None)
    parts.append(_films(found.films[:max_films]))
    if found.timing:
        times = ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in found.timing.items())
        parts.append(el("p", f"Measured on this machine, which may have been busy: {times}.", css="note"))
    if not found.rows:
        reasons = "; ".join(f"{metric}: {reason}" for metric, reason in found.left_out)
        parts.append(el("p", f"Not measured. {reasons}", css="note"))
    else:
        parts.append(el("details", el("summary", "All figures of this study"), _table(words, found.rows)))
    return el("div", *parts)


def _charts(metric: str, words: StudyWords, rows: Sequence[Row]) -> list[Html]:
    """Return the bars of a metric, and its curves where it was measured at several times."""
    mine = [r for r in rows if r.metric == metric and r.dimension is None and r.view is None]
    bars = [
        Bar(
            label=words.conditions.get(r.condition, r.condition),
            value=r.estimate.value,
            low=r.estimate.low,
            high=r.estimate.high,
            style="model" if r.condition == next(iter(words.conditions)) else "control",
        )
        for r in mine
        if r.time_s is None
    ]
    parts = []
    if bars:
        ends = [x for b in bars for x in (b.value, b.low, b.high) if x is not None]
        chart = bar_chart(bars, unit="", title=words.metrics[metric], domain=(min(ends), max(ends)))
        parts.append(el("div", el("h3", words.metrics[metric]), chart))
    curves = _curves([r for r in mine if r.time_s is not None], words)
    if curves:
        axes = Axes(
            x_label="seconds into the future", y_label=metric, title=f"{metric} over time", dots=len(curves[0].x) < 20
        )
        parts.append(el("div", el("h3", f"{words.metrics[metric]}, over time"), line_chart(curves, axes)))
    return parts


def _curves(rows: Sequence[Row], words: StudyWords) -> list[Series]:
    series = []
    # a further line would look like one of these; its bar says enough
    for i, condition in enumerate(list(dict.fromkeys(r.condition for r in rows))[: len(_STYLES)]):
        points = sorted((r for r in rows if r.condition == condition), key=lambda r: r.time_s or 0.0)
        if len(points) < 2:
            continue
        series.append(
            Series(
                label=words.conditions.get(condition, condition),
                x=[r.time_s or 0.0 for r in points],
                y=[r.estimate.value for r in points],
                low=[r.estimate.low for r in points],
                high=[r.estimate.high for r in points],
                style=_STYLES[i],
            )
        )
    return series


def _curve(curve: Curve) -> Html:
    axes = Axes(x_label=curve.x_label, y_label=curve.y_label, title=curve.title, dots=True)
    return el("div", el("h3", curve.title), line_chart(curve.series, axes))


def _films(films: Sequence[Film]) -> Html | None:
    if not films:
        return None
    cards = [
        el(
            "figure",
            clips.movie(film.frames.cpu().numpy(), film.seconds_a_frame, film.caption),
            el("figcaption", film.caption),
        )
        for film in films
    ]
    return el("div", *cards, css="gallery")


def _table(words: StudyWords, rows: Sequence[Row]) -> Html:
    lines = [
        [
            words.conditions.get(r.condition, r.condition),
            r.metric,
            ", ".join(x for x in (r.dimension, r.view, None if r.time_s is None else f"{r.time_s:g} s") if x) or "all",
            f"{number(r.estimate.value)} {r.unit}".strip(),
            interval(r.estimate),
            r.estimate.num_windows,
            r.estimate.num_episodes,
        ]
        for r in rows
    ]
    return join(table(["Condition", "Figure", "Of", "Value", "95 % interval", "Windows", "Episodes"], lines))
