"""Compressed chunks of a zarr array back to bytes, never more of them than the array's header says."""

import bz2
import json
import lzma
import zlib
from collections.abc import Mapping
from functools import lru_cache
from inspect import signature
from typing import Any

import numpy as np
from jaxtyping import Shaped

from wam_video.errors import DataError, MissingDependencyError

_STREAMS = {
    "zlib": zlib.decompressobj,
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "bz2": bz2.BZ2Decompressor,
    "lzma": lzma.LZMADecompressor,
}
"""Bounded by their own interface."""

_SIZED = ("blosc", "lz4", "zstd")
"""Their headers say how much comes out, which is compared before they are decoded."""

_IMAGES = ("imagecodecs_jpegxl", "imagecodecs_jpeg2k", "imagecodecs_jpeg", "imagecodecs_png", "imagecodecs_webp")
CODECS = ("none", *_STREAMS, *_SIZED, *_IMAGES)
"""Compressors that are read. Others, pickles above all, are refused before any chunk is opened."""


def check_codec(config: Mapping[str, Any] | None, where: str) -> None:
    """Refuse a compressor that is not read.

    Raises:
        DataError: It is none of `CODECS`.
    """
    name = "none" if config is None else str(config.get("id"))
    if name not in CODECS:
        raise DataError(f"{where}: compressor is {name!r}; read are {', '.join(CODECS)}: write the array again")


def decode_chunk(
    data: bytes, config: Mapping[str, Any] | None, shape: tuple[int, ...], dtype: np.dtype
) -> Shaped[np.ndarray, "..."]:
    """Decode one chunk.

    Args:
        data: Its file.
        config: The array's `compressor`.
        shape: Of a whole chunk; those at the edge are padded.
        dtype: Of the array.

    Raises:
        DataError: It is damaged, or of another size than a chunk has.
        MissingDependencyError: numcodecs or imagecodecs is not installed.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    name = "none" if config is None else str(config["id"])
    if name in _IMAGES:
        return _decode_image(data, dict(config or {}), shape, dtype)
    if name == "none":
        raw = data
    elif name in _STREAMS:
        try:
            raw = _STREAMS[name]().decompress(data, size + 1)
        except (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError) as error:
            raise DataError(f"{name} can't be decompressed ({error}); it is truncated or damaged") from error
    else:
        raw = _decode_sized(data, name, size)
    if len(raw) != size:
        more = "more than" if len(raw) > size else f"{len(raw)} of"
        raise DataError(f"holds {more} {size} bytes; it is damaged")
    return np.frombuffer(raw, dtype).reshape(shape)


def _decode_sized(data: bytes, name: str, size: int) -> bytes:
    stated = {"blosc": _blosc_size, "lz4": _lz4_size, "zstd": _zstd_size}[name](data)
    if stated != size:
        raise DataError(f"its {name} header promises {stated} bytes, a chunk has {size}; it is damaged")
    numcodecs = _numcodecs()
    try:
        return bytes(numcodecs.get_codec({"id": name}).decode(data))
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{name} can't be decompressed ({error}); it is truncated or damaged") from error


def _decode_image(data: bytes, config: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    codec = _image_codec(json.dumps(config, sort_keys=True))
    frame = np.empty([n for n in shape if n != 1], dtype)  # given, so that no header can ask for more memory
    try:
        decoded = np.asarray(codec.decode(data, out=frame))
    except (RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"{config['id']} can't be decoded ({error}); it is truncated or damaged") from error
    if decoded.size != frame.size:
        raise DataError(f"{config['id']} image has shape {decoded.shape}, a chunk {shape}; it is damaged")
    return decoded.reshape(shape)


@lru_cache(maxsize=8)
def _image_codec(config: str) -> Any:
    try:
        from imagecodecs.numcodecs import register_codecs
    except ImportError as error:
        raise MissingDependencyError("imagecodecs", "umi", f"reading {json.loads(config)['id']} images") from error
    register_codecs(verbose=False)
    values = json.loads(config)
    kind = _numcodecs().registry.codec_registry.get(values["id"])
    if kind is None:
        raise DataError(f"{values['id']} is not in this build of imagecodecs; update it")
    known = signature(kind).parameters  # other versions write other settings; how it was encoded does not matter here
    return kind(**{key: value for key, value in values.items() if key in known})


def _blosc_size(data: bytes) -> int:
    return int.from_bytes(data[4:8], "little") if len(data) >= 16 else 0


def _lz4_size(data: bytes) -> int:
    return int.from_bytes(data[:4], "little")


def _zstd_size(data: bytes) -> int:
    """Return the content size of a frame header (RFC 8878, 3.1.1.1); -1 where it does not say."""
    if len(data) < 6 or data[:4] != b"\x28\xb5\x2f\xfd":
        return -1
    flags = data[4]
    single, code = flags >> 5 & 1, flags >> 6
    width = (1 if single else 0, 2, 4, 8)[code]
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3]
    if not width or len(data) < start + width:
        return -1
    return int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0)


def _numcodecs() -> Any:
    try:
        import numcodecs
    except ImportError as error:
        raise MissingDependencyError("numcodecs", "data", "reading a zarr array") from error
    return numcodecs
