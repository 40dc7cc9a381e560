"""`wam-video bench convert`: plain video into shards, against a plain transcode of the same files to the same settings.

The transcode decodes, resizes and encodes with the options of `encode_mp4`, and does nothing else: by an ffmpeg binary where one
is found, and by the ffmpeg libraries within PyAV, which are those that a conversion uses. Everyone has one thread; they take
turns, and speeds are recorded frames per second of processor time, which is per core.
"""

import argparse
import logging
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
from av.filter import Graph

from wam_video.cli import bench_formats as formats
from wam_video.cli.bench_data import summary
from wam_video.cli.options import parse_size
from wam_video.data.convert import convert
from wam_video.data.encode import WriterConfig
from wam_video.data.sources import open_source
from wam_video.data.video import encode_mp4, h264_options
from wam_video.errors import ConfigError, DataError, first_line
from wam_video.evaluation.provenance import processor
from wam_video.log import progress

_EXAMPLE = "example: wam-video bench convert --videos clips/ --size 256x256 --limit 20 --output convert.json"


def add_convert(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `convert` to `wam-video bench`."""
    parser = commands.add_parser("convert", help="a conversion against a plain transcode", epilog=_EXAMPLE)
    add = parser.add_argument
    add("--videos", type=Path, metavar="FOLDER", help="of mp4 files; default: a made-up scene of 180x320")
    add("--limit", type=int, default=20, help="files (default 20)")
    add("--size", default="256x256", metavar="HxW", help="stored height x width (default 256x256)")
    add("--runs", type=int, default=5, help="counted rounds, after one warm-up")
    add(
        "--ffmpeg",
        metavar="FILE",
        help="binary (default: of the PATH, or imageio-ffmpeg's; none: only PyAV's libraries)",
    )
    add("--output", type=Path, help="write the figures as JSON here")
    parser.set_defaults(measure=bench_convert, least={"limit": 1, "runs": 1})


def bench_convert(args: argparse.Namespace) -> dict[str, Any]:
    """Take turns and return frames per second of processor time, and the conversion's time over each transcode's."""
    logging.getLogger("libav").setLevel(logging.ERROR)
    size = parse_size(args.size)
    config = WriterConfig(dataset="bench", height=size[0], width=size[1], clip_frames=100_000)
    ffmpeg = _ffmpeg(args.ffmpeg)
    version = _version(ffmpeg)
    with TemporaryDirectory(prefix="wam-video-bench-") as name:
        folder = Path(name)
        videos = _videos(args, folder / "videos")
        works: dict[str, Callable[[], None]] = {
            "convert": lambda: _convert(videos, folder / "shards", config),
            "pyav": lambda: _each(videos, lambda path: _by_libraries(path, folder / "out.mp4", size)),
        }
        if ffmpeg:
            works["ffmpeg"] = lambda: _each(videos, lambda path: _by_binary(ffmpeg, path, folder / "out.mp4", size))
        seconds = _take_turns(works, args.runs)
        frames = sum(_count(path) for path in videos)
        mib = {
            "recorded": sum(path.stat().st_size for path in videos) / 2**20,
            "shards": sum(path.stat().st_size for path in (folder / "shards").glob("*.tar")) / 2**20,
        }
    return {
        "about": {
            "files": len(videos),
            "frames": frames,
            "size": args.size,
            "encoder": {"name": "libx264", **h264_options()},
            "ffmpeg": version,
            "pyav": {"version": av.__version__, "libraries": _libraries()},
            "processor": processor(),
            "mib": {name: round(value, 2) for name, value in mib.items()},
        },
        "frames_per_cpu_second": {name: summary([frames / s for s in values]) for name, values in seconds.items()},
        "seconds_over_transcode": {
            name: summary([a / b for a, b in zip(seconds["convert"], seconds[name], strict=True)])
            for name in seconds
            if name != "convert"
        },
    }


def _take_turns(works: dict[str, Callable[[], None]], runs: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for run in progress(range(runs + 1), what="rounds"):
        for name in sorted(works, reverse=bool(run % 2)):  # nobody always comes after the same one
            begin = _processor_time()
            works[name]()
            if run:
                seconds[name].append(_processor_time() - begin)
    return seconds


def _processor_time() -> float:
    """Return the seconds that this process and the children that have ended used of a processor."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _videos(args: argparse.Namespace, folder: Path) -> list[Path]:
    """Return links to the files, so that all read the same ones."""
    folder.mkdir()
    if args.videos is None:
        for number in range(args.limit):
            scene = next(iter(formats.recordings(120, ()).values()))
            (folder / f"scene_{number:03d}.mp4").write_bytes(encode_mp4(scene, formats.FPS, gop=250, crf=20))
    else:
        found = sorted(args.videos.glob("*.mp4"))[: args.limit]
        if not found:
            raise DataError(f"--videos is {str(args.videos)!r}, which holds no mp4 files; give a folder of some")
        for path in found:
            (folder / path.name).symlink_to(path.resolve())
    return sorted(folder.iterdir())


def _convert(videos: Sequence[Path], output: Path, config: WriterConfig) -> None:
    shutil.rmtree(output, ignore_errors=True)
    source = open_source(videos[0].parent, "video", multiview="no")
    manifest = convert(source, output, config)
    if manifest.skipped:
        raise DataError(f"{manifest.skipped[0].episode_id}: {manifest.skipped[0].reason}; leave that file out")


def _each(videos: Sequence[Path], work: Callable[[Path], None]) -> None:
    for path in videos:
        work(path)


def _by_binary(ffmpeg: str, path: Path, output: Path, size: tuple[int, int]) -> None:
    height, width = size
    fit = f"scale={width}:{height}:force_original_aspect_ratio=decrease,pad={width}:{height}:-1:-1"
    options = [part for key, value in h264_options().items() for part in (f"-{key}", value)]
    command = [ffmpeg, "-nostdin", "-v", "error", "-y", "-threads", "1", "-i", str(path), "-an", "-vf", fit]
    command += ["-fps_mode", "passthrough", "-filter_threads", "1", "-c:v", "libx264", *options]
    command += ["-pix_fmt", "yuv420p", "-threads", "1", str(output)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"{ffmpeg} can't transcode {str(path)!r}: {done.stderr.strip()[-200:]}")


def _by_libraries(path: Path, output: Path, size: tuple[int, int]) -> None:
    """Decode, resize in the recording's own colours and encode, all within the libraries."""
    with av.open(str(path)) as source, av.open(str(output), "w") as sink:
        stream = source.streams.video[0]
        stream.thread_type = "NONE"
        target = sink.add_stream("libx264", rate=stream.average_rate, options=h264_options())
        target.height, target.width, target.pix_fmt = size[0], size[1], "yuv420p"
        target.codec_context.thread_count = 1
        graph = _fit(stream, size)
        for frame in source.decode(stream):
            graph.vpush(frame)
            fitted = graph.vpull()
            fitted.pict_type = 0
            sink.mux(target.encode(fitted))
        sink.mux(target.encode(None))


def _fit(stream: Any, size: tuple[int, int]) -> Any:
    height, width = size
    graph = Graph()
    graph.threads = 1
    scale = f"{width}:{height}:force_original_aspect_ratio=decrease"
    steps = [
        graph.add_buffer(template=stream),
        graph.add("scale", scale),
        graph.add("pad", f"{width}:{height}:-1:-1"),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ]
    for before, after in pairwise(steps):
        before.link_to(after)
    graph.configure()
    return graph


def _count(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for packet in container.demux(video=0) if packet.pts is not None and not packet.is_discard)


def _ffmpeg(asked: str | None) -> str | None:
    if asked is not None and shutil.which(asked) is None:
        raise ConfigError(f"--ffmpeg is {asked!r}, which is no program; leave it out to use PyAV's libraries alone")
    if asked is not None or (asked := shutil.which("ffmpeg")) is not None or find_spec("imageio_ffmpeg") is None:
        return asked
    return str(import_module("imageio_ffmpeg").get_ffmpeg_exe())


def _version(ffmpeg: str | None) -> str:
    if ffmpeg is None:
        return "none found"
    try:
        return subprocess.run([ffmpeg, "-version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise ConfigError(f"--ffmpeg is {ffmpeg!r}, which can't be run ({first_line(error)}); give another") from error


def _libraries() -> dict[str, str]:
    return {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
