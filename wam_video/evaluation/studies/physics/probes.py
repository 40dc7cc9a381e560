"""The probes: what a film of a take says of the world's laws, against what the simulator knows.

Every probe adds a sum above and a sum below (`tally.Tally`). What is visible is judged against the simulator's own picture of
the same moment, so that something hidden is not missed. Lengths are px of the picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from wam_video.data.simulation import Scene
from wam_video.evaluation.studies.physics.colours import Track, find
from wam_video.evaluation.studies.physics.silhouette import buried
from wam_video.evaluation.studies.physics.takes import Take
from wam_video.evaluation.studies.physics.tally import Tally

MOVED = 0.01
"""A thing moved between two pictures if its middle did by this share of the picture's height (0.64 px at 64, some three times
as much as its place is uncertain by in stored film)."""
_APART = 0.015
"""Two action sequences lead apart if they move a thing by places that differ by this share of the picture's height."""
_MIN_AREA = 3.0
"""px that must be visible of a thing for it to be looked for."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A take as it really was, at the steps of the films."""

    take: Take
    steps: tuple[int, ...]
    """From `now`, which is the first."""
    film: UInt8[np.ndarray, "f h w 3"]
    scene: Scene | None
    tracks: Mapping[str, Track]
    places: Mapping[str, Float[np.ndarray, "f 2"]]
    """Middle of each thing as the simulator has it."""

    @classmethod
    def of(cls, take: Take, view: str, steps: Sequence[int]) -> "Truth":
        """Look at a take."""
        moments = [take.now + step for step in steps]
        film = take.views[view][moments]
        scene = take.scenes[take.now]
        if scene is None:
            return cls(take=take, steps=tuple(steps), film=film, scene=None, tracks={}, places={})
        size = np.array([film.shape[2], film.shape[1]], np.float64)
        places: dict[str, list[np.ndarray]] = {}
        for moment in moments:
            now = take.scenes[moment]
            for thing in [] if now is None else [now.body, *now.things]:
                places.setdefault(thing.name, []).append(np.array(thing.place) * size)
        tracks = find(film, scene)
        return cls(
            take=take,
            steps=tuple(steps),
            film=film,
            scene=scene,
            tracks=tracks,
            places={name: np.stack(path) for name, path in places.items()},
        )

    @property
    def side(self) -> int:
        """Height of the picture, px."""
        return self.film.shape[1]

    def find(self, film: UInt8[np.ndarray, "f h w 3"]) -> Mapping[str, Track]:
        """Find the take's things in a film of it."""
        if self.scene is None:
            return {}
        return find(film, self.scene, {name: float(track.area[0]) for name, track in self.tracks.items()})

    def contact(self, thing: str) -> Bool[np.ndarray, " f1"]:
        """Return whether the body touched a thing between each two pictures."""
        start = self.take.now
        return np.array(
            [
                any(thing in touched for touched in self.take.touched[start + a : start + b])
                for a, b in zip(self.steps[:-1], self.steps[1:], strict=True)
            ]
        )


def keep(tally: Tally, condition: str, truth: Truth, tracks: Mapping[str, Track]) -> None:
    """Probe permanence, conservation and place: is everything there, once, as large, of its colour, and where it should be?"""
    for name, real in truth.tracks.items():
        seen, visible = tracks[name], (real.area >= _MIN_AREA)[1:]
        ratio = (seen.area / np.maximum(real.area, 1e-9))[1:]
        whole = (ratio > 0.5) & (ratio < 2.0) & (seen.pieces == real.pieces)[1:]
        there = visible & (seen.area > 0)[1:]
        tint = np.sqrt(np.square(seen.colour - real.colour).mean(-1))[1:]
        away = np.linalg.norm(seen.centre - truth.places[name], axis=-1)[1:]
        size = np.minimum(np.abs(ratio - 1), 1.0)
        for metric, value, where in (
            ("permanence", whole, visible),
            ("area_change", size, visible),
            ("colour_change", tint, there),
            ("place_error", away, visible),
        ):
            tally.add(metric, condition, truth.take.start, np.where(where, value, 0.0), where, name)


def causality(tally: Tally, condition: str, truth: Truth, tracks: Mapping[str, Track]) -> None:
    """Probe whether things move when, and only when, the simulator's body touches them."""
    for thing in () if truth.scene is None else truth.scene.things:
        moved, contact = steps_moved(tracks[thing.name], truth.side), truth.contact(thing.name)
        hit = float((moved & contact).sum())
        start = truth.take.start
        tally.add("contact_f1", condition, start, 2 * hit, float(moved.sum() + contact.sum()), thing.name)
        still = float((~contact).sum())
        tally.add("moved_untouched", condition, start, float((moved & ~contact).sum()), still, thing.name)


def steps_moved(track: Track, side: int) -> Bool[np.ndarray, " f1"]:
    """Return whether a thing moved between each two pictures."""
    return np.linalg.norm(np.diff(track.centre, axis=0), axis=-1) > MOVED * side


def penetration(tally: Tally, condition: str, truth: Truth, tracks: Mapping[str, Track]) -> None:
    """Probe how much of the body lies inside a thing, where things keep their shape in the picture."""
    if truth.scene is None or not truth.scene.flat:
        return
    for thing in truth.scene.things:
        body, seen = tracks[truth.scene.body.name], tracks[thing.name]
        inside = buried(body, seen, truth.tracks[thing.name])[1:]
        there = ((seen.area > 0) & (body.area > 0))[1:]
        tally.add("penetration", condition, truth.take.start, np.where(there, inside, 0.0), there, thing.name)


def still(tally: Tally, condition: str, truth: Truth, film: UInt8[np.ndarray, "f h w 3"]) -> None:
    """Probe how far pictures drift from the simulator's while the body holds still, in grey levels."""
    drift = np.abs(film.astype(np.float64) - truth.film).mean((1, 2, 3))[1:]
    tally.add("static_drift", condition, truth.take.start, drift, np.ones_like(drift))


def counterfactual(
    tally: Tally, condition: str, truths: tuple[Truth, Truth], tracks: tuple[Mapping[str, Track], Mapping[str, Track]]
) -> None:
    """Probe whether two action sequences from one start move things apart to the right sides, along x and y."""
    first, second = truths
    for name in first.tracks:
        real, seen = (_shift(a[name]) - _shift(b[name]) for a, b in ((first.tracks, second.tracks), tracks))
        apart = np.abs(real) > _APART * first.side
        right = (np.sign(real) == np.sign(seen)) & (np.abs(seen) > MOVED * first.side)
        start = first.take.start
        tally.add("counterfactual", condition, start, float((right & apart).sum()), float(apart.sum()), name)


def _shift(track: Track) -> Float[np.ndarray, " 2"]:
    return track.centre[-1] - track.centre[0]


def retreat(tally: Tally, condition: str, truth: Truth, tracks: Mapping[str, Track]) -> None:
    """Probe how far things move while the body goes back the way it came, where they really stayed."""
    if truth.scene is None or truth.take.turn is None:
        return
    turn = truth.take.turn - truth.take.now
    begin = next(i for i, step in enumerate(truth.steps) if step >= turn)
    for thing in truth.scene.things:
        real, seen = (
            float(np.linalg.norm(t[thing.name].centre[-1] - t[thing.name].centre[begin]))
            for t in (truth.tracks, tracks)
        )
        stayed = float(real <= MOVED * truth.side)
        tally.add("left_behind", condition, truth.take.start, seen * stayed, stayed, thing.name)
