"""Degrees for radians, millimetres for metres, and grippers that open where the others close."""

import re
from collections.abc import Iterator

import numpy as np

from wam_video.data.checks.digest import Body, EpisodeDigest
from wam_video.data.checks.finding import Bars, Finding
from wam_video.data.checks.lag import MIN_EPISODES

FACTORS = {"degrees for radians, or the reverse": 180 / np.pi, "millimetres for metres, or the reverse": 1000.0}
_TOLERANCE = 1.6
"""An episode's scale is its own within such a factor: episodes differ in how much they move."""
_STEADY = 2.5
"""Only channels whose scale differs by less than this factor between most episodes can tell."""
_NOTHING = 1e-12
_MOST_RADIANS = 3 * np.pi
"""Values beyond this are no angle in radians, wound up a little."""
_ANGLE = re.compile(r"(^|_)d?(roll|pitch|yaw|rx|ry|rz|theta|angle|joint|rot)", re.IGNORECASE)
_PLACE = re.compile(
    r"(^|[_.])(d|delta_?|eef_?|ee_?|tcp_?|rel_?)?(x|y|z|pos\w*|position|trans\w*|width)([_.]?\d+)?$", re.IGNORECASE
)
"""Names of what is a length and no angle."""
_GRIPPER = re.compile(r"grip|finger|claw|jaw", re.IGNORECASE)


def check_units(body: Body) -> Iterator[Finding]:
    """Yield angles that can't be in the stated unit, and episodes or actions on another scale."""
    yield from _angles(body)
    for quantity in ("actions", "state"):
        yield from _episode_scales(body, quantity)
    yield from _action_scale(body)


def _angles(body: Body) -> Iterator[Finding]:
    rows = body.rows("actions")
    units = body.spec.action_units
    if rows is None or not units:
        return
    names = body.names("actions")
    for i, unit in enumerate(units):
        values = rows[:, i].astype(np.float64)
        most = float(np.abs(values).max())
        if unit.lower() in ("rad", "radian", "radians") and most > _MOST_RADIANS:
            yield Finding(
                check="units",
                severity="warning",
                where=f"{body.spec.name} actions {names[i]}",
                text=f"said to be in {unit}, and reaches {most:.4g}: no angle; are these degrees?",
                facts={"unit": unit, "largest": most},
                figures=(Bars(title=names[i], values=values, bounds=(-np.pi, np.pi)),),
            )
    degrees = [i for i, unit in enumerate(units) if unit.lower() in ("deg", "degree", "degrees")]
    moving = [i for i in degrees if rows[:, i].std() > 1e-3]
    most = float(np.abs(rows[:, moving]).max()) if moving else 0.0
    if moving and most <= 2 * np.pi and not body.is_delta:
        yield Finding(
            check="units",
            severity="warning",
            where=f"{body.spec.name} actions {', '.join(names[i] for i in moving)}",
            text=f"said to be in degrees, and none of them reaches more than {most:.3g}: are these radians?",
            facts={"largest": most},
        )


def _episode_scales(body: Body, quantity: str) -> Iterator[Finding]:
    """Yield episodes in which channels are on a scale that is a known factor off the others'."""
    shown = [(e, rows) for e in body.episodes if (rows := e.rows(quantity)) is not None and len(rows) >= 4]
    if len(shown) < MIN_EPISODES:
        return
    names = body.names(quantity)
    sizes = np.stack([_size(rows) for _, rows in shown])
    scales = np.log(np.maximum(sizes, _NOTHING))
    middle = np.median(scales, axis=0)
    spread = np.median(np.abs(scales - middle), axis=0)
    for number, (episode, _) in enumerate(shown):
        for label, factor in FACTORS.items():
            off = scales[number] - middle
            hit = [
                i
                for i in range(len(off))
                if spread[i] < np.log(_STEADY)
                and abs(abs(off[i]) - np.log(factor)) < np.log(_TOLERANCE) + spread[i]
                and _nobody_else(scales[:, i], number, middle[i], off[i])
            ]
            if factor < 100:
                hit = [i for i in hit if not _is_length(names[i])]
            if hit and (factor > 100 or _angles_hit(names, hit)):
                yield _scale_finding(
                    body, quantity, episode, [names[i] for i in hit], label, float(np.exp(off[hit[0]]))
                )
                break


