"""Small charts as inline SVG: bars with intervals, curves with bands, and the noise square.

Colours are CSS classes of the page (`page.css`), so that they follow its light or dark scheme; series are told apart by
class `s0`, `s1`, ... and by dash, never by colour alone. Every text is escaped here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from wam_video.flow.modes import ModeSpec, Role
from wam_video.markup import Html, join

_CHAR = 6.9
"""Pixels of a character of the labels, about."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar: a figure with its interval."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    style: str = "control"
    """`model` or `control`."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve; points that are None are left out."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    style: str = "s0"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a scatter, with intervals both ways."""

    label: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What surrounds curves."""

    x_label: str = ""
    y_label: str = ""
    width: int = 420
    height: int = 220
    title: str = ""
    legend: bool = True
    dots: bool = False
    """Mark each point: for few points that are the measurement, not samples of a curve."""


def bar_chart(
    bars: Sequence[Bar], *, unit: str = "", width: int = 460, title: str = "", domain: tuple[float, float] = (0.0, 0.0)
) -> Html:
    """Draw horizontal bars from zero with whiskers, one a line, the figure written after each.

    Args:
        bars: Those without a value are listed as not defined.
        unit: Written after each figure.
        width: Pixels.
        title: Read out to those who don't see the picture.
        domain: Values that the axis covers at least, so that several charts share a scale.
    """
    known = [x for b in bars for x in (b.value, b.low, b.high) if x is not None]
    top, bottom = max([0.0, domain[1], *known]), min([0.0, domain[0], *known])
    span = (top - bottom) or 1.0
    left = max((len(b.label) for b in bars), default=0) * _CHAR + 12
    room = width - left - 92
    row = 26

    def x(value: float) -> float:
        return left + (value - bottom) / span * room

    parts = [f'<line class="axis" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="2" y2="{row * len(bars) - 2}"/>']
    for i, bar in enumerate(bars):
        y = i * row + row / 2
        parts.append(
            f'<text class="label" x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(bar.label)}</text>'
        )
        if bar.value is None:
            parts.append(f'<text class="value" x="{x(0) + 6:.1f}" y="{y + 4:.1f}">not defined</text>')
            continue
        a, b = sorted((x(0), x(bar.value)))
        parts.append(
            f'<rect class="bar {bar.style}" x="{a:.1f}" y="{y - 8:.1f}" width="{b - a:.1f}" height="16" rx="2"/>'
        )
        end = max(b, x(0))
        if bar.low is not None and bar.high is not None:
            lo, hi = x(bar.low), x(bar.high)
            parts.append(
                f'<path class="whisker" d="M{lo:.1f} {y:.1f}H{hi:.1f}M{lo:.1f} {y - 4:.1f}v8M{hi:.1f} {y - 4:.1f}v8"/>'
            )
            end = max(end, hi)
        parts.append(f'<text class="value" x="{end + 6:.1f}" y="{y + 4:.1f}">{number(bar.value)}{escape(unit)}</text>')
    return _svg(width, row * len(bars), parts, title)


def line_chart(series: Sequence[Series], axes: Axes) -> Html:
    """Draw curves with bands over a plain grid, the labels in a legend above."""
    points = [v for s in series for ys in (s.y, s.low or (), s.high or ()) for v in ys if v is not None]
    xs = [v for s in series for v in s.x]
    if not points or not xs:
        return Html('<p class="note">Nothing to draw.</p>')
    x_ticks, y_ticks = ticks(min(xs), max(xs), 5), ticks(min(points), max(points), 4)
    x0, x1 = min(xs), max(*xs, min(xs) + 1e-9)
    y0, y1 = min(y_ticks[0], *points), max(y_ticks[-1], *points)
    left, top, right, bottom = 46, 10, axes.width - 10, axes.height - 36

    def px(x: float) -> float:
        return left + (x - x0) / (x1 - x0) * (right - left)

    def py(y: float) -> float:
        return bottom - (y - y0) / ((y1 - y0) or 1.0) * (bottom - top)

    parts = []
    for tick in y_ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{py(tick):.1f}" y2="{py(tick):.1f}"/>')
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{py(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    parts += [
        f'<text class="tick" x="{px(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{number(tick)}</text>'
        for tick in x_ticks
        if x0 <= tick <= x1
    ]
    parts.append(f'<text class="tick" x="{right}" y="{bottom + 30}" text-anchor="end">{escape(axes.x_label)}</text>')
    for s in series:
        parts += _curve(s, px, py, axes.dots)
    caption = Html(f'<div class="axis-name">{escape(axes.y_label)}</div>') if axes.y_label else None
    return join(legend(series) if axes.legend else None, caption, _svg(axes.width, axes.height, parts, axes.title))


def _curve(s: Series, px, py, dots: bool) -> list[str]:
    known = [(px(x), py(y)) for x, y in zip(s.x, s.y, strict=True) if y is not None]
    parts = []
    if s.low is not None and s.high is not None:
        band = [
            (px(x), py(a), py(b)) for x, a, b in zip(s.x, s.low, s.high, strict=True) if a is not None and b is not None
        ]
        outline = [f"{x:.1f},{b:.1f}" for x, _, b in band] + [f"{x:.1f},{a:.1f}" for x, a, _ in reversed(band)]
        parts.append(f'<polygon class="band {s.style}" points="{" ".join(outline)}"/>')
    parts.append(f'<polyline class="line {s.style}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in known)}"/>')
    if dots or len(known) == 1:
        parts += [f'<circle class="dot {s.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in known]
    return parts


def scatter_chart(points: Sequence[Point], axes: Axes, *, top: float = 1.0) -> Html:
    """Draw points on a square from 0 to `top` both ways, with the diagonal on which both agree; each is numbered as listed."""
    side = axes.width
    left, low = 46.0, side - 40.0

    def px(x: float) -> float:
        return left + x / top * (low - 10)

    def py(y: float) -> float:
        return low - y / top * (low - 10)

    parts = []
    for tick in ticks(0.0, top, 4):
        parts.append(
            f'<line class="grid" x1="{px(0):.1f}" x2="{px(top):.1f}" y1="{py(tick):.1f}" y2="{py(tick):.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{py(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
        parts.append(f'<text class="tick" x="{px(tick):.1f}" y="{low + 15}" text-anchor="middle">{number(tick)}</text>')
    parts.append(f'<line class="axis" x1="{px(0):.1f}" y1="{py(0):.1f}" x2="{px(top):.1f}" y2="{py(top):.1f}"/>')
    parts.append(f'<text class="tick" x="{px(top):.1f}" y="{low + 31}" text-anchor="end">{escape(axes.x_label)}</text>')
    for i, p in enumerate(points, 1):
        x, y = px(p.x), py(p.y)
        (x0, x1), (y0, y1) = p.x_interval or (p.x, p.x), p.y_interval or (p.y, p.y)
        parts.append(f'<path class="reach" d="M{px(x0):.1f} {y:.1f}H{px(x1):.1f}M{x:.1f} {py(y0):.1f}V{py(y1):.1f}"/>')
        parts.append(
            f'<circle class="dot s1" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(p.label)}</title></circle>'
        )
        parts.append(f'<text class="label" x="{x + 7:.1f}" y="{y - 6:.1f}">{i}</text>')
    caption = Html(f'<div class="axis-name">{escape(axes.y_label)}</div>') if axes.y_label else None
    return join(caption, _svg(side + 8, side, parts, axes.title))


def legend(series: Sequence[Series]) -> Html:
    """Return the key of the curves."""
    keys = (
        f'<span class="key"><svg width="22" height="8" aria-hidden="true"><line class="line {s.style}" x1="1" x2="21" y1="4" '
        f'y2="4"/></svg>{escape(s.label)}</span>'
        for s in series
    )
    return Html(f'<div class="legend">{"".join(keys)}</div>')


def noise_square(spec: ModeSpec, *, size: int = 132) -> Html:
    """Draw the unit square of the two noise clocks and a mode's way across it: from where it starts to where it ends."""
    lo, hi = 26.0, size - 8.0

    def corner(video: float, action: float) -> tuple[float, float]:
        return lo + (1 - video) * (hi - lo), (size - 24) - (1 - action) * (size - 34)

    def clocks(role: Role) -> tuple[float, float]:
        return {Role.GIVEN: (0.0, 0.0), Role.GENERATE: (1.0, 0.0)}.get(role, (1.0, 1.0))

    (v0, v1), (a0, a1) = clocks(spec.video), clocks(spec.actions)
    (x0, y0), (x1, y1) = corner(v0, a0), corner(v1, a1)
    (left, low), (right, high) = corner(1, 1), corner(0, 0)
    length = math.hypot(x1 - x0, y1 - y0) or 1.0
    ex, ey = x1 - (x1 - x0) / length * 9, y1 - (y1 - y0) / length * 9
    nx, ny = -(y1 - y0) / length * 5, (x1 - x0) / length * 5
    parts = [
        f'<rect class="square" x="{left}" y="{high}" width="{right - left}" height="{low - high}"/>',
        f'<path class="way" d="M{x0:.1f} {y0:.1f}L{ex:.1f} {ey:.1f}"/>',
        f'<path class="head" d="M{x1:.1f} {y1:.1f}L{ex + nx:.1f} {ey + ny:.1f}L{ex - nx:.1f} {ey - ny:.1f}Z"/>',
        f'<circle class="start" cx="{x0:.1f}" cy="{y0:.1f}" r="4"/>',
        f'<text class="tick" x="{left}" y="{low + 14:.0f}">noise</text>',
        f'<text class="tick" x="{right}" y="{low + 14:.0f}" text-anchor="end">video</text>',
        f'<text class="tick" transform="translate({left - 7} {low}) rotate(-90)">noise</text>',
        f'<text class="tick" transform="translate({left - 7} {high}) rotate(-90)" text-anchor="end">actions</text>',
    ]
    title = f"From video {'noise' if v0 else 'given'}, actions {'noise' if a0 else 'given'}, to the end of the arrow"
    return _svg(size, size, parts, title, css="noise-square")


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers that cover [low, high]."""
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float | None) -> str:
    """Write a figure with about three digits."""
    if value is None:
        return "-"
    if abs(value) < 1e-12:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:.{min(digits, 5)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2g}"


def _svg(width: float, height: float, parts: Sequence[str], title: str, css: str = "chart") -> Html:
    label = f' role="img" aria-label="{escape(title)}"' if title else ' aria-hidden="true"'
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return Html(f'<svg class="{css}" {size}{label}>{"".join(parts)}</svg>')
