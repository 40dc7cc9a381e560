"""Do actions, state and picture belong together in time? Lags between the speeds of each two of them.

What sound recordings show (Bridge, GR1, Language-Table, PushT, Meta-World): the state and the picture move together within
half a step; actions lead both by the delay of the controller, from 0 to 1.6 steps, at most 0.3 s; nothing ever moves
before it is told to. So a lag below zero is a fault, one above the delays of controllers is most likely one, and what lies
between can be told from a delay only by someone who knows it: `delay`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wam_video.data.checks.digest import Body, ClipDigest
from wam_video.data.checks.finding import Curves, Finding
from wam_video.data.checks.lag import Lag, Segment, estimate_lag

EARLY_STEPS = 0.3
"""How far before its cause an effect may seem to come, for the estimate's own error."""
LATE_S, LATE_STEPS = 0.4, 2.0
"""The longest delays of controllers that were met; the larger of the two counts."""
TOGETHER_S, TOGETHER_STEPS = 0.1, 0.75
"""How far state and picture may seem apart."""
OFF_STEPS = 0.6
"""How far from a known delay is a fault."""


@dataclass(frozen=True, kw_only=True)
class _Pair:
    name: str
    cause: str
    effect: str
    says: str


PAIRS = (
    _Pair(name="actions-state", cause="actions", effect="state", says="the state follows the actions"),
    _Pair(name="actions-video", cause="actions", effect="video", says="the picture follows the actions"),
    _Pair(name="state-video", cause="state", effect="video", says="the picture follows the state"),
)


def check_alignment(body: Body, delay: float | None = None) -> Iterator[Finding]:
    """Yield for each two of actions, state and picture by how many steps they are apart, or that it can't be told.

    Args:
        body: All episodes.
        delay: Seconds by which state and picture are known to follow the actions; None for any natural delay.
    """
    if not body.spec.action_dim or not body.spec.action_rate:
        return
    for pair in PAIRS:
        if "state" in (pair.cause, pair.effect) and not body.spec.state_dim:
            continue
        lag, kind = lag_between(body, pair.cause, pair.effect)
        yield _judge(body, pair, lag, kind, delay)


def lag_between(body: Body, cause: str, effect: str) -> tuple[Lag | None, str]:
    """Return the clearest estimate among the kinds of speed that may fit, and which it is."""
    kinds = {"actions": ("value", "change"), "state": ("change",)}[cause]
    numeric = effect == "state"
    best: tuple[Lag | None, str] = (None, kinds[0])
    for kind in kinds:
        segments = _segments(body, cause, effect, kind, signed=numeric)
        ratio = 1.0 if numeric else body.spec.action_rate / body.spec.fps
        lag = estimate_lag(segments, body.spec.action_rate, ratio)
        if lag is not None and (best[0] is None or lag.peak > best[0].peak):
            best = (lag, kind)
    return best


def _segments(body: Body, cause: str, effect: str, kind: str, *, signed: bool) -> list[Segment]:
    ranges = {name: _range(body, name) for name in ("actions", "state") if name in (cause, effect)}
    found = []
    for number, episode in enumerate(body.episodes):
        for clip in episode.clips:
            led = _steps(clip, cause, kind, ranges)
            if led is None:
                continue
            followed = _motion(clip) if effect == "video" else _steps(clip, effect, "change", ranges)
            if followed is None or len(followed) < 4 or len(led) < 4:
                continue
            speed = led if signed else np.linalg.norm(led, axis=1, keepdims=True)
            found.append(Segment(episode=number, cause=speed, effect=followed))
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Range:
    """What most of a quantity's numbers keep to, so that a wild one does not outweigh all others."""

    low: np.ndarray
    high: np.ndarray
    scale: np.ndarray
    """Each channel's spread within its range; 0 for those that do not move."""


def _range(body: Body, quantity: str) -> _Range | None:
    rows = body.rows(quantity)
    if rows is None:
        return None
    low, high = np.quantile(rows.astype(np.float64), [0.01, 0.99], axis=0)
    spread = np.clip(rows, low, high).std(axis=0)
    scale = np.where(spread > 1e-6 * np.maximum(1, np.maximum(np.abs(low), np.abs(high))), spread, 0)
    return _Range(low=low, high=high, scale=scale)


def _steps(clip: ClipDigest, quantity: str, kind: str, ranges: dict[str, _Range | None]) -> np.ndarray | None:
    """Return one row an action step: the action, its change from the one before, or the state's change over the step."""
    rows, span = getattr(clip, quantity), ranges[quantity]
    if rows is None or len(rows) < 4 or span is None or not span.scale.any():
        return None
    live = span.scale > 0
    scaled = np.clip(rows, span.low, span.high)[:, live].astype(np.float64) / span.scale[live]
    if kind == "value":
        return scaled
    change = np.diff(scaled, axis=0)
    return np.concatenate([change[:1] * 0, change]) if quantity == "actions" else change


