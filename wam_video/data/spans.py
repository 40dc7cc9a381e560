"""The parts of a recording that are kept: where a robot moves, and from one cut of a film to the next.

Each part is encoded as if it were a recording, under the same episode: it has clips of its own, so no window crosses a cut, and
all parts are in one split.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise

import numpy as np
from jaxtyping import Bool, Float, UInt8

from wam_video.data.encode import EncodedClip, EncodedEpisode, WriterConfig, encode_episode
from wam_video.data.schema import Episode, ViewSource
from wam_video.data.video import FileView, resize
from wam_video.errors import ConfigError, DataError

Spans = tuple[tuple[float, float], ...]
"""Seconds from (included) and to (excluded), rising and apart."""

_CELLS = 32
_CUT = 18.0
"""Mean change of the cells, of 255, that a cut has at least; a fast pan has less."""
_STANDS_OUT = 3.0
"""How many times the changes around it a cut has at least."""
_AROUND = 6
"""Frames to each side that a cut is compared with."""
_MIN_SCENE_S = 0.5
_ALIGNED, _APART = 0.05, 0.25
"""Action periods that a part's first frame may be farther from an action than the best one near, and at most."""
_NEAR_S = 1.0
"""How far a part's beginning is moved for a better fit: where clocks drift, the best one of all may be minutes away."""
_DRIFT = 3.0
"""Times the tolerance which a whole stretch of rest may cover: its ends reach into the motion before and after."""


@dataclass(frozen=True)
class PartView:
    """Some consecutive frames of a camera (a `schema.ViewSource`)."""

    whole: ViewSource
    start: int
    stop: int
    origin: float
    """Seconds at which the part's own clock begins."""

    @property
    def times(self) -> Float[np.ndarray, " f"]:
        """Seconds of each frame."""
        return np.asarray(self.whole.times, np.float64)[self.start : self.stop] - self.origin

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Yield the frames in order."""
        if isinstance(self.whole, FileView):  # seeks, where others have to run through
            file = self.whole
            part = FileView(
                file.path, file.start_frame + self.start, self.stop - self.start, self.times, decoder=file.decoder
            )
            return part.frames()
        return islice(self.whole.frames(), self.start, self.stop)


def encode_spans(episode: Episode, config: WriterConfig) -> EncodedEpisode:
    """Encode the parts of a recording that are kept, as one episode.

    Raises:
        DataError: Nothing is left, or as `encode_episode` does.
    """
    if episode.spans is None:
        return encode_episode(episode, config)
    if misfit := rows_misfit(episode):
        raise DataError(misfit)
    parts = [part for span in episode.spans if (part := _part(episode, *span)) is not None]
    if not parts:
        raise DataError("nothing is left of it")
    clips: list[EncodedClip] = []
    notes: set[str] = set()
    spec = episode.embodiment
    for origin, part in parts:
        encoded = encode_episode(part, config)
        spec = encoded.embodiment
        notes.update(encoded.notes)
        for clip in encoded.clips:
            info = json.loads(clip.members["json"])
            info["clip_start_s"] += origin
            members = {**clip.members, "json": (json.dumps(info, sort_keys=True, indent=1) + "\n").encode()}
            clips.append(replace(clip, key=f"{episode.episode_id}-{len(clips):04d}", members=members))
    return EncodedEpisode(
        episode_id=episode.episode_id, embodiment=spec, clips=tuple(clips), notes=tuple(sorted(notes))
    )


def rows_misfit(episode: Episode) -> str:
    """Say what is wrong where state or reward do not go with the actions, which its parts would not show; empty if all is well."""
    steps = 0 if episode.actions is None else len(episode.actions)
    for what, rows, wanted in (("state", episode.state, steps + 1), ("reward", episode.reward, steps)):
        if rows is not None and len(rows) != wanted:
            return f"{what} has {len(rows)} rows for {steps} actions; expected {wanted}"
    return ""


def _part(episode: Episode, start: float, stop: float) -> tuple[float, Episode] | None:
    """Return when a part begins, and the part; None where it has no two frames."""
    first = np.asarray(next(iter(episode.views.values())).times, np.float64)
    rate = episode.embodiment.action_rate if episode.actions is not None else 0.0
    begins = first[(first >= start - 1e-6) & (first < stop)]
    if rate:  # a part begins where a frame and an action begin together
        misfit = np.abs(begins * rate - np.rint(begins * rate))
        begins, misfit = begins[misfit <= _APART + 1e-9], misfit[misfit <= _APART + 1e-9]
        near = misfit[begins <= begins[:1] + _NEAR_S]
        begins = begins[misfit <= near.min(initial=_APART) + _ALIGNED]
    if not len(begins):
        return None
    origin, views, last = float(begins[0]), {}, np.inf
    for name, view in episode.views.items():
        times = np.asarray(view.times, np.float64)
        low, high = (int(np.searchsorted(times, edge - 1e-6)) for edge in (origin, stop))
        if high - low < 2:
            return None
        views[name] = PartView(view, low, high, origin)
        last = min(last, float(times[high - 1]))
    changes: dict[str, np.ndarray] = {}
    if rate and episode.actions is not None:
        low = round(origin * rate)
        high = min(round(last * rate), len(episode.actions))
        if high <= low:
            return None
        changes["actions"] = episode.actions[low:high]
        if episode.state is not None:
            changes["state"] = episode.state[low : high + 1]
        if episode.reward is not None:
            changes["reward"] = episode.reward[low:high]
    return origin, replace(episode, views=views, spans=None, **changes)


def moving_spans(episode: Episode, still_s: float, tolerance: float) -> Spans | None:
    """Return the parts in which the robot moves; None where it never stands.

    It stands over a stretch if no number of its state changes by more than `tolerance` of that number's range over the recording;
    without a state, if no action does, deltas summed up.

    Args:
        episode: With actions.
        still_s: Seconds that a stretch has at least.
        tolerance: From 0 to 1.

    Raises:
        ConfigError: There is no state, and it is not known which actions are deltas.
    """
    if episode.actions is None:
        return None
    rate, rows = episode.embodiment.action_rate, _places(episode)
    ranges = np.ptp(rows, axis=0)
    live = ranges > 1e-6 * np.maximum(1, np.abs(rows).max(axis=0))
    if not live.any():
        return ()
    length = max(1, round(still_s * rate))
    steps = len(episode.actions)
    if steps < length:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(rows[:, live] / ranges[live], length + 1, axis=0)
    still = (windows.max(axis=-1) - windows.min(axis=-1) <= tolerance).all(axis=1)
    if not still.any():
        return None
    idle = np.zeros(steps + 1, int)
    starts = np.flatnonzero(still)
    np.add.at(idle, starts, 1)
    np.add.at(idle, np.minimum(starts + length, steps), -1)
    moving = np.cumsum(idle)[:steps] == 0
    for begin, end in _runs(~moving):  # slow motion stays within the tolerance for a while, and goes on
        if (np.ptp(rows[begin : end + 1, live] / ranges[live], axis=0) > _DRIFT * tolerance).any():
            moving[begin:end] = True
    if moving.all():
        return None
    half = 0.5 / max(episode.embodiment.fps, rate)  # the frame after the last action is the part's, too
    return tuple((a / rate, np.inf if b == steps else b / rate + half) for a, b in _runs(moving))


def _runs(marks: Bool[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """Return where the stretches of True begin, and the places after their ends."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marks, [0]]))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _places(episode: Episode) -> Float[np.ndarray, "n d"]:
    """Return one row before each action and one after the last, of where the robot is."""
    if episode.state is not None:
        return episode.state.astype(np.float64)
    kinds = episode.embodiment.action_kinds
    actions = np.asarray(episode.actions, np.float64)
    if not kinds or not all(kinds):
        raise ConfigError(
            f"can't tell where {episode.embodiment.name!r} stands still: it has no state, and the kinds of its actions are not "
            "known; give --embodiment FILE.yaml with the kind (absolute or delta) of each action"
        )
    delta = np.array([kind == "delta" for kind in kinds])
    places = np.where(delta, np.cumsum(actions, axis=0), actions)
    first = np.where(delta, 0.0, actions[0])
    return np.concatenate([first[None], places])


