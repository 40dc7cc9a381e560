"""Episodes that came twice, are longer in actions than in pictures, drift apart, or say nothing of what is done."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from einops import rearrange

from wam_video.data.checks.alignment import lag_between
from wam_video.data.checks.digest import Body, ClipDigest, EpisodeDigest
from wam_video.data.checks.finding import Finding, Sheet

_SAME_PICTURE = 1.5
"""Mean difference, of 255, under which two videos are one."""
_SAME_MOTION = 0.1
"""Mean difference of the two videos' motion, of that motion."""
_PLACEHOLDER = re.compile(
    r"^\W*$|^(task|episode|instruction|prompt|text|language|default|test|demo|example|unknown|dummy|todo|tbd|none|null|"
    r"n/?a|nan|placeholder|unlabel\w*|no[ _]?(label|instruction|task|prompt))([\W_]*\d*)*$|placeholder|lorem ipsum|"
    r"^unlabel\w* |<[a-z_ ]+>|\{[a-z_ ]*\}|fill (me|this) in",
    re.IGNORECASE,
)


def check_duplicates(body: Body) -> Iterator[Finding]:
    """Yield groups of episodes with the same actions or the same video."""
    groups: dict[str, list[EpisodeDigest]] = defaultdict(list)
    for episode in body.episodes:
        groups[_key(episode)].append(episode)
    found = [group for group in groups.values() if len(group) > 1]
    taken = {episode.episode_id for group in found for episode in group[1:]}
    by_video: dict[tuple[int, ...], list[EpisodeDigest]] = defaultdict(list)
    for episode in body.episodes:
        if episode.episode_id not in taken:
            by_video[tuple(clip.num_frames for clip in episode.clips)].append(episode)
    for candidates in by_video.values():
        found += _same_video(candidates)
    for group in found:
        names, alike = [episode.episode_id for episode in group], _what_is_same(group)
        view = next(iter(group[0].clips[0].views), "")
        yield Finding(
            check="duplicate-episodes",
            severity="note" if alike == "pictures" else "warning",
            where=f"{body.spec.name} episode {names[1]}",
            text=("looks the same as" if alike == "pictures" else "the same recording as")
            + f" {names[0]}"
            + (f"; so are {', '.join(names[2:5])}" if len(names) > 2 else "")
            + (
                ", but acts otherwise"
                if alike == "pictures"
                else f" (same {alike}); keep one, lest it counts twice or is in both splits"
            ),
            facts={"episodes": names, "same": alike},
            figures=(Sheet(title="the episodes", view=view, episodes=tuple(names[:4])),) if view else (),
        )


def _key(episode: EpisodeDigest) -> str:
    """Return a hash of the actions where they vary, else of the video."""
    rows = episode.rows("actions")
    if rows is not None and len(rows) >= 4 and (rows.std(axis=0) > 1e-6).any():
        state = episode.rows("state")
        return hashlib.sha256(rows.tobytes() + (b"" if state is None else state.tobytes())).hexdigest()
    parts = [one.content for clip in episode.clips for one in clip.views.values() if one.spread.max() > 3]
    return "".join(parts) or episode.episode_id


def _same_video(episodes: list[EpisodeDigest]) -> list[list[EpisodeDigest]]:
    """Return groups whose frames are equal but for coding noise; simulations that merely begin alike are not."""
    shown = [(episode, one) for episode in episodes if (one := _moments(episode)) is not None]
    shown = [(e, m) for e, m in shown if m.shape == shown[0][1].shape][:2000]
    groups, used = [], set()
    stacked = np.stack([m for _, m in shown]) if shown else np.zeros((0, 1))
    for i, (episode, moments) in enumerate(shown):
        if i in used:
            continue
        largest = np.abs(stacked[i + 1 :] - moments).max(axis=1)
        near = [int(j) + i + 1 for j in np.flatnonzero(largest < 2 * _SAME_PICTURE)]
        alike = [j for j in near if j not in used and _same_motion(episode, shown[j][0])]
        if alike and _moves(episode):
            groups.append([episode, *(shown[j][0] for j in alike)])
            used.update(alike)
    return groups


def _moments(episode: EpisodeDigest) -> np.ndarray | None:
    parts = [
        rearrange(one.moments, "m p q -> (m p q)")
        for clip in episode.clips
        for one in clip.views.values()
        if float(one.spread.max()) > 3
    ]
    return np.concatenate(parts) if parts else None


def _same_motion(one: EpisodeDigest, other: EpisodeDigest) -> bool:
    """Return whether the pictures change alike at every step, which two runs of a simulation do not."""
    first, second = (np.concatenate([v.motion for c in e.clips for v in c.views.values()]) for e in (one, other))
    return bool(np.abs(first - second).mean() < _SAME_MOTION * max(float(first.mean()), 1e-9))


def _moves(episode: EpisodeDigest) -> bool:
    """Return whether something happens in the picture: stills look alike without being the same."""
    return any(float(one.motion.sum()) > 2 * _SAME_PICTURE for clip in episode.clips for one in clip.views.values())


