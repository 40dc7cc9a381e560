"""A video of a shard that decodes the frames that are asked for and no others, by way of the keyframe before them.

Shards have a keyframe every 8 frames, so a window of 33 frames out of a clip of 256 costs 33 to 40 decoded frames.
"""

import io
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Int, UInt8

from wam_video.data.video import MAX_FRAME_PIXELS, broken_video, to_rgb
from wam_video.errors import DataError


class LazyVideo:
    """Frames of an H.264 stream in memory, decoded once each when they are first taken; what a window needs of an array."""

    def __init__(self, data: bytes, name: str) -> None:
        """Read the packets' times, and decode nothing.

        Args:
            data: An mp4 file.
            name: Of it, for messages.

        Raises:
            DataError: It is truncated or no video.
        """
        self._data, self._name = data, name
        try:
            with av.open(io.BytesIO(data), mode="r") as container:
                stream = container.streams.video[0]
                height, width = stream.codec_context.height, stream.codec_context.width
                packets = [p for p in container.demux(stream) if p.pts is not None and not p.is_discard]
        except (av.FFmpegError, OSError, IndexError, ValueError) as error:
            raise broken_video(name, error) from error
        if not 0 < width * height <= MAX_FRAME_PIXELS:
            raise DataError(f"video {name!r} is {width}x{height}; at most {MAX_FRAME_PIXELS} pixels a frame")
        self._pts = np.sort(np.asarray([p.pts for p in packets], np.int64))
        keys = np.sort(np.asarray([p.pts for p in packets if p.is_keyframe], np.int64))
        self._keys = np.searchsorted(self._pts, keys)
        self.shape = (len(self._pts), height, width, 3)
        self._frames: UInt8[np.ndarray, "f h w c"] | None = None
        self._held = np.zeros(len(self._pts), bool)
        self._container: Any = None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Memory that it holds once all is decoded."""
        return int(np.prod(self.shape)) + len(self._data)

    @property
    def decoded(self) -> int:
        """Frames that were decoded so far."""
        return int(self._held.sum())

    def take(self, indices: Sequence[int] | Int[np.ndarray, " n"], axis: int = 0, out: Any = None, mode: str = "raise"):
        """Return the frames at `indices`; the arguments are those of `numpy.ndarray.take`.

        Raises:
            DataError: The stream can't be decoded there, or breaks off.
        """
        self._decode(np.unique(np.clip(np.asarray(indices, np.int64), 0, len(self) - 1)))
        assert self._frames is not None
        return self._frames.take(indices, axis=axis, out=out, mode=mode)  # type: ignore[call-overload]

    def whole(self) -> UInt8[np.ndarray, "f h w c"]:
        """Return all frames.

        Raises:
            DataError: The stream can't be decoded, or breaks off.
        """
        self._decode(np.arange(len(self)))
        return np.empty(self.shape, np.uint8) if self._frames is None else self._frames

    def _decode(self, wanted: np.ndarray) -> None:
        """Decode what is not held of the rising indices `wanted`, and the frames on the way there."""
        missing = wanted[~self._held[wanted]]
        if not missing.size:
            return
        if self._frames is None:
            self._frames = np.empty(self.shape, np.uint8)
        starts = self._keys[np.maximum(np.searchsorted(self._keys, missing, side="right") - 1, 0)]
        # frames whose keyframe lies before the last one that is decoded anyway belong to its run
        cuts = np.flatnonzero(starts[1:] > missing[:-1] + 1) + 1
        try:
            if self._container is None:
                self._container = av.open(io.BytesIO(self._data), mode="r")
                self._container.streams.video[0].thread_type = "NONE"
            for run in np.split(missing, cuts):
                self._decode_run(self._container, int(run[0]), int(run[-1]))
            if self._held.all():  # a decoder holds some megabytes
                self._container.close()
                self._container = None
        except (av.FFmpegError, OSError) as error:
            raise broken_video(self._name, error) from error

    def _decode_run(self, container: Any, first: int, last: int) -> None:
        stream, reformatter = container.streams.video[0], VideoReformatter()
        container.seek(int(self._pts[first]), stream=stream, backward=True)
        _, height, width, _ = self.shape
        for frame in container.decode(stream):
            place = -1 if frame.pts is None else int(np.searchsorted(self._pts, frame.pts))
            if not 0 <= place < len(self._pts) or (frame.height, frame.width) != (height, width):
                raise DataError(
                    f"video {self._name!r} has a frame of {frame.width}x{frame.height} at {frame.pts}, which its packets do "
                    "not announce; it is damaged: make or fetch it again"
                )
            if not self._held[place]:
                self._frames[place] = to_rgb(reformatter, frame)  # type: ignore[index]
                self._held[place] = True
            if place >= last:
                break
        if not self._held[first : last + 1].all():
            raise DataError(
                f"video {self._name!r} breaks off before frame {last}; it is truncated: make or fetch it again"
            )
