"""msgpack with numpy arrays in it, as the clients of openpi, RoboArena and DreamZero speak it; safe against strangers.

An array is a map `{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [...]}`, a numpy scalar
`{b"__npgeneric__": True, b"data": value, b"dtype": "<f4"}`, keys as bytes or text. The usual decoders hand the sender's
dtype to numpy, which can be made to read memory that isn't there; and msgpack's lists are allocated as long as the sender
says. This one knows bool, int, uint and float of native sizes, compares lengths before it allocates, and counts: so a
message never takes much more memory than its own bytes. https://github.com/msgpack/msgpack/blob/master/spec.md
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wam_video.errors import DataError

_DTYPES = {
    f"{order}{kind}{size}"
    for kind, sizes in (("i", (1, 2, 4, 8)), ("u", (1, 2, 4, 8)), ("f", (2, 4, 8)), ("b", (1,)))
    for size in sizes
    for order in ("<", ">", "|" if size == 1 else "<")
}
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_LENGTHS = {
    0xC4: ("bin", ">B"),
    0xC5: ("bin", ">H"),
    0xC6: ("bin", ">I"),
    0xD9: ("str", ">B"),
    0xDA: ("str", ">H"),
    0xDB: ("str", ">I"),
    0xDC: ("list", ">H"),
    0xDD: ("list", ">I"),
    0xDE: ("map", ">H"),
    0xDF: ("map", ">I"),
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


@dataclass(frozen=True, kw_only=True)
class WireConfig:
    """What a message may be at most; whatever is more is refused before anything is made of it."""

    max_values: int = 8192
    """Numbers, texts, lists and maps outside of arrays."""
    max_depth: int = 8
    max_text: int = 16384
    """Bytes of a text."""
    max_dims: int = 8
    """Of an array."""


DEFAULTS = WireConfig()


def unpack(message: bytes, config: WireConfig = DEFAULTS) -> Any:
    """Return what a message says; its arrays are writable copies that nobody else holds, in native byte order.

    Raises:
        DataError: It is no such message, is too large, or holds something that is not allowed.
    """
    reader = _Reader(memoryview(message), config)
    value = reader.value(config.max_depth)
    if reader.place != len(message):
        raise DataError(f"message goes on for {len(message) - reader.place} bytes after its end; send one value")
    return value


def pack(value: Any) -> bytes:
    """Return a message that says `value`: None, bool, int, float, text, bytes, lists, maps, numpy arrays and scalars.

    Raises:
        DataError: Something else is in it.
    """
    parts: list[bytes] = []
    _write(value, parts)
    return b"".join(parts)


class _Reader:
    """Reads one value after another, and never past the end."""

    def __init__(self, data: memoryview, config: WireConfig) -> None:
        self.data, self.config, self.place, self.count = data, config, 0, 0

    def take(self, length: int) -> memoryview:
        """Return the next bytes, not copied."""
        if length > len(self.data) - self.place:
            raise DataError(f"message ends {length - len(self.data) + self.place} bytes too early; send all of it")
        self.place += length
        return self.data[self.place - length : self.place]

    def number(self, form: str) -> Any:
        """Return the next number, of the given struct format."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self, depth: int) -> Any:
        """Return the next value, at most so deep."""
        self.count += 1
        if self.count > self.config.max_values or depth < 0:
            raise DataError(
                f"message holds more than {self.config.max_values} values or {self.config.max_depth} levels; send numbers as arrays"
            )
        head = self.take(1)[0]
        if head < 0x80 or head >= 0xE0:
            return head if head < 0x80 else head - 0x100
        if head < 0xC0:
            kind, length = (
                ("map", head & 15) if head < 0x90 else ("list", head & 15) if head < 0xA0 else ("str", head & 31)
            )
            return self.compound(kind, length, depth)
        if head in _CONSTANTS:
            return _CONSTANTS[head]
        if head in _NUMBERS:
            return self.number(_NUMBERS[head])
        if head in _LENGTHS:
            kind, form = _LENGTHS[head]
            return self.compound(kind, self.number(form), depth)
        raise DataError(f"message holds a value of type 0x{head:02x}; allowed: plain msgpack, no extension types")

    def compound(self, kind: str, length: int, depth: int) -> Any:
        """Return a text, bytes, list or map of the given length."""
        if kind == "str":
            return self.text(length)
        if kind == "bin":
            return self.take(length)
        if kind == "list":
            return [self.plain(depth) for _ in range(length)]
        return self.map(length, depth)

    def plain(self, depth: int) -> Any:
        """Return the next value below this one; bytes are copied."""
        value = self.value(depth - 1)
        return bytes(value) if isinstance(value, memoryview) else value

    def text(self, length: int) -> str:
        """Return a text."""
        if length > self.config.max_text:
            raise DataError(f"message holds a text of {length} bytes; allowed: {self.config.max_text}")
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError as error:
            raise DataError("message holds a text that is not UTF-8; send UTF-8") from error

    def map(self, length: int, depth: int) -> Any:
        """Return a map, or the array that it describes."""
        found: dict[str, Any] = {}
        for _ in range(length):
            key = self.value(depth - 1)
            if isinstance(key, memoryview):
                key = _key(key, self.config)
            if not isinstance(key, str):
                raise DataError(f"message holds a map with a key of type {type(key).__name__}; allowed: text")
            if key in found:
                raise DataError(f"message holds the key {key[:80]!r} twice in a map; send it once")
            found[key] = self.value(depth - 1)
        if "__ndarray__" in found:
            return _array(found, self.config)
        if "__npgeneric__" in found:
            return _scalar(found)
        return {key: bytes(value) if isinstance(value, memoryview) else value for key, value in found.items()}


