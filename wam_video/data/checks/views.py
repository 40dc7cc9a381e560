"""Views that are upside down, mirrored, swapped with another camera or in other colours than in the other episodes.

An episode is held against the others of its body by two small pictures: what the view looks like, and where it moves. The
second sees the robot whatever the scene is. A dataset whose every episode is flipped looks consistent, and nothing in
it says which way is up: that can't be told here, only from a page with pictures (`data inspect`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from einops import einsum, rearrange
from jaxtyping import Float

from wam_video.data.checks.digest import Body, EpisodeDigest
from wam_video.data.checks.finding import Finding, Sheet

MIN_EPISODES = 5
NEAREST = 3
"""An episode is compared with the most similar others."""
ALIKE, MUCH_ALIKE = 0.55, 0.7
"""How well episodes have to fit each other, half of them at least, for an odd one to be told; below, scenes differ too much."""
MARGIN, WIDE_MARGIN = 0.15, 0.25
"""By how much the turned view has to fit better than the straight one; wide where episodes are not much alike."""
SOUND_MARGIN = 0.15
"""By how much the others' straight views have to fit better than their turned ones, half of them at least."""
APART = 2.5
"""How many (robust) standard deviations of the others' margins an episode has to lie away from them."""
MIN_FIT = 0.4
"""How well the turned view has to fit, as a correlation."""
COLOUR_ALIKE, COLOUR_MARGIN = 0.5, 0.3
"""How alike the nearest episodes' red minus blue has to be (a cosine), and by how much more than exchanged."""
COLOUR_CHANCE = 0.2
"""How alike exchanged colours may be in sound episodes, half of them at least: more, and scenes are too many to tell."""
_MAX_COMPARED = 400

_Turn = Callable[[np.ndarray], np.ndarray]
TURNS: Mapping[str, _Turn] = {
    "upside down": lambda picture: picture[..., ::-1, :],
    "mirrored left to right": lambda picture: picture[..., ::-1],
    "turned by 180 degrees": lambda picture: picture[..., ::-1, ::-1],
}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Looks:
    """One view of all episodes that show it."""

    episodes: list[EpisodeDigest]
    pictures: Float[np.ndarray, "e p p"]
    """Grey, centred, of norm 1."""
    moving: Float[np.ndarray, "e p p"]
    redness: Float[np.ndarray, "e n"]
    """Red minus blue by cell, of norm 1; all zeros where grey."""


def check_views(body: Body) -> Iterator[Finding]:
    """Yield episodes whose view is turned, swapped or in other colours than the same view of the others."""
    looks = {view: _looks(body, view) for view in body.spec.views}
    kept = {view: one for view, one in looks.items() if one is not None and len(one.episodes) >= MIN_EPISODES}
    if not kept:
        yield Finding(
            check="view-orientation",
            severity="note",
            where=body.spec.name,
            text=f"can't be told: fewer than {MIN_EPISODES} episodes to compare; look at `data inspect`",
        )
        return
    swapped = [finding for view in kept for finding in _swapped(body, view, kept)]
    yield from swapped
    named = {str(finding.facts["episode"]) for finding in swapped}
    told, apart = [], []
    for view, one in kept.items():
        turned = [finding for finding in _turned(body, view, one) if finding.facts["episode"] not in named]
        yield from turned
        explained = named | {str(finding.facts["episode"]) for finding in turned}
        yield from (finding for finding in _recoloured(body, view, one) if finding.facts["episode"] not in explained)
        (told if float(np.median(_fit(one, one))) >= ALIKE else apart).append(view)
    text = "whether all episodes are flipped alike can't be told; look at `data inspect`"
    text = (f"views {', '.join(told)} were compared between episodes; " if told else "") + text
    text = (f"views {', '.join(apart)} differ too much between episodes to compare; " if apart else "") + text
    yield Finding(check="view-orientation", severity="note", where=body.spec.name, text=text)


def _looks(body: Body, view: str) -> _Looks | None:
    episodes = [e for e in body.episodes if any(len(one.motion) for one in e.views(view))][:_MAX_COMPARED]
    shown = [e.views(view) for e in episodes]
    if not episodes or any(one.picture.shape != shown[0][0].picture.shape for views in shown for one in views):
        return None
    pictures = np.stack([np.mean([one.picture for one in views], axis=0) for views in shown])
    moving = np.stack([np.sqrt(np.mean([one.moving for one in views], axis=0)) for views in shown])
    redness = rearrange(pictures[..., 0] - pictures[..., 2], "e p q -> e (p q)")
    size = np.linalg.norm(redness, axis=1, keepdims=True)
    grey = pictures.mean(axis=-1)
    live = grey.std(axis=(1, 2)) > 1
    if live.sum() < MIN_EPISODES:
        return None
    coloured = np.where(size > 2.0 * np.sqrt(redness.shape[1]), redness / np.maximum(size, 1e-9), 0)
    return _Looks(
        episodes=[episode for episode, keep in zip(episodes, live, strict=True) if keep],
        pictures=_unit(grey[live]),
        moving=_unit(moving[live]),
        redness=coloured[live],
    )


def _unit(pictures: Float[np.ndarray, "e p p"]) -> Float[np.ndarray, "e p p"]:
    centred = pictures - pictures.mean(axis=(1, 2), keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=(1, 2), keepdims=True), 1e-9)


