"""By how many steps one series follows another: lagged correlation summed over episodes, with a bootstrap over them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import einsum, repeat
from jaxtyping import Float

_RIDGE = 1e-3
_DRAWS = 200
_COMPONENTS = 6
_DETREND_S = 3.0
MIN_EPISODES = 4
MIN_STEPS = 60


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """A stretch without gaps: what should lead, and what should follow it."""

    episode: int
    cause: Float[np.ndarray, "n dx"]
    """One row a step; row i covers the time from i to i + 1 steps."""
    effect: Float[np.ndarray, "m dy"]
    """Row j covers the time from `j * ratio` to `(j + 1) * ratio` steps."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lag:
    """An estimate; positive where the effect comes after the cause, in steps of the cause."""

    steps: float
    low: float
    """5 % quantile of the draws."""
    high: float
    share: float
    """Of the draws, how many fell within half a step."""
    peak: float
    """Correlation at the lag, from 0 to 1."""
    second: float
    """The highest correlation two or more steps away."""
    episodes: int
    rows: int
    lags: Float[np.ndarray, " k"]
    curve: Float[np.ndarray, " k"]

    @property
    def sure(self) -> bool:
        """Whether the evidence carries a statement."""
        inside = self.lags[0] + 0.5 < self.steps < self.lags[-1] - 0.5
        enough = self.episodes >= MIN_EPISODES and self.rows >= MIN_STEPS
        return bool(enough and inside and self.share >= 0.8 and self.high - self.low <= 2 and self.peak >= 0.15)


def estimate_lag(segments: Sequence[Segment], rate: float, ratio: float, seed: int = 0) -> Lag | None:
    """Estimate the lag of the effect behind the cause.

    At each lag the effect's steps are explained from the cause's, summed over the same time, by ridge regression (for one
    number each, that is their correlation); the lag is where this is best, between steps by a parabola.

    Args:
        segments: Of all episodes; each is centred and freed of slow trends by itself.
        rate: Steps a second.
        ratio: Steps of the cause that one row of the effect covers.
        seed: Of the bootstrap.

    Returns:
        The estimate, or None where nothing moves or no segment is long enough.
    """
    lags = _range(segments, rate, ratio)
    if lags is None:
        return None
    causes, effects = _reduced([s.cause for s in segments]), _reduced([s.effect for s in segments])
    if causes is None or effects is None:
        return None
    count = 1 + max(segment.episode for segment in segments)
    width = causes[0].shape[1] + effects[0].shape[1]
    moments = np.zeros((count, len(lags), width, width))
    rows = 0
    for segment, cause, effect in zip(segments, causes, effects, strict=True):
        found, used = _moments(cause, effect, lags, ratio, round(_DETREND_S * rate / ratio))
        moments[segment.episode] += found
        rows += used
    moments = moments[[bool(m.any()) for m in moments]]
    split = causes[0].shape[1]
    if not len(moments) or not (curve := _scores(moments.sum(axis=0), split)).any():
        return None
    weights = np.random.default_rng(seed).multinomial(len(moments), [1 / len(moments)] * len(moments), _DRAWS)
    draws = np.array([_peak(lags, _scores(einsum(w, moments, "e, e k a b -> k a b"), split)) for w in weights])
    steps = _peak(lags, curve)
    return Lag(
        steps=steps,
        low=float(np.quantile(draws, 0.05)),
        high=float(np.quantile(draws, 0.95)),
        share=float((np.abs(draws - steps) <= 0.5).mean()),
        peak=float(curve.max()),
        second=float(max(curve[np.abs(lags - steps) >= 2], default=0.0)),
        episodes=len(moments),
        rows=rows,
        lags=lags.astype(float),
        curve=curve,
    )


def _range(segments: Sequence[Segment], rate: float, ratio: float) -> np.ndarray | None:
    """Return the lags to try: up to three quarters of a second or six steps, if that leaves most of a typical segment."""
    if not segments:
        return None
    typical = float(np.median([min(len(s.cause), len(s.effect) * ratio) for s in segments]))
    most = int(min(max(6, np.ceil(0.75 * rate), 4 * ratio), 0.45 * typical, 60))
    return np.arange(-most, most + 1) if most >= 2 else None


