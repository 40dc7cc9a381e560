"""Encoded clips end to end in one mp4, without encoding anything again: the pixels are the same to the bit."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av

from wam_video.errors import DataError


class JoinedVideo:
    """One mp4 that clips are appended to; frame k of all of them is at `k / fps` seconds.

    The clips must start with a keyframe and have no B-frames, as those of shards do.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.num_frames = 0
        self._tick = 1 / Fraction(fps).limit_denominator(100_000)
        self._container = av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"})
        self._stream: Any = None
        self._header: bytes | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fits(self, clip: bytes, name: str) -> bool:
        """Return whether a clip has the codec settings of those before it, which share one header.

        Raises:
            DataError: It is no readable video.
        """
        with _opened(clip, name) as container:
            header = bytes(container.streams.video[0].codec_context.extradata or b"")
        return self._header is None or self._header == header

    def append(self, clip: bytes, name: str, limit: int | None = None) -> int:
        """Copy the frames of a clip, the first `limit` of them, and return how many these were.

        Raises:
            DataError: It is no readable video, or can't be joined to those before it.
        """
        if not self.fits(clip, name):
            raise DataError(
                f"{name} was encoded with other settings than the clips before it; it needs a file of its own"
            )
        copied = 0
        with _opened(clip, name) as container:
            source = container.streams.video[0]
            if self._stream is None:
                self._stream = self._container.add_stream_from_template(source)
                self._stream.time_base = self._tick
                self._header = bytes(source.codec_context.extradata or b"")
            for packet in container.demux(source):
                if packet.size == 0 or (limit is not None and copied == limit):
                    continue
                if copied == 0 and not packet.is_keyframe:
                    raise DataError(f"{name} does not start with a keyframe; it can't be joined")
                packet.stream = self._stream
                packet.time_base = self._tick
                packet.pts = packet.dts = self.num_frames + copied
                packet.duration = 1
                self._container.mux_one(packet)
                copied += 1
        self.num_frames += copied
        return copied

    def close(self) -> None:
        """Write the index; the file is complete afterwards."""
        self._container.close()


@contextmanager
def _opened(clip: bytes, name: str) -> Iterator[Any]:
    """Open a clip in memory; what is wrong with it becomes a `DataError`."""
    try:
        with av.open(io.BytesIO(clip), mode="r") as container:
            yield container
    except (av.FFmpegError, OSError, IndexError) as error:
        raise DataError(f"{name} can't be read ({error}); it is truncated: convert the dataset again") from error