def _fit(one: _Looks, other: _Looks, turn: _Turn = lambda picture: picture) -> Float[np.ndarray, " e"]:
    """Return how well each turned view of `one` fits the nearest views of `other`, its own episode left out."""
    looks = einsum(turn(one.pictures), other.pictures, "e p q, f p q -> e f")
    moves = einsum(turn(one.moving), other.moving, "e p q, f p q -> e f")
    fits = (looks + moves) / 2
    ids = [episode.episode_id for episode in other.episodes]
    same = np.array([[episode.episode_id == name for name in ids] for episode in one.episodes])
    sorted_fits = np.sort(np.where(same, -np.inf, fits), axis=1)
    return sorted_fits[:, -min(NEAREST, sorted_fits.shape[1] - 1) :].mean(axis=1)


def _turned(body: Body, view: str, one: _Looks) -> Iterator[Finding]:
    straight = _fit(one, one)
    fits = {name: _fit(one, one, turn) for name, turn in TURNS.items()}
    sound = {name: float(np.median(straight - fit)) for name, fit in fits.items()}
    scatter = {name: 1.48 * float(np.median(np.abs(straight - fit - sound[name]))) for name, fit in fits.items()}
    typical = float(np.median(straight))
    if typical < ALIKE:
        return
    margin = MARGIN if typical >= MUCH_ALIKE else WIDE_MARGIN
    for number, episode in enumerate(one.episodes):
        name = max(fits, key=lambda turn: float(fits[turn][number]))
        gain = float(fits[name][number] - straight[number])
        apart = sound[name] + gain >= APART * max(scatter[name], 0.02)
        if gain >= margin and fits[name][number] >= MIN_FIT and sound[name] >= SOUND_MARGIN and apart:
            yield Finding(
                check="view-flipped",
                severity="warning",
                where=f"{body.spec.name} episode {episode.episode_id} view {view}",
                text=f"{name} against the other episodes (fits them with {fits[name][number]:.2f} turned, "
                f"{straight[number]:.2f} as it is); turn it back or leave the episode out",
                facts={
                    "episode": episode.episode_id,
                    "turn": name,
                    "fit_turned": round(float(fits[name][number]), 3),
                    "fit_straight": round(float(straight[number]), 3),
                    "others_margin": round(sound[name], 3),
                },
                figures=(_beside(one, number, view),),
            )


def _swapped(body: Body, view: str, looks: Mapping[str, _Looks]) -> Iterator[Finding]:
    """Yield pairs of views that are each other's in one episode; each pair once."""
    order = list(looks)
    for other in order[order.index(view) + 1 :]:
        one, two = looks[view], looks[other]
        ids = [episode.episode_id for episode in one.episodes]
        if ids != [episode.episode_id for episode in two.episodes]:
            continue
        gain = np.minimum(_fit(one, two) - _fit(one, one), _fit(two, one) - _fit(two, two))
        usual = float(np.median(gain))
        if min(np.median(_fit(one, one)), np.median(_fit(two, two))) < ALIKE:
            continue
        for number, name in enumerate(ids):
            if gain[number] >= MARGIN and usual <= -SOUND_MARGIN:
                yield Finding(
                    check="views-swapped",
                    severity="warning",
                    where=f"{body.spec.name} episode {name} views {view} and {other}",
                    text=f"each looks like the other one of the other episodes (by {gain[number]:.2f}); swap them back",
                    facts={"episode": name, "gain": round(float(gain[number]), 3), "others_gain": round(usual, 3)},
                    figures=(_beside(one, number, view), _beside(two, number, other)),
                )


def _recoloured(body: Body, view: str, one: _Looks) -> Iterator[Finding]:
    """Yield episodes whose red and blue are exchanged: red minus blue then changes its sign, cell by cell."""
    alike = einsum(one.redness, one.redness, "e n, f n -> e f")
    coloured = np.abs(one.redness).max(axis=1) > 0
    if coloured.sum() < MIN_EPISODES:
        return
    np.fill_diagonal(alike, np.nan)
    nearest = np.sort(np.where(np.isnan(alike), -np.inf, alike), axis=1)[:, -NEAREST:].mean(axis=1)
    turned = np.sort(np.where(np.isnan(alike), -np.inf, -alike), axis=1)[:, -NEAREST:].mean(axis=1)
    gain: np.ndarray = turned - nearest
    typical = float(np.median(nearest[coloured]))
    usual = float(np.median(gain[coloured]))
    if typical < COLOUR_ALIKE or usual > -COLOUR_MARGIN or float(np.median(turned)) > COLOUR_CHANCE:
        return
    for number, episode in enumerate(one.episodes):
        if coloured[number] and gain[number] >= COLOUR_MARGIN and turned[number] >= COLOUR_ALIKE:
            yield Finding(
                check="colours-swapped",
                severity="warning",
                where=f"{body.spec.name} episode {episode.episode_id} view {view}",
                text=f"red and blue are exchanged against the other episodes (likeness {nearest[number]:.2f} as it is, "
                f"{turned[number]:.2f} exchanged); BGR was stored as RGB",
                facts={
                    "episode": episode.episode_id,
                    "likeness": round(float(nearest[number]), 3),
                    "exchanged": round(float(turned[number]), 3),
                    "others": round(typical, 3),
                },
                figures=(_beside(one, number, view),),
            )


def _beside(one: _Looks, number: int, view: str) -> Sheet:
    others = [e.episode_id for i, e in enumerate(one.episodes) if i != number][:3]
    name = one.episodes[number].episode_id
    return Sheet(title=f"{view}: the episode first, others below", view=view, episodes=(name, *others))