def _reduced(arrays: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """Standardise the channels that move, and keep few directions of them, the most active."""
    rows = np.concatenate(arrays)
    spread = rows.std(axis=0)
    keep = spread > 1e-6 * max(1.0, float(np.abs(rows).max(initial=0)))
    if not keep.any() or len(rows) < 8:
        return None
    scaled = [(array[:, keep] - rows[:, keep].mean(axis=0)) / spread[keep] for array in arrays]
    if keep.sum() <= _COMPONENTS:
        return scaled
    _, vectors = np.linalg.eigh(np.cov(np.concatenate(scaled).T))
    return [array @ vectors[:, -_COMPONENTS:] for array in scaled]


def _moments(
    cause: np.ndarray, effect: np.ndarray, lags: np.ndarray, ratio: float, window: int
) -> tuple[Float[np.ndarray, "k a a"], int]:
    """Return the products of cause and effect at each lag, and the rows at the middle one."""
    width = cause.shape[1] + effect.shape[1]
    found, used = np.zeros((len(lags), width, width)), 0
    total = np.concatenate([np.zeros((1, cause.shape[1])), np.cumsum(cause, axis=0)])
    # the same rows of the effect at every lag where that leaves enough, so that lags differ in nothing but the lag
    edges = np.arange(len(effect) + 1) * ratio
    for number, lag in enumerate(lags):
        begin, end = edges[:-1] - lag, edges[1:] - lag
        inside = (begin > -1e-6) & (end < len(cause) + 1e-6)
        if inside.sum() < 4:
            continue
        led = _at(total, end[inside]) - _at(total, begin[inside])
        both = _detrend(np.concatenate([led, effect[inside]], axis=1), window)
        found[number] = both.T @ both
        used = max(used, int(inside.sum()))
    return found, used


def _at(total: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Read a running sum between its rows."""
    places = np.clip(places, 0, len(total) - 1)
    low = np.minimum(places.astype(int), len(total) - 2)
    part = (places - low)[:, None]
    return total[low] * (1 - part) + total[low + 1] * part


def _detrend(rows: np.ndarray, window: int) -> np.ndarray:
    """Take away the mean, or in long stretches the mean over a window around each row."""
    if len(rows) <= window or window < 3:
        return rows - rows.mean(axis=0)
    total = np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0)])
    places = np.arange(len(rows))
    low, high = np.maximum(places - window // 2, 0), np.minimum(places + window // 2 + 1, len(rows))
    return rows - (total[high] - total[low]) / (high - low)[:, None]


def _scores(moments: Float[np.ndarray, "k a a"], split: int) -> Float[np.ndarray, " k"]:
    """Return the multiple correlation at each lag; with one number on each side, the plain one, negatives as 0."""
    xx, xy, yy = moments[:, :split, :split], moments[:, :split, split:], moments[:, split:, split:]
    scale = einsum(xx, "k a a -> k") / split
    damped = xx + repeat(_RIDGE * scale + 1e-12, "k -> k a 1", a=split) * np.eye(split)
    explained = einsum(xy, np.linalg.solve(damped, xy), "k a b, k a b -> k")
    whole = einsum(yy, "k b b -> k")
    squared = np.divide(explained, whole, out=np.zeros_like(whole), where=whole > 1e-9)
    found = np.sqrt(np.clip(squared, 0, 1))
    return np.where(xy[:, 0, 0] > 0, found, 0.0) if moments.shape[1] == 2 else found


def _peak(lags: np.ndarray, curve: np.ndarray) -> float:
    """Return where the curve is highest, between lags by a parabola through three points."""
    top = int(np.argmax(curve))
    if not 0 < top < len(lags) - 1:
        return float(lags[top])
    left, middle, right = curve[top - 1 : top + 2]
    bend = left - 2 * middle + right
    return float(lags[top] + (0.5 * (left - right) / bend if bend < -1e-12 else 0.0))