def _is_length(name: str) -> bool:
    return bool((_PLACE.search(name) or _GRIPPER.search(name)) and not _ANGLE.search(name))


def _angles_hit(names: tuple[str, ...], hit: list[int]) -> bool:
    """Return whether what is off are angles: by their names, or where no name says angle, many at once."""
    if any(_ANGLE.search(name) for name in names):
        return any(_ANGLE.search(names[i]) for i in hit)
    return len(hit) >= max(2, len(names) / 3)


def _size(rows: np.ndarray) -> np.ndarray:
    """Return the root mean square of each channel without its largest few values, which may be spikes."""
    ranked = np.sort(np.abs(rows.astype(np.float64)), axis=0)
    return np.sqrt((ranked[: max(1, len(ranked) - 1 - len(ranked) // 20)] ** 2).mean(axis=0))


def _nobody_else(column: np.ndarray, number: int, middle: float, off: float) -> bool:
    """Return whether this episode stands apart: nearly all others are within half of its distance (in logarithms)."""
    others = np.delete(column, number)
    return bool(len(others) and (np.abs(others - middle) < abs(off) / 2).mean() >= 0.9)


def _scale_finding(
    body: Body, quantity: str, episode: EpisodeDigest, names: list[str], label: str, times: float
) -> Finding:
    channel = body.names(quantity).index(names[0])
    rows, own = body.rows(quantity), episode.rows(quantity)
    bounds = () if own is None else (float(own[:, channel].min()), float(own[:, channel].max()))
    figures = () if rows is None else (Bars(title=names[0], values=rows[:, channel].astype(float), bounds=bounds),)
    return Finding(
        check="units",
        severity="warning",
        where=f"{body.spec.name} episode {episode.episode_id} {quantity} {', '.join(names[:4])}",
        text=f"{times:.3g} times the scale of the other episodes: {label}",
        facts={"episode": episode.episode_id, "channels": names, "times": times},
        figures=figures,
    )


def _action_scale(body: Body) -> Iterator[Finding]:
    """Yield channels whose actions and state changes, or values, of the same name differ by a known factor."""
    state_names, action_names = body.names("state"), body.names("actions")
    actions, state = body.rows("actions"), body.rows("state")
    if actions is None or state is None:
        return
    delta = body.is_delta
    for label, factor in FACTORS.items():
        hit = []
        for i, name in enumerate(action_names):
            plain = re.sub(r"^(d|delta_)(?=[a-z])", "", name)
            if _GRIPPER.search(name) or plain not in state_names:
                continue
            ratio = _matched_ratio(body, i, state_names.index(plain), delta)
            if ratio is not None and abs(abs(np.log(ratio)) - np.log(factor)) < np.log(_TOLERANCE):
                hit.append((name, ratio))
        if hit:
            yield Finding(
                check="units",
                severity="warning",
                where=f"{body.spec.name} actions {', '.join(name for name, _ in hit)}",
                text=f"{hit[0][1]:.3g} times the {'changes' if delta else 'values'} of the state of the same name: {label}",
                facts={"channels": {name: float(ratio) for name, ratio in hit}},
            )


def _matched_ratio(body: Body, action: int, state: int, delta: bool) -> float | None:
    """Return how many times larger the action is than what it does, where the two go together."""
    led, followed = [], []
    for episode in body.episodes:
        for clip in episode.clips:
            if clip.actions is None or clip.state is None or len(clip.actions) < 4:
                continue
            column = clip.state[:, state].astype(np.float64)
            led.append(clip.actions[:, action].astype(np.float64))
            followed.append(np.diff(column) if delta else column[1:])
    if not led:
        return None
    x, y = np.concatenate(led), np.concatenate(followed)
    if len(x) < 30 or x.std() < 1e-9 or y.std() < 1e-9 or np.corrcoef(x, y)[0, 1] < 0.5:
        return None
    return float(x.std() / y.std())


def check_gripper(body: Body) -> Iterator[Finding]:
    """Yield episodes whose gripper goes the other way than the others', and actions against a state of the same name."""
    names = body.names("actions")
    for i in [i for i, name in enumerate(names) if _GRIPPER.search(name)]:
        pairs = [j for j, name in enumerate(body.names("state")) if _GRIPPER.search(name)]
        if not body.spec.state_names and body.spec.state_dim == body.spec.action_dim:
            pairs = [i]  # a state without names that is as wide as the actions has their order
        # several fingers have no one to one partner
        partner = pairs[0] if len(pairs) == 1 and sum(bool(_GRIPPER.search(n)) for n in names) == 1 else None
        found = set()
        if partner is not None:
            for finding in _against_state(body, i, partner):
                found.add(finding.facts.get("episode"))
                yield finding
        if sum(bool(_GRIPPER.search(n)) for n in names) <= 2:
            yield from (f for f in _against_others(body, i) if f.facts["episode"] not in found)


def _against_state(body: Body, action: int, state: int) -> Iterator[Finding]:
    signs: dict[str, float] = {}
    for episode in body.episodes:
        sums = np.zeros(3)
        for clip in episode.clips:
            if clip.actions is None or clip.state is None or len(clip.actions) < 4:
                continue
            x = clip.actions[:, action].astype(np.float64)
            y = clip.state[1:, state].astype(np.float64)
            x, y = x - x.mean(), y - y.mean()
            sums += (x @ y, x @ x, y @ y)
        if sums[1] > 1e-6 and sums[2] > 1e-6:
            signs[episode.episode_id] = float(sums[0] / np.sqrt(sums[1] * sums[2]))
    clear = {name: value for name, value in signs.items() if abs(value) >= 0.5}
    if len(clear) < 2:
        return
    action_name, state_name = body.names("actions")[action], body.names("state")[state]
    overall = float(np.median(list(clear.values())))
    usual = np.sign(overall)
    agree = sum(np.sign(value) == usual for value in clear.values()) / len(clear)
    where = f"{body.spec.name} actions {action_name}"
    if overall < 0 and agree >= 0.8:
        unnamed = not body.spec.state_names and overall <= -0.7 and len(clear) >= 4
        same = action_name.lower() == state_name.lower() or unnamed
        yield Finding(
            check="gripper-sign",
            severity="warning" if same else "note",
            where=where,
            text=f"falls where the state's {state_name} rises (correlation {overall:.2f} in {len(clear)} episodes): "
            + (
                "both should be the same, so one of them has the wrong sign"
                if same
                else "its direction is the other one"
            ),
            facts={"correlation": overall, "episodes": len(clear)},
        )
    if agree >= 0.7 and len(clear) >= 4:
        for name, value in clear.items():
            if np.sign(value) != usual and abs(value) >= 0.7:
                yield _odd_gripper(
                    body, action, name, f"correlation with the state {value:+.2f}, others' {overall:+.2f}"
                )


def _against_others(body: Body, action: int) -> Iterator[Finding]:
    """Yield episodes that begin closed where nearly all others begin open, or the reverse, and end so too."""
    rows = body.rows("actions")
    if rows is None or len(body.episodes) < 8:
        return
    low, high = float(rows[:, action].min()), float(rows[:, action].max())
    if high - low < 1e-6:
        return
    starts, means = {}, {}
    for episode in body.episodes:
        own = episode.rows("actions")
        if own is not None and len(own) >= 4 and episode.clips[0].start_s == 0:
            starts[episode.episode_id] = (float(np.median(own[:3, action])) - low) / (high - low)
            means[episode.episode_id] = float(own[:, action].mean())
    values = np.array(list(starts.values()))
    if len(values) < 8:
        return
    side = float(np.median(values))
    if 0.2 < side < 0.8:
        return
    odd = [name for name, value in starts.items() if abs(value - side) > 0.8]
    if 1 <= len(odd) <= max(1, 0.1 * len(values)):
        for name in odd:
            yield _odd_gripper(
                body, action, name, f"begins at {starts[name]:.0%} of its range, the others at {side:.0%}"
            )


def _odd_gripper(body: Body, action: int, episode: str, why: str) -> Finding:
    name = body.names("actions")[action]
    return Finding(
        check="gripper-sign",
        severity="warning",
        where=f"{body.spec.name} episode {episode} actions {name}",
        text=f"goes the other way than in the other episodes ({why}); flip its sign or leave the episode out",
        facts={"episode": episode, "channel": name, "why": why},
    )