def _what_is_same(group: list[EpisodeDigest]) -> str:
    first, second = (episode.rows("actions") for episode in group[:2])
    if first is None or second is None:
        return "video"
    close = first.shape == second.shape and np.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.std()))
    return "actions" if close else "pictures"


def check_durations(body: Body) -> Iterator[Finding]:
    """Yield episodes whose actions last longer or shorter than their video, and drift between the two."""
    spec = body.spec
    if not spec.action_dim or not spec.action_rate:
        return
    longest = 1.6 * max(1 / spec.fps, 1 / spec.action_rate)
    off = []
    for episode in body.episodes:
        for clip in episode.clips:
            if clip.actions is None or not len(clip.actions):
                continue
            video, actions = (clip.num_frames - 1) / spec.fps, len(clip.actions) / spec.action_rate
            if abs(video - actions) > longest:
                off.append((episode.episode_id, video, actions))
    if off:
        name, video, actions = max(off, key=lambda row: abs(row[1] - row[2]))
        yield Finding(
            check="durations",
            severity="warning",
            where=f"{spec.name} episode {name}",
            text=f"{actions:.2f} s of actions to {video:.2f} s of video; {len(off)} clips differ like this: a rate or "
            "a cut is wrong",
            facts={"clips": len(off), "video_s": round(video, 3), "actions_s": round(actions, 3)},
        )
    yield from _drift(body)


def _drift(body: Body) -> Iterator[Finding]:
    """Yield a finding where the lag between actions and pictures differs between the first and the last part of episodes."""
    cause = "state" if body.spec.state_dim else "actions"
    early, late = (_part(body, number) for number in (0, 2))
    if not early.episodes:
        return
    (first, _), (last, _) = lag_between(early, cause, "video"), lag_between(late, cause, "video")
    if first is None or last is None or not (first.sure and last.sure):
        return
    if abs(first.steps - last.steps) < 1.5 or not (first.high < last.low or last.high < first.low):
        return
    yield Finding(
        check="drift",
        severity="warning",
        where=body.spec.name,
        text=f"the picture follows the {cause} by {first.steps:+.1f} steps in the first third of episodes and by "
        f"{last.steps:+.1f} in the last: their rates differ from the stated {body.spec.fps:g} and "
        f"{body.spec.action_rate:g} a second",
        facts={"first": round(first.steps, 3), "last": round(last.steps, 3)},
    )


def _part(body: Body, third: int) -> Body:
    """Return the same body with one third of each long enough clip."""
    episodes = []
    for episode in body.episodes:
        clips = [_cut(clip, body, third) for clip in episode.clips if clip.num_frames >= 60]
        if clips:
            episodes.append(replace(episode, clips=tuple(clips)))
    return Body(spec=body.spec, episodes=episodes)


def _cut(clip: ClipDigest, body: Body, third: int) -> ClipDigest:
    ratio = body.spec.action_rate / body.spec.fps
    begin, end = (round(clip.num_frames * (third + i) / 3) for i in (0, 1))
    a, b = round(begin * ratio), round(end * ratio)
    views = {name: replace(one, motion=one.motion[begin : end - 1]) for name, one in clip.views.items()}
    actions = None if clip.actions is None else clip.actions[a:b]
    state = None if clip.state is None else clip.state[a : b + 1]
    return replace(clip, views=views, actions=actions, state=state, num_frames=end - begin)


def check_text(body: Body, known: bool = False) -> Iterator[Finding]:
    """Yield missing, placeholder and indifferent instructions.

    Args:
        body: All episodes.
        known: Placeholders were noted when the dataset was converted, so they come as a note.
    """
    prompts = {episode.episode_id: episode.clips[0].prompts for episode in body.episodes}
    total = len(prompts)
    missing = [name for name, texts in prompts.items() if not any(text.strip() for text in texts)]
    holders = {t for texts in prompts.values() for t in texts if t.strip() and _PLACEHOLDER.search(t.strip())}
    affected = sum(any(t in holders for t in texts) for texts in prompts.values())
    where = f"{body.spec.name} instructions"
    if missing:
        text = f"{len(missing)} of {total} episodes have none"
        yield Finding(check="text-missing", severity="note", where=where, text=text, facts={"episodes": missing[:20]})
    if holders:
        yield Finding(
            check="text-placeholder",
            severity="note" if known else "warning",
            where=where,
            text=f"{affected} of {total} episodes have a placeholder, e.g. {sorted(holders)[0]!r}; write real ones, or "
            "train without text",
            facts={"texts": sorted(holders)[:10], "episodes": affected},
        )
    different = set(prompts.values())
    if total > 1 and len(different) == 1 and len(missing) < total:
        text = f"all {total} episodes have the same: {prompts[next(iter(prompts))][0]!r}; text will mean nothing"
        yield Finding(check="text-single", severity="note", where=where, text=text, facts={"episodes": total})