def scene_spans(view: ViewSource) -> Spans | None:
    """Return the scenes of a film by its cuts, hard ones; None where there is none. Scenes under half a second are left out.

    A cut is a change of the whole picture that stands out from those around it and stays: not a flash, not a fast pan.
    """
    times = np.asarray(view.times, np.float64)
    cells = np.stack([resize(frame, _CELLS, _CELLS, "stretch") for frame in view.frames()]).astype(np.int16)
    cuts = _cuts(cells)
    if not cuts:
        return None
    ends = [0.0, *(float(times[cut]) for cut in cuts), np.inf]
    length = float(times[-1])
    return tuple((a, b) for a, b in pairwise(ends) if min(b, length) - a >= _MIN_SCENE_S)


def _cuts(cells: np.ndarray) -> list[int]:
    """Return the frames with which a scene begins, but for the first."""
    change = np.abs(np.diff(cells, axis=0)).mean(axis=(1, 2, 3))
    found: list[int] = []
    for i in np.flatnonzero(change >= _CUT):
        around = np.concatenate([change[max(0, i - _AROUND) : i], change[i + 1 : i + 1 + _AROUND]])
        flash = i + 2 < len(cells) and np.abs(cells[i + 2] - cells[i]).mean() < change[i] / 2
        after_flash = i > 0 and np.abs(cells[i + 1] - cells[i - 1]).mean() < change[i] / 2
        if not flash and not after_flash and change[i] >= _STANDS_OUT * (np.median(around) if len(around) else 0):
            found.append(int(i) + 1)
    return found


def check_tolerance(still_s: float, tolerance: float) -> None:
    """Refuse what makes no sense for `moving_spans`.

    Raises:
        ConfigError: A time that is negative, or a tolerance outside 0 to 1.
    """
    if not 0 <= still_s < 1e6 or not 0 <= tolerance < 1:
        raise ConfigError(
            f"drop_idle is {still_s} s with tolerance {tolerance}; allowed: 0 s (nothing is dropped) or more, and 0 to 1"
        )


def merge_spans(spans: Sequence[Spans | None]) -> Spans | None:
    """Return what several choices of parts have in common; None keeps all."""
    found: Spans | None = None
    for one in spans:
        if one is None:
            continue
        pairs = ((max(a, c), min(b, d)) for a, b in (found or ((0.0, np.inf),)) for c, d in one)
        found = tuple(sorted((a, b) for a, b in pairs if a < b)) if found is None or found else ()
    return found
