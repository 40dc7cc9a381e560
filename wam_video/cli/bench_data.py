"""`wam-video bench data`: this library's loader against random access into the video files of a LeRobot dataset.

All read the same recording, three views of 180x320 at 15 fps, in windows of 33 frames; they take turns in one process, each in
one thread. Speeds are frames delivered per second of processor time, which is per core and does not depend on what else the
machine does; the stall share is of the clock on the wall.
"""

import argparse
import logging
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from wam_video.cli import bench_formats as formats
from wam_video.data.loader import DataConfig, DatasetConfig, WindowDataset, make_loader
from wam_video.data.windows import WindowConfig
from wam_video.evaluation.provenance import processor
from wam_video.log import progress

FRAMES = 33
PER_WINDOW = FRAMES * len(formats.VIEWS)
GROUPS = (1, 8, 32)
"""Windows cut from one clip in a row (`data.windows_per_decode`); 8 is the default, 1 shuffles freely as random access does."""
_LEAST_SAMPLES = 320
"""Ten batches, of which the memory of the first two is not looked at."""
WINDOW = WindowConfig(
    num_context_frames=1,
    num_future_frames=FRAMES - 1,
    future_stride_s=1 / formats.FPS,
    action_horizon=FRAMES - 1,
    max_views=len(formats.VIEWS),
    height=formats.HEIGHT,
    width=formats.WIDTH,
)


