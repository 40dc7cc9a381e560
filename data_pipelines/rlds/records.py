"""TFRecord files: the framing of records, and the message in each, `tf.train.Example`.

Small enough to be read here, so that neither TensorFlow nor protobuf is needed; arrays come out as numpy, not as lists.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from wam_video.errors import DataError, MissingDependencyError

MAX_RECORD_BYTES = 2 << 30

Value = list[bytes] | np.ndarray
"""Of a feature: texts and images as bytes, numbers as float32 or int64."""

_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT = 10


def read_records(path: Path) -> Iterator[bytes | DataError]:
    """Yield the records of a file in order, each checked against its checksums.

    A record that is damaged is yielded as the error that says so, and the next one follows; where the file can't be read
    on (it is cut, or a length is damaged), the error is the last item.

    Raises:
        MissingDependencyError: google-crc32c is not installed.
    """
    checksum = _crc32c()
    number = 0
    left = path.stat().st_size
    with path.open("rb") as file:
        while left:
            where = f"{path}: record {number}"
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                yield DataError(f"{where} is cut off; the file is truncated: copy it again")
                return
            length, stated = _HEADER.unpack(header)
            left -= _HEADER.size + length + _FOOTER.size
            if _masked(checksum(header[:8])) != stated:
                yield DataError(f"{where} has a damaged length; what follows can't be found: copy the file again")
                return
            if left < 0 or length > MAX_RECORD_BYTES:
                yield DataError(f"{where} should have {length} bytes, more than are left; the file is truncated")
                return
            content = file.read(length)
            (stated,) = _FOOTER.unpack(file.read(_FOOTER.size))
            whole = _masked(checksum(content)) == stated
            yield content if whole else DataError(f"{where} is damaged (its checksum differs); copy the file again")
            number += 1


def parse_example(record: bytes) -> dict[str, Value]:
    """Return the features of a `tf.train.Example` by name; those without a value are left out.

    Raises:
        DataError: It is none.
    """
    features: dict[str, Value] = {}
    try:
        for _, example in _fields(memoryview(record), 1):
            for _, entry in _fields(example, 1):
                parts = dict(_fields(entry, 1, 2))
                name = bytes(parts.get(1, b"")).decode("utf-8")
                for kind, values in _fields(parts.get(2, memoryview(b"")), 1, 2, 3):
                    features[name] = _values(kind, values)
    except (IndexError, ValueError, struct.error) as error:
        raise DataError(f"a record is no tf.train.Example ({error}); the file is of another kind or damaged") from error
    return features


def _fields(message: memoryview, *wanted: int) -> Iterator[tuple[int, memoryview]]:
    """Yield the length-delimited fields of a protobuf message that have one of the wanted numbers."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            size, at = _varint(message, at)
            if size > end - at:
                raise ValueError(f"field {number} promises {size} of {end - at} bytes")
            if number in wanted:
                yield number, message[at : at + size]
            at += size
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
        elif wire == _VARINT:
            _, at = _varint(message, at)
        else:
            raise ValueError(f"field {number} has wire type {wire}")


def _values(kind: int, message: memoryview) -> Value:
    """Decode a BytesList (1), FloatList (2) or Int64List (3)."""
    if kind == 1:
        return [bytes(value) for _, value in _fields(message, 1)]
    packed = b"".join(bytes(value) for _, value in _fields(message, 1))
    if kind == 2:
        return np.frombuffer(packed or _unpacked(message, 4), "<f4")
    return _varints(packed or _unpacked(message, 0))


def _unpacked(message: memoryview, width: int) -> bytes:
    """Return the bytes of a repeated number that was written one field each, as some writers do."""
    parts, at = [], 0
    while at < len(message):
        _, at = _varint(message, at)
        end = at + width if width else _varint(message, at)[1]
        parts.append(bytes(message[at:end]))
        at = end
    return b"".join(parts)


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for i in range(_MAX_VARINT):
        byte = message[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError("a number does not end")


def _varints(data: bytes) -> Int[np.ndarray, " n"]:
    """Decode all varints of a packed list at once."""
    raw = np.frombuffer(data, np.uint8)
    if not len(raw):
        return np.empty(0, np.int64)
    ends = np.flatnonzero(raw < 0x80)
    if not len(ends) or ends[-1] != len(raw) - 1:
        raise ValueError("a number does not end")
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() >= _MAX_VARINT:
        raise ValueError("a number is too long")
    places = np.arange(len(raw)) - np.repeat(starts, ends - starts + 1)
    parts = (raw & 0x7F).astype(np.uint64) << (7 * places).astype(np.uint64)
    return np.add.reduceat(parts, starts).view(np.int64)


def _masked(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _crc32c() -> Any:
    try:
        import google_crc32c
    except ImportError as error:
        raise MissingDependencyError("google-crc32c", "data", "reading TFRecord files") from error
    return google_crc32c.value
