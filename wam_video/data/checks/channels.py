"""Channels of actions and state that stand still, hit their bounds, or jump out of their range."""

from collections.abc import Iterator

import numpy as np

from wam_video.data.checks.digest import Body
from wam_video.data.checks.finding import Bars, Finding

SATURATED = 0.25
"""Share of the numbers at one extreme that is too much for a channel that is no switch."""
SWITCH_VALUES = 5
"""A channel with as few different values is a switch."""
OUTLIER = 20.0
"""Times the distance from the median to the 1 % or 99 % quantile."""
_MIN_ROWS = 50


def check_channels(body: Body) -> Iterator[Finding]:
    """Yield constant, saturated and outlying channels."""
    for quantity in ("actions", "state"):
        rows = body.rows(quantity)
        if rows is None or len(rows) < 2:
            continue
        names = body.names(quantity)
        spread = rows.max(axis=0) - rows.min(axis=0)
        still = [i for i in range(rows.shape[1]) if spread[i] <= 1e-6 * max(1.0, float(np.abs(rows[:, i]).max()))]
        yield from _constant(body, quantity, names, rows, still)
        if len(rows) < _MIN_ROWS:
            continue
        moving = sorted(set(range(rows.shape[1])) - set(still))
        # what moves by a hundredth of what the others do is held, and trembles
        floor = 0.02 * float(np.median(spread[moving])) if moving else 0.0
        for i in moving:
            where = f"{body.spec.name} {quantity} {names[i]}"
            units = body.spec.action_units[i : i + 1] if quantity == "actions" else ()
            yield from _saturated(where, rows[:, i].astype(np.float64), "normalised" in units)
            yield from _outliers(body, quantity, i, where, floor)


def _constant(
    body: Body, quantity: str, names: tuple[str, ...], rows: np.ndarray, still: list[int]
) -> Iterator[Finding]:
    if not still:
        return
    whole = len(still) == rows.shape[1]
    listed = ", ".join(f"{names[i]} = {rows[0, i]:.4g}" for i in still[:6]) + (", ..." if len(still) > 6 else "")
    yield Finding(
        check="constant-channels",
        severity="warning" if whole and len(rows) >= _MIN_ROWS else "note",
        where=f"{body.spec.name} {quantity}",
        text=f"{len(still)} of {rows.shape[1]} channels never change: {listed}"
        + ("; the recording holds nothing" if whole else ""),
        facts={"channels": [names[i] for i in still], "of": rows.shape[1]},
    )


def _saturated(where: str, values: np.ndarray, normalised: bool) -> Iterator[Finding]:
    low, high = float(values.min()), float(values.max())
    width = high - low
    shares = [float((np.abs(values - end) <= 1e-4 * width).mean()) for end in (low, high)]
    if max(shares) < SATURATED or len(np.unique(np.round((values - low) / width, 3))) <= SWITCH_VALUES:
        return
    inner = values[(values > low + 0.02 * width) & (values < high - 0.02 * width)]
    if len(inner) < 0.2 * len(values):  # a switch that takes its time, e.g. a gripper
        return
    if len(np.unique(values)) < 0.02 * len(values) and shares[0] > 0:
        return
    resting = shares[0] >= SATURATED and abs(low) <= 1e-4 * width  # at zero it rests
    bound = normalised and np.isclose(max(abs(low), abs(high)), 1, atol=1e-3)
    yield Finding(
        check="saturated-channel",
        severity="note" if resting or bound else "warning",
        where=where,
        text=f"{shares[0]:.0%} of the values are its lowest ({low:.4g}) and {shares[1]:.0%} its highest ({high:.4g})"
        + ("" if resting or bound else "; it was cut off, look for the clipping"),
        facts={"low": low, "high": high, "share_low": round(shares[0], 4), "share_high": round(shares[1], 4)},
        figures=() if resting or bound else (Bars(title=where, values=values, bounds=(low, high)),),
    )


def _outliers(body: Body, quantity: str, index: int, where: str, floor: float) -> Iterator[Finding]:
    rows = body.rows(quantity)
    if rows is None:
        return
    values = rows[:, index].astype(np.float64)
    low, middle, high = np.quantile(values, [0.01, 0.5, 0.99])
    reach = max(middle - low, high - middle)
    if reach <= 1e-6 * max(1.0, abs(middle)):  # it rests but for moments
        return
    reach = max(reach, floor)
    off = np.abs(values - middle) / reach
    if off.max() < OUTLIER:
        return
    count = int((off >= OUTLIER).sum())
    episodes = [
        e.episode_id
        for e in body.episodes
        if (own := e.rows(quantity)) is not None and (np.abs(own[:, index] - middle) / reach >= OUTLIER).any()
    ]
    yield Finding(
        check="outliers",
        severity="warning",
        where=where,
        text=f"{count} of {len(values)} values lie {OUTLIER:g} times farther out than 98 % of them ({low:.4g} to "
        f"{high:.4g}), up to {values[int(off.argmax())]:.4g}, in {len(episodes)} episodes ({', '.join(episodes[:3])})",
        facts={"count": count, "q01": float(low), "q99": float(high), "episodes": episodes[:20]},
        figures=(Bars(title=where, values=values, bounds=(float(low), float(high))),),
    )
