"""A stretch of a recorded episode as the inputs of a call: from shards, or from anything that a data source can read.

A recording outside shards goes through the very encoding that makes shards, in memory, so that the model sees the same pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, UInt8

from wam_video.data.actions import action_at
from wam_video.data.encode import WriterConfig, encode_episode
from wam_video.data.manifest import MANIFEST_NAME, Manifest, SampleEntry, ShardEntry, load_manifest
from wam_video.data.normalize import recorded_actions
from wam_video.data.processor import WAMProcessor
from wam_video.data.reader import Clip, decode_clip, load_clip, read_sample, sample_info
from wam_video.data.schema import Episode
from wam_video.data.sources import SkippedEpisode, open_source
from wam_video.data.video import resize
from wam_video.data.windows import Window, anchors, cut_window
from wam_video.errors import ConfigError, DataError
from wam_video.flow.modes import MODES, Role
from wam_video.inference.outputs import WAMOutput
from wam_video.tensors import Mode


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One window of an episode, with what was really done and seen in it."""

    source: str
    episode_id: str
    start_s: float
    """Seconds in the episode of time 0, the last context frame."""
    embodiment: str
    """The model's name of the body."""
    prompt: str
    window: Window
    num_context_frames: int
    previous_action: Float[np.ndarray, " da"] | None
    """The action just before time 0."""

    @property
    def actions(self) -> Float[np.ndarray, "ta da"] | None:
        """The recorded chunk, as long as the recording goes on; None for video without actions."""
        steps = int(self.window.action_mask.any(-1).sum())
        return self.window.actions[:steps] if steps else None

    @property
    def future(self) -> UInt8[np.ndarray, "v f h w 3"]:
        """The future frames, zeros where the recording has ended."""
        return self.window.video[:, self.num_context_frames :]

    @property
    def future_mask(self) -> Bool[np.ndarray, "v f"]:
        """Which future frames were recorded."""
        return self.window.frame_mask[:, self.num_context_frames :]

    def call_arguments(self, mode: Mode) -> dict[str, Any]:
        """Return what `WAMPipeline.__call__` reads of the recording in a mode.

        Raises:
            ConfigError: The recording ends before what the mode must be given.
        """
        spec, mask = MODES[mode], self.window.frame_mask
        if spec.video is Role.GIVEN and not self.future_mask[mask.any(1)].all():
            raise ConfigError(
                f"mode {mode.value!r} reads {self.future.shape[1]} future frames; episode {self.episode_id!r} ends before the last "
                f"of them: choose an earlier --start than {self.start_s:g}"
            )
        stop = self.window.video.shape[1] if spec.video is Role.GIVEN else self.num_context_frames
        first = int(np.argmax(mask.any(0)))
        arguments = {
            "video": self.window.video[mask.any(1), first:stop],
            "state": self.window.state,
            "prompt": self.prompt,
            "embodiment": self.embodiment,
        }
        if spec.actions is Role.GIVEN:
            arguments["actions"] = self.actions
        return arguments


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in the input the window is wanted."""

    episode: str | None = None
    """Number (held-out episodes of shards first) or id; None: the first."""
    start_s: float | None = None
    """Seconds of time 0; None: as soon as all context frames are recorded."""
    embodiment: str | None = None
    """The model's name of the body, where the recording calls it otherwise."""


def open_recording(path: str | Path, place: Place, processor: WAMProcessor) -> Recording:
    """Find and cut one window of a recording.

    Args:
        path: Folder of shards, or a file or folder that a data source recognises.
        place: Which window.
        processor: The model's.

    Raises:
        ConfigError: No such input, episode, time or embodiment.
        DataError: The recording is broken, or of another body than the model's.
    """
    if (Path(path) / MANIFEST_NAME).is_file():
        clip, offset = _from_shards(Path(path), place)
    else:
        clip, offset = _from_source(path, place, processor), 0.0
    name = place.embodiment or clip.info["embodiment"]
    spec, config = processor.spec(name), processor.window
    _check_body(clip, name, processor)
    clip = _resized(clip, processor, processor.fit(name))
    views = spec.views if set(spec.views) & set(clip.video) else tuple(clip.video)
    fps, count = clip.info["fps"], clip.info["num_frames"]
    frame = _anchor(clip, processor, name, place.start_s, offset)
    return Recording(
        source=str(path),
        episode_id=clip.info["episode_id"],
        start_s=offset + frame / fps,
        embodiment=name,
        prompt=str((clip.info.get("prompts") or [""])[0]),
        window=cut_window(clip, min(frame, count - 1), config, views),
        num_context_frames=config.num_context_frames,
        previous_action=_previous(clip, frame),
    )