def _motion(clip: ClipDigest) -> np.ndarray | None:
    """Return the root of the picture's motion, its views on one scale and averaged."""
    parts = [np.sqrt(view.motion) for view in clip.views.values() if len(view.motion) and view.motion.max() > 0.02]
    if not parts:
        return None
    return np.mean([part / max(part.mean(), 1e-9) for part in parts], axis=0)[:, None]


def _judge(body: Body, pair: _Pair, lag: Lag | None, kind: str, delay: float | None) -> Finding:
    where = body.spec.name
    if lag is None or not lag.sure:
        facts = {} if lag is None else _facts(lag, kind, body)
        text = "can't be told from this data" + ("" if lag is None else f" ({_evidence(lag)})")
        return Finding(check=f"lag-{pair.name}", severity="note", where=where, text=text, facts=facts)
    low, high = _allowed(pair, body.spec.action_rate, delay)
    bad = lag.steps < low or lag.steps > high
    text = f"{pair.says} by {lag.steps:+.1f} steps ({lag.steps / body.spec.action_rate:+.2f} s; {_evidence(lag)})"
    if bad:
        text += f"; expected {low:+.1f} to {high:+.1f} steps: {_advice(pair, lag, low)}"
    return Finding(
        check=f"lag-{pair.name}",
        severity="warning" if bad else "note",
        where=where,
        text=text,
        facts=_facts(lag, kind, body) | {"expected": [low, high]},
        figures=_figures(body, pair, lag, kind) if bad else (),
    )


def _allowed(pair: _Pair, rate: float, delay: float | None) -> tuple[float, float]:
    if pair.cause == "state":
        reach = max(TOGETHER_STEPS, TOGETHER_S * rate)
        return -reach, reach
    if delay is not None:
        return delay * rate - OFF_STEPS, delay * rate + OFF_STEPS
    return -EARLY_STEPS, max(LATE_STEPS, LATE_S * rate)


def _advice(pair: _Pair, lag: Lag, low: float) -> str:
    if pair.cause == "state":
        return "state and picture are shifted against each other; align them by their recorded times"
    if lag.steps < low:
        return f"nothing moves before it is told to; the actions are {low - lag.steps + EARLY_STEPS:.0f} or more late"
    return "the actions are early, or the controller is slow: if its delay is known, give --delay"


def _evidence(lag: Lag) -> str:
    return (
        f"{lag.share:.0%} of draws over {lag.episodes} episodes within half a step, correlation {lag.peak:.2f}, "
        f"elsewhere {lag.second:.2f}"
    )


def _facts(lag: Lag, kind: str, body: Body) -> dict[str, object]:
    return {
        "steps": round(lag.steps, 3),
        "seconds": round(lag.steps / body.spec.action_rate, 4),
        "interval": [round(lag.low, 3), round(lag.high, 3)],
        "share_of_draws": round(lag.share, 3),
        "correlation": round(lag.peak, 4),
        "second": round(lag.second, 4),
        "episodes": lag.episodes,
        "rows": lag.rows,
        "speed": kind,
        "curve": {f"{step:g}": round(float(value), 4) for step, value in zip(lag.lags, lag.curve, strict=True)},
    }


def _figures(body: Body, pair: _Pair, lag: Lag, kind: str) -> tuple[Curves, ...]:
    """Return the correlation over lags, and the two speeds of one episode as they are and at the found lag."""
    over = Curves(
        title="correlation over lags",
        axis="lag, steps",
        lines={pair.name: (lag.lags, lag.curve)},
        marks=(0.0, lag.steps),
    )
    segments = _segments(body, pair.cause, pair.effect, kind, signed=False)
    longest = max(segments, key=lambda segment: len(segment.effect))
    ratio = 1.0 if pair.effect == "state" else body.spec.action_rate / body.spec.fps
    led, followed = longest.cause[:, 0], np.linalg.norm(longest.effect, axis=1)
    led_at, followed_at = np.arange(len(led)) + 0.5, (np.arange(len(followed)) + 0.5) * ratio
    effect_label = "picture" if pair.effect == "video" else pair.effect
    shown = [over]
    for title, shift in (("speeds as recorded", 0.0), (f"{pair.cause} moved by {lag.steps:+.1f} steps", lag.steps)):
        lines = {pair.cause: (led_at + shift, _unit(led)), effect_label: (followed_at, _unit(followed))}
        shown.append(Curves(title=f"{body.episodes[longest.episode].episode_id}: {title}", axis="steps", lines=lines))
    return tuple(shown)


def _unit(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / max(float(values.std()), 1e-9)
