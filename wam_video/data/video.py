"""Video files in and out: one reader over decord and PyAV, one encoder with reproducible bytes, and resizing.

decord decodes H.264 and its like; AV1 needs PyAV. Both give the same RGB for the shards that `encode_mp4` makes.
"""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, UInt8
from PIL import Image

from wam_video.errors import ConfigError, DataError, MissingDependencyError, one_of

DECODERS = ("auto", "decord", "pyav")
FITS = ("pad", "crop", "stretch")
MAX_FRAME_PIXELS = 1 << 26
"""A frame larger than this is refused before anything is decoded: no camera makes it, a hostile header may."""

_DECORD_CODECS = frozenset({"h264", "hevc", "mpeg4", "mjpeg", "vp8"})
_DECORD_BROKEN_WIDTHS = frozenset({*range(25), 48, 72})
"""decord 0.6 fails to copy frames of these widths (every even one up to 660 was tried)."""

_DECORD_PLACE = re.compile(r"\[[\d:]+\] \S+:\d+: ")
"""Time and line of decord's own source, which its messages begin with."""

_SEEK_GAP = 64
_CHUNK = 32


class VideoReader(Protocol):
    """Random and sequential access to the frames of one video stream."""

    @property
    def fps(self) -> float:
        """Frames per second as the container states it."""
        ...

    def __len__(self) -> int: ...

    def get(self, indices: Sequence[int]) -> UInt8[np.ndarray, "f h w c"]:
        """Return the frames at `indices`, in that order, as RGB.

        Raises:
            DataError: An index is out of range, or the stream breaks off before it.
        """
        ...

    def close(self) -> None:
        """Release the file and the decoder."""
        ...


def open_video(source: Path | str | bytes, *, decoder: str = "auto", name: str = "") -> VideoReader:
    """Open a video file, or one held in memory.

    Args:
        source: Path or the file's bytes.
        decoder: `auto` takes decord where it is installed and knows the codec and the width, else PyAV; the pixels are the same.
        name: What to call `source` in error messages; the path by default.

    Raises:
        ConfigError: Unknown decoder.
        DataError: The file is missing, empty, cut short or not a video.
    """
    if decoder not in DECODERS:
        raise ConfigError(one_of("decoder", decoder, DECODERS))
    name = name or ("video in memory" if isinstance(source, bytes) else str(source))
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise DataError(f"video {name!r} does not exist; check the path")
    if decoder == "pyav":
        return _PyAVReader(source, name)
    reader = _PyAVReader(source, name)
    module = _import_decord(required=decoder == "decord")
    suited = reader.codec in _DECORD_CODECS and reader.width not in _DECORD_BROKEN_WIDTHS
    if module is None or (decoder == "auto" and not suited):
        return reader
    reader.close()
    return _DecordReader(module, source, name, reader.fps)


def _import_decord(*, required: bool):
    try:
        import decord
    except ImportError as error:
        if required:
            raise MissingDependencyError("decord", "data", "decoder='decord'") from error
        return None
    decord.logging.set_level(decord.logging.QUIET)  # its errors come as exceptions; PyAV is quiet by itself
    return decord


def _check_indices(indices: Sequence[int], length: int, name: str) -> np.ndarray:
    wanted = np.asarray(indices, dtype=np.int64)
    if wanted.size and (wanted.min() < 0 or wanted.max() >= length):
        raise DataError(
            f"video {name!r}: frame {wanted.min() if wanted.min() < 0 else wanted.max()} asked of {length} frames"
        )
    return wanted


class _DecordReader:
    def __init__(self, module, source: Path | str | bytes, name: str, fps: float) -> None:
        self._name, self.fps = name, fps
        try:
            self._reader = module.VideoReader(
                io.BytesIO(source) if isinstance(source, bytes) else str(source), num_threads=1
            )
        except Exception as error:  # decord raises RuntimeError and its own DECORDError
            raise broken_video(name, error) from error

    def __len__(self) -> int:
        return len(self._reader)

    def get(self, indices: Sequence[int]) -> UInt8[np.ndarray, "f h w c"]:
        wanted = _check_indices(indices, len(self), self._name)
        try:
            return self._reader.get_batch(wanted.tolist()).asnumpy()
        except Exception as error:
            raise broken_video(self._name, error) from error

    def close(self) -> None:
        del self._reader