def _previous(clip: Clip, frame: int) -> np.ndarray | None:
    if clip.actions is None:
        return None
    index = int(action_at(frame, clip.info["fps"], clip.info["action_rate"])[0])
    return clip.actions[index - 1] if 0 < index <= len(clip.actions) else None


def _from_shards(folder: Path, place: Place) -> tuple[Clip, float]:
    """Return the clip of the episode that holds the wanted time, and the seconds at which it begins."""
    manifest = load_manifest(folder)
    episodes = _episodes(manifest)
    name = _choose(place.episode, list(episodes), str(folder))
    samples = episodes[name]
    starts = [_clip_start(folder, shard, sample) for shard, sample in samples]
    wanted = place.start_s or 0.0
    best = max((i for i, start in enumerate(starts) if start <= wanted + 1e-6), key=lambda i: starts[i], default=0)
    return load_clip(folder, *samples[best]), starts[best]


def _episodes(manifest: Manifest) -> dict[str, list[tuple[ShardEntry, SampleEntry]]]:
    """Return the samples of each episode, held-out episodes first."""
    found: dict[str, list[tuple[ShardEntry, SampleEntry]]] = {}
    for split in sorted(manifest.splits, key=lambda split: split != "val"):
        for shard, sample in manifest.split(split):
            found.setdefault(sample.episode_id, []).append((shard, sample))
    return found


def _clip_start(folder: Path, shard: ShardEntry, sample: SampleEntry) -> float:
    at = f"shard {str(folder / shard.name)!r}, sample {sample.key!r}"
    return float(sample_info(read_sample(folder, shard, sample), at)["clip_start_s"])


def _choose(wanted: str | None, names: list[str], where: str) -> str:
    if not names:
        raise DataError(f"{where} has no episodes; convert a recording that has")
    if wanted is None or wanted in names:
        return wanted or names[0]
    if not wanted.isdigit() or int(wanted) >= len(names):
        raise ConfigError(
            f"--episode is {wanted!r}; {where} has {len(names)}: allowed 0 to {len(names) - 1}, or an id such as {names[0]!r}"
        )
    return names[int(wanted)]


def _from_source(path: str | Path, place: Place, processor: WAMProcessor) -> Clip:
    source = open_source(str(path))
    episode = _source_episode(iter(source.episodes()), place.episode, str(path))
    config = processor.window
    first = episode.views[episode.embodiment.views[0]]
    size = next(iter(first.frames())).shape
    encoded = encode_episode(
        episode,
        WriterConfig(
            dataset="input",
            height=config.height or size[0] // 2 * 2,
            width=config.width or size[1] // 2 * 2,
            clip_frames=100_000,
            fit=processor.fit(place.embodiment or episode.embodiment.name),
            licence=source.licence,
            source=str(path),
            converter="wam-video",
        ),
    )
    return decode_clip(encoded.clips[0].members, where=f"episode {episode.episode_id!r} of {path}")


def _source_episode(items: Iterator[Episode | SkippedEpisode], wanted: str | None, where: str) -> Episode:
    number = int(wanted) if wanted is not None and wanted.isdigit() else None if wanted else 0
    count = 0
    for item in items if number is None else islice(items, number + 1):
        if item.episode_id == wanted or count == number:
            if isinstance(item, SkippedEpisode):
                raise DataError(f"episode {item.episode_id!r} of {where} can't be used: {item.reason}")
            return item
        count += 1
    raise ConfigError(
        f"--episode is {wanted or 0!r}; {where} has {count} episodes: allowed 0 to {max(count - 1, 0)}, or an id"
    )


