"""One episode to encoded clips: cut, resample to the stored rate, resize, encode, validate. Pure, so it can run anywhere."""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from itertools import groupby
from typing import Any

import numpy as np

from wam_video.data.schema import SCHEMA_VERSION, EmbodimentSpec, Episode, ViewSource, check_name
from wam_video.data.video import FITS, encode_mp4, resize
from wam_video.errors import ConfigError, DataError, one_of

_MAX_MEMBER_NAME = 100  # of a ustar header


@dataclass(frozen=True, kw_only=True)
class WriterConfig:
    """What the shards of one dataset look like."""

    dataset: str
    height: int
    """Stored pixels, even."""
    width: int
    """Stored pixels, even."""
    fps: float | None = None
    """Stored frames per second; None keeps each recording's own."""
    clip_frames: int = 256
    """Longer episodes are cut into clips of about so many stored frames."""
    clip_overlap_frames: int = 0
    """Frames that a clip shares with the one before it."""
    val_fraction: float = 0.1
    """Share of the episodes for the split `val`, drawn by a hash of their ids; 0 for none."""
    shard_bytes: int = 256 << 20
    """A shard is closed once it is at least this large."""
    fit: str = "pad"
    """How another aspect ratio is met: `pad`, `crop` or `stretch`."""
    crf: int = 18
    gop: int = 8
    """Frames between keyframes, at most 8."""
    licence: str = "unknown"
    source: str = "unknown"
    """Where the recordings come from, for people."""
    converter: str = "unknown"
    """Which program and version parsed them."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The converter's own options, for the manifest."""

    def __post_init__(self) -> None:
        check_name("dataset", self.dataset)
        if self.fit not in FITS:
            raise ConfigError(one_of("fit", self.fit, FITS))
        for what, value, low, high in (
            ("height", self.height, 2, 8192),
            ("width", self.width, 2, 8192),
            ("clip_frames", self.clip_frames, 2, 100_000),
            ("clip_overlap_frames", self.clip_overlap_frames, 0, self.clip_frames - 1),
            ("val_fraction", self.val_fraction, 0, 1),
            ("shard_bytes", self.shard_bytes, 1, 1 << 40),
            ("crf", self.crf, 0, 51),
            ("gop", self.gop, 1, 8),
            ("fps", self.fps if self.fps is not None else 1, 0.01, 1000),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{what} is {value}; allowed: {low} to {high}")
        if self.height % 2 or self.width % 2:
            raise ConfigError(f"stored size is {self.height}x{self.width}; H.264 needs an even height and width")


@dataclass(frozen=True, kw_only=True)
class EncodedClip:
    """The members of one sample, ready to be written."""

    key: str
    members: Mapping[str, bytes]
    """Bytes by suffix, e.g. `front.mp4`."""
    num_frames: int
    num_actions: int


@dataclass(frozen=True, kw_only=True)
class EncodedEpisode:
    """All clips of one episode, and what the manifest says of it."""

    episode_id: str
    embodiment: EmbodimentSpec
    """With the stored fps."""
    clips: tuple[EncodedClip, ...]
    notes: tuple[str, ...]


def encode_episode(episode: Episode, config: WriterConfig) -> EncodedEpisode:
    """Cut and encode one recording as the shards store it; touches no file but the recording's own.

    Raises:
        DataError: The recording contradicts itself or can't be decoded; the message names the episode.
    """
    try:
        _validate(episode)
        fps = float(config.fps or episode.embodiment.fps)
        spec = replace(episode.embodiment, fps=fps)
        picks = _pick_frames(episode, fps)
        spans = _clip_spans(len(picks[0][1]), fps, spec.action_rate, config)
        videos, notes = _encode_views(picks, spans, fps, config)
        clips = [_clip(episode, spec, span, videos, config) for span in enumerate(spans)]
    except DataError as error:
        raise DataError(f"episode {episode.episode_id!r}: {error}") from error
    if episode.actions is not None and _last_action(spans[-1], fps, spec.action_rate, len(episode.actions)) < len(
        episode.actions
    ):
        notes.append("actions_outlast_video")
    return EncodedEpisode(
        episode_id=episode.episode_id,
        embodiment=spec,
        clips=tuple(clips),
        notes=tuple(sorted({*episode.notes, *notes})),
    )


def _validate(episode: Episode) -> None:
    check_name("episode id", episode.episode_id)
    spec, actions, state = episode.embodiment, episode.actions, episode.state
    if not episode.views:
        raise DataError("it has no views; a sample needs at least one video")
    if unknown := sorted(set(episode.views) - set(spec.views)):
        raise DataError(f"view {unknown[0]!r} is not one of embodiment {spec.name!r}: {', '.join(spec.views)}")
    if spec.fps <= 0 or (spec.action_dim > 0 and spec.action_rate <= 0):
        raise DataError(
            f"embodiment {spec.name!r} has fps {spec.fps} and action rate {spec.action_rate}; both must be positive"
        )
    rows = None
    if actions is not None:
        rows = len(actions)
        _check_array("actions", actions, (rows, spec.action_dim))
    if state is not None:
        _check_array("state", state, (len(state) if rows is None else rows + 1, spec.state_dim))
        if rows is None:
            raise DataError("it has state but no actions; state rows are timed by actions, give both or neither")
    if episode.reward is not None:
        _check_array("reward", episode.reward, (rows or 0,))


def _check_array(what: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise DataError(f"{what} has shape {array.shape}; expected {shape} (state has one row more than actions)")
    if array.dtype != np.float32:
        raise DataError(f"{what} has type {array.dtype}; convert it to float32")
    if not np.isfinite(array).all():
        raise DataError(
            f"{what} holds NaN or infinity at row {int(np.argwhere(~np.isfinite(array))[0][0])}; mend or skip it"
        )


def _pick_frames(episode: Episode, fps: float) -> list[tuple[str, np.ndarray, ViewSource]]:
    """Return per view the recorded frame nearest to each stored frame's time; all views get the same length."""
    picks = []
    times = {
        view: np.asarray(episode.views[view].times, np.float64)
        for view in episode.embodiment.views
        if view in episode.views
    }
    for view, recorded in times.items():
        if not len(recorded) or (np.diff(recorded) <= 0).any():
            raise DataError(
                f"view {view!r} has {len(recorded)} frames whose times must rise strictly; it is empty or out of order"
            )
        period = np.median(np.diff(recorded)) if len(recorded) > 1 else 1 / fps
        if fps * period > 1.05:
            raise DataError(
                f"view {view!r} was recorded at {1 / period:.4g} fps, less than the {fps:g} asked; ask for fewer"
            )
    start = max(recorded[0] for recorded in times.values())
    if start > 0.5 / fps:
        raise DataError(f"its first frame is at {start:.3f} s; times must start within half a frame of 0")
    end = min(recorded[-1] for recorded in times.values())
    wanted = np.arange(int((end + 0.25 / fps) * fps) + 1) / fps
    for view, recorded in times.items():
        right = np.clip(np.searchsorted(recorded, wanted), 1, max(len(recorded) - 1, 1))
        left = right - 1
        right = np.minimum(right, len(recorded) - 1)
        # ties, up to rounding, go to the earlier frame, so that equal rates always map one to one
        later = wanted - recorded[left] > recorded[right] - wanted + 1e-6
        picks.append((view, np.where(later, right, left), episode.views[view]))
    return picks


def _clip_spans(num_frames: int, fps: float, action_rate: float, config: WriterConfig) -> list[tuple[int, int]]:
    """Return the frames [start, stop) of each clip; every start coincides with the start of an action."""
    unit = 1
    if action_rate > 0:
        unit = (Fraction(action_rate) / Fraction(fps)).limit_denominator(1000).denominator
    step = (config.clip_frames - config.clip_overlap_frames) // unit * unit
    if num_frames <= config.clip_frames:
        return [(0, num_frames)]
    if step < 1:
        raise DataError(
            f"{fps:g} fps and {action_rate:g} actions per second meet only every {unit} frames; choose another fps"
        )
    shortest = config.clip_overlap_frames + max(1, config.clip_frames // 4)  # a shorter tail joins the clip before it
    starts = [0, *range(step, max(1, num_frames - shortest + 1), step)]
    stops = [start + step + config.clip_overlap_frames for start in starts[:-1]]
    return list(zip(starts, [*stops, num_frames], strict=True))


def _encode_views(
    picks: list[tuple[str, np.ndarray, ViewSource]], spans: list[tuple[int, int]], fps: float, config: WriterConfig
) -> tuple[list[dict[str, bytes]], list[str]]:
    """Encode every view's clips, reading each view once and holding one clip at a time."""
    videos: list[dict[str, bytes]] = [{} for _ in spans]
    notes = []
    for view, indices, source in picks:
        frames = _resized(source, indices, view, config)
        kept: list[np.ndarray] = []  # stored frames [first, first + len(kept)) that a later clip may need
        first, constant = 0, True
        for number, (start, stop) in enumerate(spans):
            kept, first = kept[start - first :], start
            kept += [next(frames) for _ in range(stop - start - len(kept))]
            constant = constant and all(int(frame.max()) - int(frame.min()) < 8 for frame in kept[::16])
            videos[number][f"{view}.mp4"] = encode_mp4(kept, fps, gop=config.gop, crf=config.crf)
        notes += [f"blank_view_{view}"] if constant else []
    return videos, notes


def _resized(source: ViewSource, indices: np.ndarray, view: str, config: WriterConfig) -> Iterator[np.ndarray]:
    """Yield the picked frames at the stored size; a frame that is picked twice is resized once."""
    wanted = ((int(index), len(list(same))) for index, same in groupby(indices.tolist()))
    target, repeats = next(wanted)
    for number, frame in enumerate(source.frames()):
        if number != target:
            continue
        small = resize(frame, config.height, config.width, config.fit)
        for _ in range(repeats):
            yield small
        if (following := next(wanted, None)) is None:
            return
        target, repeats = following
    raise DataError(f"view {view!r} ends before frame {target}, which its times announce; the video is truncated")


def _first_action(frame: int, fps: float, action_rate: float) -> int:
    return int(np.ceil(frame / fps * action_rate - 1e-6))


def _last_action(span: tuple[int, int], fps: float, action_rate: float, num_actions: int) -> int:
    return min(_first_action(span[1], fps, action_rate), num_actions)


def _clip(
    episode: Episode,
    spec: EmbodimentSpec,
    span: tuple[int, tuple[int, int]],
    videos: list[dict[str, bytes]],
    config: WriterConfig,
) -> EncodedClip:
    number, (start, stop) = span
    members: dict[str, Any] = dict(videos[number])
    begin = end = 0
    if episode.actions is not None:
        end = _last_action((start, stop), spec.fps, spec.action_rate, len(episode.actions))
        begin = min(_first_action(start, spec.fps, spec.action_rate), end)
        members["actions.npy"] = _npy(episode.actions[begin:end])
        if episode.state is not None:
            members["state.npy"] = _npy(episode.state[begin : end + 1])
        if episode.reward is not None:
            members["reward.npy"] = _npy(episode.reward[begin:end])
    info = {
        "schema_version": SCHEMA_VERSION,
        "dataset": config.dataset,
        "embodiment": spec.name,
        "prompts": list(episode.prompts),
        "fps": spec.fps,
        "action_rate": spec.action_rate,
        "num_frames": stop - start,
        "num_actions": end - begin,
        "episode_id": episode.episode_id,
        "clip_start_s": start / spec.fps,
        "success": episode.success,
        "licence": config.licence,
        "source": config.source,
        "notes": list(episode.notes),
        "extra": dict(episode.extra),
    }
    members["json"] = (json.dumps(info, sort_keys=True, indent=1) + "\n").encode()
    key = f"{episode.episode_id}-{number:04d}"
    if long := [name for name in members if len(f"{key}.{name}") > _MAX_MEMBER_NAME]:
        raise DataError(f"member name {f'{key}.{long[0]}'!r} is longer than {_MAX_MEMBER_NAME} letters; shorten the id")
    return EncodedClip(key=key, members=members, num_frames=stop - start, num_actions=end - begin)


def _npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.lib.format.write_array(sink, np.ascontiguousarray(array, np.float32), version=(1, 0), allow_pickle=False)
    return sink.getvalue()


def config_options(config: WriterConfig) -> dict[str, Any]:
    """Return what the shards' bytes depend on, for the manifest."""
    return {key: value for key, value in asdict(config).items() if key not in ("dataset", "converter")}
