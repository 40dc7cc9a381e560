"""The parts of the page: overview, a section for each mode, tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wam_video.data.schema import EmbodimentSpec
from wam_video.evaluation import clips
from wam_video.evaluation.intervals import Estimate
from wam_video.evaluation.open_loop import CONTROL, Key, Shown
from wam_video.evaluation.scores import IDENTICAL, MAX_OFF_SCALE, MIN_MOTION, Answer, Row
from wam_video.evaluation.svg import Axes, Bar, Series, bar_chart, legend, line_chart, noise_square, number
from wam_video.evaluation.wording import CONDITIONS, METRICS, WORDS, Chart, Words
from wam_video.flow.modes import MODES
from wam_video.markup import Html, el, join, table
from wam_video.tensors import Mode

_MAX_DIMS = 4
_SYMBOL = {"yes": "yes", "no": "no", "unknown": "can't tell from one episode"}


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What stands in a column: one model on one embodiment."""

    title: str
    model: str
    spec: EmbodimentSpec
    rows: Sequence[Row]
    answers: Sequence[Answer]
    shown: Sequence[Shown]
    _index: dict[tuple[Any, ...], Estimate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._index.update({(r.mode, r.condition, r.metric, r.dimension, r.time_s): r.estimate for r in self.rows})

    def get(self, key: Key, metric: str, dimension: str | None = None, time_s: float | None = None) -> Estimate | None:
        """Return one estimate, or None if it was not scored."""
        return self._index.get((*key, metric, dimension, time_s))

    def times(self, key: Key, metric: str) -> list[float]:
        """Return the seconds at which a metric was scored step by step, rising."""
        return sorted(t for (*k, m, _, t) in self._index if tuple(k) == key and m == metric and t is not None)

    def answers_of(self, mode: Mode) -> list[Answer]:
        """Return the checks of a mode."""
        return [a for a in self.answers if a.check.mode is mode]


def overview(units: Sequence[Unit], modes: Sequence[Mode]) -> Html:
    """Return the table of modes: the way across the square, what goes in and comes out, and how each model does."""
    rows = []
    for mode in modes:
        words = WORDS[mode]
        name, question = words.title.split(": ", 1)
        label = join(el("b", name), el("br"), el("span", question[0].upper() + question[1:], css="note"))
        rows.append([label, noise_square(MODES[mode], size=104), *(_headline(unit, mode, words) for unit in units)])
    return table(["Mode", "From noise to", *(u.title for u in units)], rows, css="glance")


def _headline(unit: Unit, mode: Mode, words: Words) -> Html:
    answers = unit.answers_of(mode)
    if not answers:
        return el("span", "not run", css="note")
    passed = sum(a.status == "yes" for a in answers)
    flagged = [a.check.flag for a in answers if a.status == "no"]
    status = "yes" if passed == len(answers) else "no" if len(flagged) == len(answers) else "unknown"
    verdict = el("span", f"{passed} of {len(answers)} checks passed", css=f"verdict {status}")
    flags = join(el("br"), el("span", "; ".join(flagged), css="flag")) if flagged else None
    figure = None
    if words.headline is not None:
        name, run = words.headline
        if run and (found := unit.get(words.headline, "r2")) is not None:
            figure = f"R\u00b2 {number(found.value)}: {words.headline_text}"
        for a in answers:
            if a.check.name == name and a.advantage.value is not None:
                figure = f"{a.advantage.value:+.2f} dB {words.headline_text}"
    return join(verdict, el("br"), el("span", figure or "", css="note"), flags)


def mode_section(mode: Mode, units: Sequence[Unit], max_windows: int) -> Html:
    """Return everything about one mode: checks, charts, pictures, and a table to unfold."""
    words = WORDS[mode]
    units = [u for u in units if u.answers_of(mode) or u.get((mode.value, "model"), "psnr")]
    several = len(units) > 1
    columns = []
    for unit in units:
        parts = [el("h4", unit.title) if several else None, checks_list(unit.answers_of(mode))]
        charts = [part for chart in words.charts for part in _chart(unit, chart, units)]
        columns.append(el("div", *parts, el("div", *charts, css="cols")))
    heading = el("header", noise_square(MODES[mode]), el("div", el("h2", words.title), el("p", words.sentence)))
    body = [
        heading,
        el("div", *columns, css="cols" if several else None),
        _gallery(words, units, max_windows),
        _plots(words, units, mode),
    ]
    return el("section", *body, _details(mode, units), id=mode.value)


def checks_list(answers: Iterable[Answer]) -> Html:
    """Return the questions with their answers, and the figures behind them."""
    items = []
    for a in answers:
        low = "" if a.advantage.low is None else f" [{number(a.advantage.low)}, {number(a.advantage.high)}]"
        unit = " dB" if a.check.metric.startswith("psnr") else ""
        value = a.advantage.value or 0.0
        if a.check.metric == IDENTICAL:
            why = f"{value:.0%} of the answers stayed the same, all of them wanted"
        elif a.check.metric == "off_scale":
            why = f"off by {number(MAX_OFF_SCALE - value)} standard deviations, at most {MAX_OFF_SCALE:g} wanted"
        elif a.check.worse is None:
            why = f"motion ratio {number(value + MIN_MOTION)}, at least {MIN_MOTION:g} wanted"
        else:
            why = f"advantage {number(a.advantage.value)}{unit}{low}"
        flag = el("strong", f" {a.check.flag[0].upper()}{a.check.flag[1:]}.") if a.status == "no" else None
        items.append(
            el(
                "li",
                a.check.question,
                f" {_SYMBOL[a.status].capitalize()}.",
                flag,
                el("span", f" {why}", css="why"),
                css=a.status,
            )
        )
    return el("ul", *items, css="checks")


def _chart(unit: Unit, chart: Chart, units: Sequence[Unit]) -> list[Html]:
    found = [(line, unit.get(line.key, chart.metric)) for line in chart.lines]
    found = [(line, e) for line, e in found if e is not None]
    if not found:
        return []
    everywhere = [u.get(line.key, chart.metric) for u in units for line in chart.lines]
    ends = [x for e in everywhere if e is not None for x in (e.value, e.low, e.high) if x is not None]
    bars = [Bar(label=line.label, value=e.value, low=e.low, high=e.high, style=line.style) for line, e in found]
    bar = bar_chart(bars, unit=chart.unit, title=chart.title, domain=(min(ends), max(ends)))
    parts = [el("div", el("h3", chart.title), bar)]
    curves = []
    for line, _ in found:
        times = unit.times(line.key, chart.metric)
        if line.curve is None or len(times) < 3:
            continue
        estimates = [unit.get(line.key, chart.metric, None, t) for t in times]
        values = [(e.value, e.low, e.high) if e else (None, None, None) for e in estimates]
        y, low, high = zip(*values, strict=True)
        curves.append(Series(label=line.label, x=times, y=y, low=low, high=high, style=line.curve))
    if curves:
        axes = Axes(
            x_label="seconds into the future",
            y_label=METRICS[chart.metric],
            title=f"{chart.title}, over time",
            dots=True,
        )
        parts.append(el("div", el("h3", "The same, by how far ahead"), line_chart(curves, axes)))
    return parts


def _gallery(words: Words, units: Sequence[Unit], max_windows: int) -> Html | None:
    if not words.panels or not units:
        return None
    cards = []
    for shown in list(units[0].shown)[:max_windows]:
        films = [_film(words, unit, shown.key, len(units) > 1) for unit in units]
        films = [f for f in films if f is not None]
        if films:
            cards.append(el("figure", *films, el("figcaption", shown.prompt, " ", el("code", shown.key))))
    if not cards:
        return None
    key = join(
        "The bar below a picture is ", el("span", css="swatch", style="background:#969696"), "grey while it shows what was given, ",
        el("span", css="swatch", style="background:#e67814"), "orange once the model draws.",
    )  # fmt: skip
    return join(el("h3", "Held-out moments"), el("p", key, css="note"), el("div", *cards, css="gallery"))


def _film(words: Words, unit: Unit, key: str, named: bool) -> Html | None:
    shown = next((s for s in unit.shown if s.key == key), None)
    if shown is None:
        return None
    panels = [p for p in words.panels if p.key is None or p.key in shown.videos]
    if len(panels) < 2:
        return None
    frames = []
    for p in panels:
        make = clips.difference if p.difference else clips.generated
        frames.append(clips.recorded(shown) if p.key is None else make(shown, p.key))
    k = shown.num_context_frames
    film = clips.strip(frames, k, [p.key is not None for p in panels])
    stride = float(shown.frame_times[k] - shown.frame_times[k - 1])
    heads = el("div", *(el("span", p.label) for p in panels), css="heads")
    return join(el("h4", unit.title) if named else None, heads, clips.movie(film, stride, f"{words.title} {key}"))


def _plots(words: Words, units: Sequence[Unit], mode: Mode) -> Html | None:
    if not words.plots:
        return None
    columns = []
    for unit in units:
        rows = [_action_plots(words, unit, shown) for shown in list(unit.shown)[:3]]
        rows = [r for r in rows if r is not None]
        if rows:
            columns.append(el("div", el("h4", unit.title) if len(units) > 1 else None, el("div", *rows, css="cols")))
    return (
        join(el("h3", "Actions at held-out moments"), el("div", *columns, css="cols" if len(columns) > 1 else None))
        if columns
        else None
    )


def _action_plots(words: Words, unit: Unit, shown: Shown) -> Html | None:
    present = [(label, key, style) for label, key, style in words.plots if key in shown.chunks]
    if not present:
        return None
    spec = unit.spec
    names = spec.action_names or tuple(f"action {i}" for i in range(spec.action_dim))
    units = spec.action_units or ("",) * spec.action_dim
    spread = shown.actions.std(dim=0, unbiased=False) / (shown.actions.abs().mean(dim=0) + 1e-9)
    dims = sorted(spread.argsort(descending=True)[:_MAX_DIMS].tolist()) if len(names) > _MAX_DIMS else range(len(names))
    plots, keys = [], None
    for d in dims:
        times = shown.action_times.tolist()
        known = shown.action_mask[:, d].tolist()
        recorded = [y if k else None for y, k in zip(shown.actions[:, d].tolist(), known, strict=True)]
        series = [Series(label="recorded", x=times, y=recorded, style="s0")]
        series += [
            Series(label=label, x=times, y=shown.chunks[key][:, d].tolist(), style=style)
            for label, key, style in present
        ]
        title = f"{names[d]} ({units[d]})" if units[d] else names[d]
        axes = Axes(
            x_label="seconds",
            y_label=title,
            width=250,
            height=150,
            title=f"{title}, {shown.key}",
            dots=True,
            legend=False,
        )
        keys = legend(series)
        plots.append(line_chart(series, axes))
    note = f" {_MAX_DIMS} of {len(names)} dimensions, those that change most." if len(names) > _MAX_DIMS else ""
    caption = el("figcaption", el("code", shown.key), note)
    return el("figure", keys, el("div", *(el("div", p) for p in plots), css="plots"), caption)


def _details(mode: Mode, units: Sequence[Unit]) -> Html:
    parts = []
    for unit in units:
        kept = [r for r in unit.rows if r.mode in (mode.value, CONTROL) and r.time_s is None]
        gives = {r.metric for r in kept if r.mode == mode.value}
        kept = [r for r in kept if r.metric in gives]
        rows = [
            [CONDITIONS.get(r.condition, r.condition), METRICS[r.metric], r.dimension or "all", f"{number(r.estimate.value)} {r.unit}".strip(),
             interval(r.estimate), r.estimate.num_windows, r.estimate.num_episodes]
            for r in kept
        ]  # fmt: skip
        parts.append(el("h4", unit.title))
        parts.append(table(["Condition", "Figure", "Dimension", "Value", "95 % interval", "Windows", "Episodes"], rows))
    return el("details", el("summary", "All figures of this mode"), *parts)


def interval(estimate: Estimate) -> str:
    """Write an interval, or a dash."""
    return "-" if estimate.low is None else f"{number(estimate.low)} to {number(estimate.high)}"