class _PyAVReader:
    def __init__(self, source: Path | str | bytes, name: str) -> None:
        self._name = name
        try:
            self._container = av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), mode="r")
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, OSError, IndexError, ValueError) as error:
            raise broken_video(name, error) from error
        self._stream.thread_type = "NONE"
        context = self._stream.codec_context
        if context.width * context.height > MAX_FRAME_PIXELS:
            raise DataError(
                f"video {name!r} is {context.width}x{context.height}; at most {MAX_FRAME_PIXELS} pixels a frame"
            )
        self.width = context.width
        self.codec = context.name.replace("libdav1d", "av1")
        self.fps = float(self._stream.average_rate or self._stream.guessed_rate or 0)

    @cached_property
    def _pts(self) -> np.ndarray:
        """Presentation times of all frames, from the packets alone: an exact index without decoding."""
        try:
            self._container.seek(0, stream=self._stream)
            packets = self._container.demux(self._stream)
            pts = sorted(p.pts for p in packets if p.pts is not None and not p.is_discard)
            self._container.seek(pts[0] if pts else 0, stream=self._stream)
        except (av.FFmpegError, OSError) as error:
            raise broken_video(self._name, error) from error
        return np.asarray(pts, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._pts)

    def get(self, indices: Sequence[int]) -> UInt8[np.ndarray, "f h w c"]:
        wanted = _check_indices(indices, len(self), self._name)
        unique, inverse = np.unique(wanted, return_inverse=True)
        if not unique.size:
            context = self._stream.codec_context
            return np.empty((0, context.height, context.width, 3), np.uint8)
        runs = np.split(unique, np.flatnonzero(np.diff(unique) > _SEEK_GAP) + 1)
        frames = np.stack([frame for run in runs for frame in self._decode(run)])
        return frames if np.array_equal(inverse, np.arange(len(unique))) else frames[inverse]

    def _decode(self, run: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the frames at the rising indices `run`, decoding on from the keyframe before the first."""
        wanted = iter(self._pts[run].tolist())
        target, reformatter = next(wanted), VideoReformatter()
        try:
            self._container.seek(target, stream=self._stream, backward=True)
            for frame in self._container.decode(self._stream):
                if frame.pts != target:
                    continue
                yield to_rgb(reformatter, frame)
                if (target := next(wanted, None)) is None:
                    return
        except (av.FFmpegError, OSError) as error:
            raise broken_video(self._name, error) from error
        raise DataError(
            f"video {self._name!r} breaks off before frame {run[-1]}; it is truncated: make or fetch it again"
        )

    def stretch(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield the frames from `start` to before `stop`, each decoded once."""
        yield from self._decode(np.arange(start, stop)) if stop > start else ()

    def close(self) -> None:
        self._container.close()


def to_rgb(reformatter: VideoReformatter, frame: av.VideoFrame) -> UInt8[np.ndarray, "h w c"]:
    """Return a decoded frame as RGB, without a copy where its rows follow each other; one reformatter serves one video."""
    plane: Any = reformatter.reformat(frame, format="rgb24", threads=1).planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : 3 * frame.width]
    return rows.reshape(frame.height, frame.width, 3)


def broken_video(name: str, error: Exception) -> DataError:
    """Return the error that says that a video can't be decoded, and the library's own words."""
    told = _DECORD_PLACE.sub("", str(error)).strip()
    reason = told.splitlines()[0][:120] if told else type(error).__name__
    return DataError(f"video {name!r} can't be decoded ({reason}); it is truncated or no video: make or fetch it again")


@dataclass(frozen=True)
class ArrayView:
    """A camera whose frames are in memory already (a `schema.ViewSource`)."""

    array: UInt8[np.ndarray, "f h w c"]
    times: Float[np.ndarray, " f"]

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Yield every frame in order."""
        yield from self.array


class FileView:
    """A camera whose frames are a stretch of a video file, decoded when asked for (a `schema.ViewSource`)."""

    def __init__(
        self,
        path: Path | str,
        start_frame: int = 0,
        num_frames: int | None = None,
        times: Float[np.ndarray, " f"] | None = None,
        *,
        decoder: str = "auto",
    ) -> None:
        """Describe frames `start_frame .. start_frame + num_frames - 1` of the file; nothing is opened yet.

        Args:
            path: Video file.
            start_frame: First frame of the stretch.
            num_frames: Its length; all that follow by default.
            times: Seconds of each frame on the episode's clock; evenly spaced at the file's fps from 0 by default.
            decoder: See `open_video`; `auto` is PyAV here, which is the faster one where frames come in order.
        """
        self.path, self.start_frame, self.decoder = Path(path), start_frame, decoder
        self._num_frames = num_frames
        self._times = None if times is None else np.asarray(times, dtype=np.float64)

    @property
    def times(self) -> Float[np.ndarray, " f"]:
        """Seconds of each frame; opens the file if neither times nor a length were given."""
        if self._times is None:
            reader = open_video(self.path, decoder=self.decoder)
            count = self._num_frames if self._num_frames is not None else len(reader) - self.start_frame
            self._times = np.arange(count) / reader.fps
            reader.close()
        return self._times

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Yield every frame once, in order, holding only a few at a time.

        Raises:
            DataError: The file has fewer frames than the stretch needs.
        """
        reader = open_video(self.path, decoder="pyav" if self.decoder == "auto" else self.decoder)
        stop = self.start_frame + len(self.times)
        if stop > len(reader):
            raise DataError(
                f"video {str(self.path)!r} has {len(reader)} frames; frames {self.start_frame}..{stop - 1} were asked"
            )
        try:
            if isinstance(reader, _PyAVReader):
                yield from reader.stretch(self.start_frame, stop)
                return
            for start in range(self.start_frame, stop, _CHUNK):
                yield from reader.get(range(start, min(start + _CHUNK, stop)))
        finally:
            reader.close()


