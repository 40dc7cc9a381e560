"""The same recordings as this library's shards and as LeRobot v3.0 datasets with other video files, for `bench data`."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from wam_video.data.encode import WriterConfig
from wam_video.data.export import ExportConfig, export_lerobot
from wam_video.data.latents import OPTION, Encoding, to_npy
from wam_video.data.manifest import load_manifest, save_manifest
from wam_video.data.normalize import compute_stats, save_stats
from wam_video.data.reader import read_sample
from wam_video.data.schema import EmbodimentSpec, Episode
from wam_video.data.shard_set import ShardSet
from wam_video.data.video import ArrayView, open_video
from wam_video.data.windows import WindowConfig
from wam_video.data.writer import ShardFile, ShardWriter, count_samples
from wam_video.errors import DataError
from wam_video.log import get_logger

FPS = 15
HEIGHT, WIDTH = 180, 320
VIEWS = ("left", "right", "wrist")
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"crf": "18"}),
    "av1": ("libsvtav1", {"crf": "30", "svtav1-params": "lp=1"}),
    "av1_g2": ("libsvtav1", {"crf": "30", "g": "2", "svtav1-params": "lp=1"}),
}
"""Encoder and options: the encoders' own keyframe distances (250 and 161 frames), and LeRobot's default of 2."""

_LOG = get_logger(__name__)


def recordings(frames: int, videos: Sequence[Path]) -> dict[str, UInt8[np.ndarray, "f h w c"]]:
    """Return three views of one recording.

    Args:
        frames: How many.
        videos: Three files of 180x320, played to and fro until there are enough frames; a made-up scene where there are none.

    Raises:
        DataError: Not three files, or of another size.
    """
    if not videos:
        return {view: np.stack(list(_scene(frames, number))) for number, view in enumerate(VIEWS)}
    found: dict[str, np.ndarray] = {}
    for view, path in zip(VIEWS, videos, strict=len(videos) == len(VIEWS)):
        reader = open_video(path, decoder="pyav")
        once = reader.get(range(len(reader)))
        if once.shape[1:3] != (HEIGHT, WIDTH):
            raise DataError(f"video {str(path)!r} is {once.shape[1]}x{once.shape[2]}; allowed: {HEIGHT}x{WIDTH}")
        there_and_back = np.concatenate([np.arange(len(once)), np.arange(len(once))[::-1]])
        found[view] = once[np.resize(there_and_back, frames)]
    return found


def _scene(frames: int, seed: int) -> Iterator[UInt8[np.ndarray, "h w c"]]:
    """Yield a textured ground (which the last view pans over), three moving discs, and a camera's noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 200, (HEIGHT // 12 + 2, WIDTH // 12 + 90, 3))
    ground = np.kron(coarse, np.ones((12, 12, 1)))[:HEIGHT] + rng.normal(0, 6, (HEIGHT, 12 * coarse.shape[1], 3))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    colours, speeds = rng.uniform(0, 255, (3, 3)), rng.uniform(0.3, 1.5, (3, 2))
    for number in range(frames):
        t, shift = number / FPS, (number * 2) % (12 * coarse.shape[1] - WIDTH) if seed == len(VIEWS) - 1 else 0
        picture = ground[:, shift : shift + WIDTH].copy()
        for colour, (a, b) in zip(colours, speeds, strict=True):
            y, x = HEIGHT / 2 * (1 + 0.8 * np.sin(a * t)), WIDTH / 2 * (1 + 0.8 * np.cos(b * t))
            picture[(rows - y) ** 2 + (columns - x) ** 2 < 400] = colour
        yield np.clip(picture + rng.normal(0, 1.5, picture.shape), 0, 255).astype(np.uint8)


def write_shards(folder: Path, views: dict[str, UInt8[np.ndarray, "f h w c"]]) -> None:
    """Write a recording with actions as shards of this library, with its usual options."""
    frames = len(next(iter(views.values())))
    spec = EmbodimentSpec(name="arm", action_dim=7, state_dim=7, views=VIEWS, fps=FPS, action_rate=FPS)
    rows = np.random.default_rng(0).normal(size=(frames, 7)).astype(np.float32)
    episode = Episode(
        episode_id="episode000000",
        embodiment=spec,
        views={name: ArrayView(array, np.arange(frames) / FPS) for name, array in views.items()},
        actions=rows[1:],
        state=rows,
        prompts=("move",),
    )
    config = WriterConfig(dataset="bench", height=HEIGHT, width=WIDTH, val_fraction=0)
    with ShardWriter(folder, config) as writer:
        writer.write(episode)
    save_stats(compute_stats(folder), folder)


