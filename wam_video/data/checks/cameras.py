"""Cameras that show nothing, stand still while the robot moves, or give fewer pictures than they say."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool

from wam_video.data.checks.digest import Body, ClipDigest, EpisodeDigest
from wam_video.data.checks.finding import Curves, Finding, Sheet

DEAD_SPREAD = 3.0
"""Standard deviation within a frame, of 255, under which it is one colour."""
STILL_PEAK = (0.75, 4.0)
"""Largest change of a cell, of 255, under which two frames are the same picture, at least and at most: coding changes some."""
STILL_SHARE = 0.04
"""The same, of the change that is usual in the view."""
FROZEN_S, FROZEN_FRAMES = 1.0, 4
"""How long the picture has to stand: both."""
REPEATED_SHARE = 0.3
"""Of the frames in motion, how many have to repeat the one before them."""


def check_dead(body: Body) -> Iterator[Finding]:
    """Yield views that are one colour, in some episodes or in all."""
    for view in body.spec.views:
        shown = [episode for episode in body.episodes if episode.views(view)]
        dead = [episode for episode in shown if _dead(episode, view)]
        if not dead:
            continue
        siblings = [episode.episode_id for episode in shown if episode not in dead][:3]
        where = f"{body.spec.name} view {view}"
        if len(dead) == len(shown):
            alone = all(_dead(episode, other) for episode in shown for other in episode.clips[0].views)
            yield Finding(
                check="dead-camera",
                severity="error" if alone else "note",
                where=where,
                text="one colour in every episode, " + ("and there is no other view" if alone else "so it is padding")
                if alone or len(shown) > 1
                else "one colour in the only episode",
                facts={"episodes": len(dead), "of": len(shown)},
            )
            continue
        for episode in dead:
            brightness = float(np.mean(np.concatenate([v.brightness for v in episode.views(view)])))
            yield Finding(
                check="dead-camera",
                severity="warning",
                where=f"{body.spec.name} episode {episode.episode_id} view {view}",
                text=f"one colour (brightness {brightness:.0f} of 255) while {len(shown) - len(dead)} other episodes "
                "show something; leave the episode or the view out",
                facts={"brightness": round(brightness, 1), "episodes": len(dead), "of": len(shown)},
                figures=(
                    Sheet(title="beside other episodes", view=view, episodes=(episode.episode_id, *siblings[:2])),
                ),
            )


def _dead(episode: EpisodeDigest, view: str) -> bool:
    return all(float(np.median(one.spread)) < DEAD_SPREAD for one in episode.views(view))


def check_frozen(body: Body) -> Iterator[Finding]:
    """Yield stretches in which the picture stands while the robot moves, and views with fewer pictures than frames."""
    if not body.spec.action_dim or not body.spec.action_rate:
        return
    threshold = _moving_threshold(body)
    for view in body.spec.views:
        shown = [e for e in body.episodes if e.views(view) and not _dead(e, view)]
        peak = _still_peak(shown, view)
        usual = float(np.median([_still_share(body, e, view, threshold, peak) for e in shown])) if shown else 0.0
        for episode in shown:
            start, length = _longest(body, episode, view, threshold, peak)
            seconds = length / body.spec.fps
            if length < FROZEN_FRAMES or seconds < FROZEN_S:
                continue
            # a robot that works out of sight stands still in every episode
            severity = "warning" if usual < 0.1 else "note"
            yield Finding(
                check="frozen-frames",
                severity=severity,
                where=f"{body.spec.name} episode {episode.episode_id} view {view}",
                text=f"the picture stands for {seconds:.1f} s from {start:.1f} s on while the robot moves; "
                "cut it out or leave the episode out",
                facts={"start_s": round(start, 3), "seconds": round(seconds, 3), "usual_share": round(usual, 3)},
                figures=(_speeds(body, episode, view), Sheet(title="", view=view, episodes=(episode.episode_id,))),
            )
        yield from _repeated(body, view, shown, threshold, peak)


def _repeated(body: Body, view: str, shown: list[EpisodeDigest], threshold: float, peak: float) -> Iterator[Finding]:
    """Yield a finding where single frames repeat regularly: the true rate is lower than the stated."""
    still = moved = 0
    for episode in shown:
        for clip in episode.clips:
            if view not in clip.views or (moving := _moving(body, clip, threshold)) is None:
                continue
            same = clip.views[view].peak < peak
            # one repeat between two changes; runs are `frozen-frames`
            lone = same[1:-1] & ~same[:-2] & ~same[2:] if len(same) > 2 else same[:0]
            pair = same[1:-2] & same[2:-1] & ~same[:-3] & ~same[3:] if len(same) > 3 else same[:0]
            inner = moving[1:-1] if len(same) > 2 else moving[:0]
            still += int((lone & inner).sum()) + 2 * int(pair.sum())
            moved += int(inner.sum())
    if moved < 20 or still / moved < REPEATED_SHARE:
        return
    true = body.spec.fps * (1 - still / moved)
    yield Finding(
        check="repeated-frames",
        severity="warning",
        where=f"{body.spec.name} view {view}",
        text=f"{still / moved:.0%} of the frames in motion repeat the one before: about {true:.3g} pictures a second, "
        f"not {body.spec.fps:g}; convert with --fps {true:.3g} or less",
        facts={"share": round(still / moved, 3), "fps": body.spec.fps, "pictures_per_second": round(true, 3)},
    )


def _still_peak(shown: list[EpisodeDigest], view: str) -> float:
    """Return the change of a cell below which a frame of this view repeats the one before."""
    peaks = np.concatenate([one.peak for episode in shown for one in episode.views(view)] or [np.zeros(0)])
    changing = peaks[peaks > STILL_PEAK[0]]
    return float(np.clip(STILL_SHARE * np.median(changing), *STILL_PEAK)) if len(changing) else STILL_PEAK[0]


def _speed(body: Body, clip: ClipDigest) -> np.ndarray | None:
    """Return the robot's speed during each frame step: its state's change, or what its actions ask for where it has none."""
    rows = clip.state if clip.state is not None else clip.actions
    if rows is None or len(rows) < 3:
        return None
    if clip.state is None and body.is_delta:
        speed = np.linalg.norm((rows - np.median(rows, axis=0)).astype(np.float64), axis=1)
    else:
        speed = np.linalg.norm(np.diff(rows.astype(np.float64), axis=0), axis=1)
    speed = np.concatenate([speed, speed[-1:]])
    steps = (np.arange(clip.num_frames - 1) / body.spec.fps * body.spec.action_rate).astype(int)
    return np.where(steps < len(speed), speed[np.minimum(steps, len(speed) - 1)], 0.0)


def _moving_threshold(body: Body) -> float:
    """Return a quarter of the typical speed; less counts as rest."""
    parts = [_speed(body, clip) for e in body.episodes for clip in e.clips]
    speeds = np.concatenate([part for part in parts if part is not None] or [np.zeros(0)])
    speeds = speeds[speeds > 1e-9]
    return 0.25 * float(np.median(speeds)) if len(speeds) else np.inf


def _moving(body: Body, clip: ClipDigest, threshold: float) -> Bool[np.ndarray, " g"] | None:
    speed = _speed(body, clip)
    return None if speed is None else speed > threshold


def _longest(body: Body, episode: EpisodeDigest, view: str, threshold: float, peak: float) -> tuple[float, int]:
    """Return where the longest stretch of equal frames begins, in seconds, and its length, if the robot moves in most of it."""
    best = (0.0, 0)
    for clip in episode.clips:
        if view not in clip.views or (moving := _moving(body, clip, threshold)) is None:
            continue
        edges = np.flatnonzero(np.diff(np.concatenate([[0], clip.views[view].peak < peak, [0]])))
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            if end - begin > best[1] and moving[begin:end].mean() >= 0.6:
                best = (clip.start_s + begin / body.spec.fps, int(end - begin))
    return best


def _still_share(body: Body, episode: EpisodeDigest, view: str, threshold: float, peak: float) -> float:
    parts = [
        clip.views[view].peak[moving] < peak
        for clip in episode.clips
        if view in clip.views and (moving := _moving(body, clip, threshold)) is not None
    ]
    joined = np.concatenate(parts) if parts else np.zeros(0)
    return float(joined.mean()) if len(joined) else 0.0


def _speeds(body: Body, episode: EpisodeDigest, view: str) -> Curves:
    clip = max((c for c in episode.clips if view in c.views), key=lambda c: c.num_frames)
    motion = clip.views[view].motion
    speed = _speed(body, clip)
    times = clip.start_s + np.arange(len(motion)) / body.spec.fps
    lines = {"picture": (times, motion / max(float(motion.max()), 1e-9))}
    if speed is not None:
        lines["robot"] = (times, speed / max(float(speed.max()), 1e-9))
    return Curves(title=f"{episode.episode_id}: motion of picture and robot", axis="seconds", lines=lines)