def _check_body(clip: Clip, name: str, processor: WAMProcessor) -> None:
    spec = processor.spec(name)
    for what, array, width in (("actions", clip.actions, spec.action_dim), ("state", clip.state, spec.state_dim)):
        if array is not None and array.shape[1] != width:
            raise DataError(
                f"{what} of the recording are {array.shape[1]} wide; embodiment {name!r} of the model has {width}: "
                "give a recording of that body, or another --embodiment"
            )
    rate = clip.info["action_rate"]
    if clip.actions is not None and abs(rate - spec.action_rate) > 1e-3 * spec.action_rate:
        raise DataError(
            f"actions of the recording come at {rate:g} Hz; embodiment {name!r} of the model has {spec.action_rate:g} Hz: "
            "resample the recording"
        )


def _resized(clip: Clip, processor: WAMProcessor, fit: str) -> Clip:
    config = processor.window
    if config.height is None or config.width is None:
        return clip
    size = (config.height, config.width)
    video = {
        view: frames if frames.shape[1:3] == size else np.stack([resize(frame, *size, fit) for frame in frames])
        for view, frames in clip.video.items()
    }
    return replace(clip, video=video)


def _anchor(clip: Clip, processor: WAMProcessor, name: str, start_s: float | None, offset: float) -> int:
    """Return the stored frame nearest to the wanted time at which a window may begin."""
    config, fps = processor.window, clip.info["fps"]
    spec = processor.spec(name)
    num_actions = 0 if clip.actions is None else len(clip.actions)
    stored = replace(spec, fps=fps)
    allowed = anchors(clip.info["num_frames"], num_actions, stored, config)
    if not len(allowed):
        raise DataError(
            f"episode {clip.info['episode_id']!r} holds no window: it has {clip.info['num_frames']} frames at {fps:g} fps"
        )
    if start_s is None:
        wanted = (config.num_context_frames - 1) * config.context_stride_s * fps
        return int(allowed[np.abs(allowed - wanted).argmin()])
    frame = (start_s - offset) * fps
    if not -0.5 <= frame <= allowed[-1] + 0.5:
        raise ConfigError(
            f"--start is {start_s:g}; episode {clip.info['episode_id']!r} has windows from 0 to {offset + allowed[-1] / fps:.3f} seconds"
        )
    return int(allowed[np.abs(allowed - frame).argmin()])


def stack_views(video: UInt8[np.ndarray, "v f h w 3"]) -> UInt8[np.ndarray, "f h w 3"]:
    """Put the views of each frame on top of each other."""
    return rearrange(video, "v f h w c -> f (v h) w c")


def compare(recording: Recording, output: WAMOutput, processor: WAMProcessor) -> dict[str, dict[str, float | None]]:
    """Return the errors of a call's first sample against the recording, beside controls that know no model.

    Returns:
        `actions`: mean absolute errors in physical units, over the steps that were recorded, and `video`: PSNR in dB over
        the recorded future frames. A part is left out if it was not generated or not recorded.
    """
    errors: dict[str, dict[str, float | None]] = {}
    true = recording.actions
    if output.actions is not None and true is not None:
        made = np.asarray(output.actions[0])[: len(true), : true.shape[1]]
        mean = np.asarray(recorded_actions(processor.config["stats"][recording.embodiment])["mean"], np.float32)
        held = recording.previous_action
        errors["actions"] = {
            "steps": len(made),
            "mae": _mae(made, true),
            "mae_mean_action": _mae(mean, true),
            "mae_hold_last": None if held is None else _mae(held, true),
        }
    mask = recording.future_mask
    if output.video is not None and mask.any():
        views = recording.window.frame_mask.any(1)
        future, mask = recording.future[views].transpose(0, 1, 4, 2, 3) / 255.0, mask[views]
        last = recording.window.video[views, recording.num_context_frames - 1].transpose(0, 3, 1, 2)[:, None] / 255.0
        errors["video"] = {
            "frames": int(mask.any(0).sum()),
            "psnr": _psnr(np.asarray(output.video[0]), future, mask),
            "psnr_copied_last_frame": _psnr(np.broadcast_to(last, future.shape), future, mask),
        }
    return errors


def _mae(made: np.ndarray, true: np.ndarray) -> float:
    return float(np.abs(made.astype(np.float64) - true).mean())


def _psnr(made: np.ndarray, true: np.ndarray, mask: np.ndarray) -> float:
    """Return the mean over frames of each frame's dB, as `wam-video evaluate` does, at most 100."""
    mse = np.square(made.astype(np.float64) - true).mean((-3, -2, -1))[mask]
    return float(-10 * np.log10(np.maximum(mse, 1e-10)).mean())