def encode_mp4(
    frames: Iterable[UInt8[np.ndarray, "h w c"]], fps: float, *, gop: int = 8, crf: int = 18, preset: str = "medium"
) -> bytes:
    """Encode RGB frames as H.264 (yuv420p, no B-frames, closed GOP): the same frames give the same bytes.

    Args:
        frames: uint8 `f h w c` or an iterable of `h w c`; height and width even.
        fps: Frames per second.
        gop: A keyframe at least every so many frames, so that a window is cheap to reach.
        crf: Constant quality, 0 (lossless) to 51.
        preset: x264 speed preset.

    Raises:
        DataError: No frames, an odd size, or frames of different sizes.
    """
    sink = io.BytesIO()
    options = h264_options(gop, crf, preset)
    stream, reformatter = None, VideoReformatter()
    with av.open(sink, mode="w", format="mp4", options={"fflags": "+bitexact"}) as container:
        for array in frames:
            if stream is None:
                stream = _add_stream(container, array.shape, fps, options, gop)
            if array.shape[:2] != (stream.height, stream.width):
                raise DataError(
                    f"frame is {array.shape[0]}x{array.shape[1]} after frames of {stream.height}x{stream.width}"
                )
            # the frame lies in the array's own memory, and its colours are converted in this thread: half the cost, the same bits
            frame = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(array), format="rgb24")
            container.mux(stream.encode(reformatter.reformat(frame, format="yuv420p", threads=1)))
        if stream is None:
            raise DataError("a video needs at least one frame; the recording has none")
        container.mux(stream.encode(None))
    return sink.getvalue()


def h264_options(gop: int = 8, crf: int = 18, preset: str = "medium") -> dict[str, str]:
    """Return what `encode_mp4` tells libx264."""
    return {
        "crf": str(crf),
        "preset": preset,
        # mbtree: x264's macroblock tree reads stray memory in frames of few blocks, and then the bytes vary
        "x264-params": f"keyint={gop}:min-keyint=1:scenecut=0:open-gop=0:bframes=0:threads=1:sliced-threads=0:mbtree=0",
    }


def _add_stream(container, shape: tuple[int, ...], fps: float, options: dict[str, str], gop: int):
    if shape[0] % 2 or shape[1] % 2:
        raise DataError(f"video size {shape[0]}x{shape[1]} can't be stored; height and width must be even")
    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(100_000), options=options)
    stream.height, stream.width, stream.pix_fmt = shape[0], shape[1], "yuv420p"
    stream.codec_context.gop_size = gop
    stream.codec_context.max_b_frames = 0
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= Flags.bitexact.value
    return stream


def keep_picture_memory(pictures: int = 8) -> None:
    """Have Pillow keep the memory of so many pictures for the next ones; asked of the system anew, it costs a sixth of a resize."""
    core: Any = Image.core
    core.set_blocks_max(pictures)


def resize(frame: UInt8[np.ndarray, "h w c"], height: int, width: int, fit: str = "pad") -> UInt8[np.ndarray, "h w c"]:
    """Resize one frame, by area when it shrinks, with the same bits on every machine.

    Args:
        frame: RGB.
        height: Pixels of the result.
        width: Pixels of the result.
        fit: `pad` keeps everything and adds black bars, `crop` cuts the longer side about its middle, `stretch` does neither.

    Raises:
        ConfigError: Unknown fit.
    """
    if fit not in FITS:
        raise ConfigError(one_of("fit", fit, FITS))
    h, w = frame.shape[:2]
    if (h, w) == (height, width):
        return frame
    if fit == "stretch":
        return _scale(frame, (0, 0, w, h), height, width)
    if fit == "crop":
        scale = max(height / h, width / w)
        ch, cw = height / scale, width / scale
        return _scale(frame, ((w - cw) / 2, (h - ch) / 2, (w + cw) / 2, (h + ch) / 2), height, width)
    scale = min(height / h, width / w)
    inner_h, inner_w = min(height, max(1, round(h * scale))), min(width, max(1, round(w * scale)))
    top, left = (height - inner_h) // 2, (width - inner_w) // 2
    padded = np.zeros((height, width, frame.shape[2]), np.uint8)
    padded[top : top + inner_h, left : left + inner_w] = _scale(frame, (0, 0, w, h), inner_h, inner_w)
    return padded


def _scale(frame: np.ndarray, box: tuple[float, float, float, float], height: int, width: int) -> np.ndarray:
    """Pillow's integer arithmetic does not depend on the machine; BOX is the exact mean where the ratio is whole."""
    ratio_w, ratio_h = (box[2] - box[0]) / width, (box[3] - box[1]) / height
    if ratio_w < 1 or ratio_h < 1:
        method = Image.Resampling.BILINEAR
    elif ratio_w.is_integer() and ratio_h.is_integer():
        method = Image.Resampling.BOX
    else:
        method = Image.Resampling.HAMMING
    image = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(image.resize((width, height), method, box=box))