def _key(key: memoryview, config: WireConfig) -> str:
    if len(key) > config.max_text:
        raise DataError(f"message holds a key of {len(key)} bytes; allowed: {config.max_text}")
    try:
        return str(key, "utf-8")
    except UnicodeDecodeError as error:
        raise DataError("message holds a key that is not UTF-8; send UTF-8") from error


def _dtype(given: Any) -> np.dtype:
    if isinstance(given, memoryview):
        given = str(given[:16], "ascii", "replace")
    if not isinstance(given, str) or given not in _DTYPES:
        raise DataError(
            f"message holds an array of dtype {str(given)[:40]!r}; allowed: bool, int, uint and float of 1 to 8 bytes"
        )
    return np.dtype(given)


def _array(found: Mapping[str, Any], config: WireConfig) -> np.ndarray:
    dtype, shape, data = _dtype(found.get("dtype")), found.get("shape"), found.get("data")
    if not isinstance(shape, list) or len(shape) > config.max_dims:
        raise DataError(f"message holds an array whose shape is no list of at most {config.max_dims} sizes")
    if not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise DataError("message holds an array with a size that is no whole number from 0 to 2**31")
    if math.prod(max(size, 1) for size in shape) >= 2**31:
        raise DataError("message holds an array of 2**31 numbers or more; send less")
    if not isinstance(data, memoryview) or len(data) != math.prod(shape) * dtype.itemsize:
        length = len(data) if isinstance(data, memoryview) else "no"
        raise DataError(
            f"message holds an array of {length} bytes; its shape and dtype need {math.prod(shape) * dtype.itemsize}"
        )
    array = np.frombuffer(data, np.uint8 if dtype.kind == "b" else dtype).reshape(shape)
    return array != 0 if dtype.kind == "b" else array.astype(dtype.newbyteorder("="), copy=True)


def _scalar(found: Mapping[str, Any]) -> bool | int | float:
    dtype, value = _dtype(found.get("dtype")), found.get("data")
    wanted: Callable[[Any], bool] = {
        "b": lambda x: type(x) is bool,
        "f": lambda x: type(x) in (int, float),
    }.get(dtype.kind, lambda x: type(x) is int)
    if value is None or not wanted(value):
        raise DataError(f"message holds a numpy scalar of dtype {dtype.str} without such a value")
    return value


_HEADS = {
    "str": ((32, 0xA0, ""), (2**8, 0xD9, ">B"), (2**16, 0xDA, ">H"), (2**32, 0xDB, ">I")),
    "bin": ((2**8, 0xC4, ">B"), (2**16, 0xC5, ">H"), (2**32, 0xC6, ">I")),
    "list": ((16, 0x90, ""), (2**16, 0xDC, ">H"), (2**32, 0xDD, ">I")),
    "map": ((16, 0x80, ""), (2**16, 0xDE, ">H"), (2**32, 0xDF, ">I")),
}


def _head(kind: str, length: int) -> bytes:
    for limit, head, form in _HEADS[kind]:
        if length < limit:
            return bytes([head]) + struct.pack(form, length) if form else bytes([head | length])
    raise DataError(f"{kind} of {length} bytes or entries is too long for a message")


def _write(value: Any, parts: list[bytes]) -> None:
    if isinstance(value, np.ndarray):
        _write_array(value, parts)
    elif value is None or isinstance(value, bool | np.bool_):
        parts.append(b"\xc0" if value is None else b"\xc3" if value else b"\xc2")
    elif isinstance(value, int | np.integer):
        parts.append(_integer(int(value)))
    elif isinstance(value, float | np.floating):
        parts.append(struct.pack(">Bd", 0xCB, float(value)))
    elif isinstance(value, str | bytes):
        raw = value.encode() if isinstance(value, str) else value
        parts.extend((_head("str" if isinstance(value, str) else "bin", len(raw)), raw))
    elif isinstance(value, list | tuple):
        parts.append(_head("list", len(value)))
        for item in value:
            _write(item, parts)
    elif isinstance(value, Mapping):
        parts.append(_head("map", len(value)))
        for key, item in value.items():
            _write(key, parts)
            _write(item, parts)
    else:
        raise DataError(f"message can't hold a {type(value).__name__}; allowed: numbers, texts, lists, maps and arrays")


def _integer(value: int) -> bytes:
    if not -(2**63) <= value < 2**64:
        raise DataError(f"number {value} does not fit into 64 bits")
    return struct.pack(">BQ", 0xCF, value) if value >= 2**63 else struct.pack(">Bq", 0xD3, value)


def _write_array(array: np.ndarray, parts: list[bytes]) -> None:
    if array.dtype.str not in _DTYPES:
        raise DataError(f"message can't hold an array of dtype {array.dtype}; allowed: bool, int, uint and float")
    parts.append(_head("map", 4))
    fields = {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": list(array.shape)}
    for key, item in fields.items():
        _write(key, parts)
        _write(item, parts)