def add_data(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `data` to `wam-video bench`."""
    example = "example: wam-video bench data --frames 800 --videos left.mp4 right.mp4 wrist.mp4 --output data.json"
    parser = commands.add_parser("data", help="the loader against LeRobot's video files", epilog=example)
    add = parser.add_argument
    add("--frames", type=int, default=800, help="of the recording")
    add("--videos", type=Path, nargs=3, default=(), metavar="MP4", help="180x320; default: a made-up scene")
    add("--runs", type=int, default=5, help="counted rounds, after one warm-up")
    add("--windows", type=int, default=3, help="that each reader of video files delivers in a round; ours 32")
    add("--step-ms", type=float, default=200.0, help="of the simulated training step")
    add("--batch-size", type=int, default=2, help="windows of pixels in such a step; of latents 8 times as many")
    add("--steps", type=int, default=40, help="simulated")
    add("--workers", type=int, default=1)
    add("--samples", type=int, default=10_000, help="over which memory must stay flat")
    add("--output", type=Path, help="write the figures as JSON here")
    least = {"frames": FRAMES + 1, "runs": 1, "windows": 1, "step_ms": 0, "batch_size": 1, "steps": 1, "workers": 0}
    parser.set_defaults(measure=bench_data, least={**least, "samples": _LEAST_SAMPLES})


def bench_data(args: argparse.Namespace) -> dict[str, Any]:
    """Make the recording in every format, and measure."""
    logging.getLogger("libav").setLevel(logging.ERROR)
    with TemporaryDirectory(prefix="wam-video-bench-") as name:
        folder = Path(name)
        views = formats.recordings(args.frames, args.videos)
        formats.write_shards(folder / "shards", views)
        formats.write_latents(folder / "shards", folder / "latents", WINDOW, every=8)
        for codec in progress(formats.CODECS, what="formats"):
            formats.write_lerobot(folder / "shards", folder / codec, views, codec)
        del views
        speeds, decoded = _speeds(args, folder)
        return {
            "about": _about(args, folder),
            "frames_per_cpu_second": {name: summary(values) for name, values in speeds.items()},
            "frames_decoded_per_frame_delivered": decoded,
            "ratio": _ratios(speeds),
            "stall": {
                kind: _stall(args, folder / kind, size)
                for kind, size in (("shards", args.batch_size), ("latents", 8 * args.batch_size))
            },
            "memory": {kind: _memory(args, folder / kind) for kind in ("shards", "latents")},
        }


def _about(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    def mib(path: Path) -> float:
        return round(sum(p.stat().st_size for p in path.rglob("*") if p.suffix in (".mp4", ".tar")) / 2**20, 2)

    return {
        "recording": "a made-up scene" if not args.videos else "three videos, to and fro",
        "frames": args.frames,
        "window": {"frames": FRAMES, "views": len(formats.VIEWS), "height": formats.HEIGHT, "width": formats.WIDTH},
        "encoders": {name: {"encoder": encoder, **options} for name, (encoder, options) in formats.CODECS.items()},
        "mib": {name: mib(folder / name) for name in ("shards", "latents", *formats.CODECS)},
        "torch": torch.__version__,
        "processor": processor(),
    }


def _dataset(folder: Path, group: int = 8) -> WindowDataset:
    # without a cache, for it would hold all of so short a recording
    datasets = {"bench": DatasetConfig(path=str(folder))}
    return WindowDataset(DataConfig(datasets=datasets, window=WINDOW, windows_per_decode=group, cache_mb=0))


def _speeds(args: argparse.Namespace, folder: Path) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the frames per second of processor time of every reader, by round."""
    readers: dict[str, Callable[[], int]] = {}
    for group in GROUPS:
        readers[f"shards_{group}"] = _ours(_dataset(folder / "shards", group), windows=32, batch=8)
    readers["latents"] = _ours(_dataset(folder / "latents"), windows=512, batch=32)
    videos: dict[str, formats.LeRobotVideos] = {}
    for codec in formats.CODECS:
        for name, keep_open in ((f"lerobot_{codec}", False), (f"lerobot_{codec}_kept_open", True)):
            videos[name] = formats.LeRobotVideos(folder / codec, keep_open)
            readers[name] = _theirs(videos[name], args)
    speeds: dict[str, list[float]] = {name: [] for name in readers}
    for run in progress(range(args.runs + 1), what="rounds"):
        for name in sorted(readers, reverse=bool(run % 2)):  # nobody always comes after the same one
            start = time.process_time()
            frames = readers[name]()
            if run:
                speeds[name].append(frames / (time.process_time() - start))
    asked = args.windows * PER_WINDOW * (args.runs + 1)
    return speeds, {name: round(reader.decoded / asked, 2) for name, reader in videos.items()}


def _ours(dataset: WindowDataset, windows: int, batch: int) -> Callable[[], int]:
    starts = count(0, batch)

    def read() -> int:
        for start in islice(starts, windows // batch):
            dataset.batch(range(start, start + batch))
        return windows * PER_WINDOW

    return read


def _theirs(videos: formats.LeRobotVideos, args: argparse.Namespace) -> Callable[[], int]:
    rng = np.random.default_rng(0)

    def read() -> int:
        for first in rng.integers(0, args.frames - FRAMES, args.windows):
            videos.window(int(first), FRAMES)
        return args.windows * PER_WINDOW

    return read


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return the middle and the ends of some measurements."""
    return {
        "median": float(f"{statistics.median(values):.5g}"),
        "min": float(f"{min(values):.5g}"),
        "max": float(f"{max(values):.5g}"),
    }


def _ratios(speeds: dict[str, list[float]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return ours over theirs, round by round."""
    return {
        ours: {
            theirs: summary([a / b for a, b in zip(speeds[ours], speeds[theirs], strict=True)])
            for theirs in speeds
            if theirs.startswith("lerobot")
        }
        for ours in speeds
        if not ours.startswith("lerobot")
    }


def _stall(args: argparse.Namespace, folder: Path, batch_size: int) -> dict[str, Any]:
    """Return the share of the time that a consumer who sleeps for every step spends waiting for batches."""
    loader: Iterator[Any] = iter(make_loader(_dataset(folder), batch_size, num_workers=args.workers))
    next(loader)  # the workers' start is no stall
    waited = 0.0
    begin = time.perf_counter()
    for _ in range(args.steps):
        before = time.perf_counter()
        next(loader)
        waited += time.perf_counter() - before
        time.sleep(args.step_ms / 1000)
    return {
        "share": round(waited / (time.perf_counter() - begin), 4),
        "step_ms": args.step_ms,
        "batch_size": batch_size,
        "workers": args.workers,
    }


def _memory(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Return how the resident memory of this process grows over many samples."""
    dataset, used, batch = _dataset(folder, 32), [], 32
    for start in range(0, args.samples, batch):
        dataset.batch(range(start, start + batch))
        used.append(_resident())
    # Of each tenth the most: between, it rises and falls with the clip that is being decoded. The first two fill caches.
    peaks = np.asarray([max(part) for part in np.array_split(used, 10) if len(part)][2:], np.float64)
    slope = float(np.polyfit(np.arange(len(peaks)) * len(used) * batch / 10, peaks, 1)[0]) if len(peaks) > 1 else 0.0
    return {
        "samples": len(used) * batch,
        "kib_per_sample": round(slope / 1024, 4),
        "first_mib": round(float(peaks[0]) / 2**20, 1),
        "last_mib": round(float(peaks[-1]) / 2**20, 1),
    }


def _resident() -> int:
    """Return the bytes of this process that are in memory now."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(status.read_text().split()[1]) * resource.getpagesize()