def write_latents(shards: Path, folder: Path, window: WindowConfig, every: int) -> None:
    """Write shards of latents of the shape of Wan2.1's codec (16 channels, 4x8x8); reading does not depend on the numbers."""
    manifest = load_manifest(shards)
    encoding = Encoding.of("0" * 64, {"shape": "wan2.1"}, window, every=every, keep_video=False)
    frames = (window.num_frames - 1) // 4 + 1
    source = ShardSet("bench", str(shards), "train", window)
    folder.mkdir(parents=True)
    entries = []
    for shard in manifest.shards:
        file = ShardFile(folder / shard.name, shard.split)
        for number, sample in source.clips_of(shard.name):
            members = {k: v for k, v in read_sample(shards, shard, sample).items() if not k.endswith(".mp4")}
            shape = (len(source.anchors(number)[::every]), 16, frames, HEIGHT // 8, WIDTH // 8)
            for view in VIEWS:
                members[f"latents.{view}.npy"] = to_npy(torch.rand(shape, generator=torch.Generator().manual_seed(0)))
            file.append(sample, members)
        entries.append(file.close())
    options = {**manifest.options, OPTION: encoding.to_option()}
    save_manifest(
        replace(
            manifest,
            options=options,
            shards=tuple(entries),
            counts=count_samples(entries, manifest.embodiments),
        ),
        folder,
    )
    save_stats(compute_stats(folder), folder)


def write_lerobot(shards: Path, folder: Path, views: dict[str, UInt8[np.ndarray, "f h w c"]], codec: str) -> None:
    """Write a LeRobot v3.0 dataset of the same recording, its videos encoded as `CODECS` says."""
    export_lerobot(shards, folder, ExportConfig())
    encoder, options = CODECS[codec]
    for view, frames in views.items():
        (path,) = (folder / "videos" / f"observation.images.{view}").rglob("*.mp4")
        path.write_bytes(_encode(frames, encoder, options))


def _encode(frames: UInt8[np.ndarray, "f h w c"], encoder: str, options: dict[str, str]) -> bytes:
    sink = io.BytesIO()
    with av.open(sink, mode="w", format="mp4") as container:
        stream = container.add_stream(encoder, rate=Fraction(FPS), options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"  # type: ignore[union-attr]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))  # type: ignore[union-attr]
        container.mux(stream.encode(None))  # type: ignore[union-attr]
    return sink.getvalue()


@dataclass
class LeRobotVideos:
    """Random access to windows of a LeRobot dataset's videos by PyAV, in one thread.

    `decode` does what LeRobot's own `pyav` reader does for one query: open the file, seek to the keyframe before the first
    time, decode and convert every frame up to the last time, and take the nearest ones. (It then makes float32 of them, which
    is left out here.) With `keep_open` the file stays open and only the frames that were asked for are converted: the least
    that this format can cost.
    """

    folder: Path
    keep_open: bool = False

    def __post_init__(self) -> None:
        info: dict[str, Any] = json.loads((self.folder / "meta" / "info.json").read_text())
        keys = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
        place = {"chunk_index": 0, "file_index": 0}
        self.paths = [self.folder / info["video_path"].format(video_key=key, **place) for key in sorted(keys)]
        self.fps = float(info["fps"])
        self.decoded = 0
        self._open: dict[Path, Any] = {}

    def window(self, first: int, count: int) -> UInt8[Tensor, "v f c h w"]:
        """Return `count` neighbouring frames of every view."""
        return torch.stack([self.decode(path, first, count) for path in self.paths])

    def decode(self, path: Path, first: int, count: int) -> UInt8[Tensor, "f c h w"]:
        """Return frames of one file."""
        times = torch.arange(first, first + count) / self.fps
        container = self._open.pop(path, None)
        if container is None:
            container = av.open(str(path), options={"threads": "1"})
            container.streams.video[0].thread_type = "NONE"
        stream = container.streams.video[0]
        tick = float(stream.time_base or 1 / self.fps)
        container.seek(int(first / self.fps / tick), stream=stream, backward=True)
        frames, found = [], []
        for frame in container.decode(stream):
            self.decoded += 1
            at = (frame.pts or 0) * tick
            if not self.keep_open or at > float(times[0]) - 0.5 / self.fps:
                frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24", threads=1)))
                found.append(at)
            if at > float(times[-1]) - 0.5 / self.fps:
                break
        if self.keep_open:
            self._open[path] = container
        else:
            container.close()
        nearest = _nearest(times, torch.tensor(found))
        return torch.stack([rearrange(frames[i], "h w c -> c h w") for i in nearest])


def _nearest(wanted: Float[Tensor, " n"], found: Float[Tensor, " m"]) -> list[int]:
    return (wanted[:, None] - found[None]).abs().argmin(dim=1).tolist()
