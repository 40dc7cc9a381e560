"""A look at a video file's headers and packets, without decoding a frame."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from wam_video.errors import DataError, MissingDependencyError

_SAME_CODEC = {
    "libdav1d": "av1",
    "libaom-av1": "av1",
    "libsvtav1": "av1",
    "av01": "av1",
    "libx264": "h264",
    "avc": "h264",
    "avc1": "h264",
    "mp4v": "mpeg4",
    "libx265": "hevc",
    "h265": "hevc",
    "hvc1": "hevc",
    "libvpx-vp9": "vp9",
}


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file says of itself."""

    codec: str
    """Under one name per standard, e.g. `av1`, `h264`, `mpeg4`."""
    fps: float
    num_frames: int
    height: int
    width: int


def codec_name(name: str) -> str:
    """Return one name for a codec, whichever encoder, decoder or container tag it was called by."""
    return _SAME_CODEC.get(name.lower(), name.lower())


@lru_cache(maxsize=256)
def probe_video(path: Path) -> VideoInfo:
    """Read a video's codec, rate, size and number of frames; counts packets where the header has no number.

    Raises:
        DataError: The file is missing, is truncated before its index, or holds no video.
    """
    av = _av()
    if not path.is_file():
        raise DataError(f"missing file {path}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: holds no video stream")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            context = stream.codec_context
            if not rate or not frames:
                raise DataError(f"{path}: has {frames} frames at rate {rate}; it is empty or damaged")
            return VideoInfo(
                codec=codec_name(context.name),
                fps=float(rate),
                num_frames=int(frames),
                height=int(context.height),
                width=int(context.width),
            )
    except (av.FFmpegError, OSError) as error:
        raise DataError(
            f"{path}: not a readable video ({_reason(error)}); it may be truncated: copy it again"
        ) from error


def packet_times(path: Path) -> Float[np.ndarray, " f"]:
    """Return the presentation time in seconds of every frame, the first at 0, in the order of display.

    Raises:
        DataError: The file can't be read or its packets carry no times.
    """
    av = _av()
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            ticks = [packet.pts for packet in container.demux(stream) if packet.size]
            base = float(stream.time_base)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise DataError(
            f"{path}: not a readable video ({_reason(error)}); it may be truncated: copy it again"
        ) from error
    if not ticks or any(tick is None for tick in ticks):
        raise DataError(f"{path}: its frames carry no times; write it again as mp4")
    times = np.sort(np.asarray(ticks, dtype=np.float64)) * base
    return times - times[0]


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError("av", "data", "reading video files") from error
    return av
