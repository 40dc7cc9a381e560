"""CALVIN's language annotations, which are a pickle in an `.npy`: read as data, with nothing in it ever executed.

`pickletools` lists a pickle's instructions without running them. Those that build plain Python values are followed; a
name that a pickle would import or call becomes an inert `Named`, however it is used.
"""

import io
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wam_video.errors import DataError

MAX_BYTES = 1 << 30

_MARK = object()
_PUSH = (
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE BININT BININT1 BININT2 INT LONG LONG1 LONG4 BINFLOAT FLOAT "
    "BINBYTES SHORT_BINBYTES BINBYTES8 STRING BINSTRING SHORT_BINSTRING"
).split()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class Named:
    """What a pickle would import or make by a call; here only its name, its arguments and its state."""

    name: str
    arguments: Any = None
    state: Any = None


def read_annotations(path: Path) -> list[tuple[int, int, str]]:
    """Return the first and last frame (inclusive) and the text of every annotated window.

    Raises:
        DataError: The file is damaged, or holds no annotations.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        root = _content(path.read_bytes())
        windows, texts = root["info"]["indx"], root["language"]["ann"]
        found = [
            (_integer(window[0]), _integer(window[1]), str(text)) for window, text in zip(windows, texts, strict=True)
        ]
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not readable as CALVIN's annotations ({error!r}); copy it again") from error
    return found


def _content(data: bytes) -> dict[str, Any]:
    """Return the dictionary in an `.npy` that holds one object."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    read(stream)
    array = build(stream.read())
    content: Any = array.state[4] if isinstance(array, Named) and array.state else array
    return content[0] if isinstance(content, list) else content


def build(data: bytes) -> Any:
    """Return the plain values that a pickle describes, with `Named` for everything else.

    Raises:
        ValueError: It is cut, or uses an instruction that plain values don't need.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for code, argument, _ in pickletools.genops(data):
        name = code.name
        if name == "STOP":
            return stack.pop()
        if name in _PUSH:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(argument)])  # type: ignore[call-overload]
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else int(argument)] = stack[-1]  # type: ignore[call-overload]
        elif name not in ("PROTO", "FRAME"):
            _combine(name, argument, stack)
    raise ValueError("the pickle does not end")


def _combine(name: str, argument: Any, stack: list[Any]) -> None:
    """Follow an instruction that makes one value of others."""
    if name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
        stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
    elif name in _TUPLES:
        parts = [stack.pop() for _ in range(_TUPLES[name])]
        stack.append(tuple(reversed(parts)))
    elif name in ("TUPLE", "LIST"):
        parts = list(_to_mark(stack))
        stack.append(tuple(parts) if name == "TUPLE" else parts)
    elif name in ("APPEND", "APPENDS"):
        parts = [stack.pop()] if name == "APPEND" else list(_to_mark(stack))
        stack[-1].extend(parts)
    elif name in ("SETITEM", "SETITEMS", "DICT"):
        parts = [stack.pop(-2), stack.pop()] if name == "SETITEM" else list(_to_mark(stack))
        if name == "DICT":
            stack.append({})
        stack[-1].update(zip(parts[::2], parts[1::2], strict=True))
    else:
        _name(name, argument, stack)


def _name(name: str, argument: Any, stack: list[Any]) -> None:
    """Follow an instruction that would import, call or fill an object: note it, do nothing."""
    if name == "GLOBAL":
        stack.append(Named(str(argument)))
    elif name == "STACK_GLOBAL":
        attribute, module = stack.pop(), stack.pop()
        stack.append(Named(f"{module} {attribute}"))
    elif name in ("REDUCE", "NEWOBJ"):
        arguments, called = stack.pop(), stack.pop()
        stack.append(Named(called.name if isinstance(called, Named) else "", arguments))
    elif name == "BUILD":
        state = stack.pop()
        if isinstance(stack[-1], Named):
            stack[-1].state = state
    else:
        raise ValueError(f"instruction {name} is not read")


def _to_mark(stack: list[Any]) -> Iterator[Any]:
    """Take what lies above the last mark, in order."""
    parts = []
    while (part := stack.pop()) is not _MARK:
        parts.append(part)
    return reversed(parts)


def _integer(value: Any) -> int:
    """Return a Python integer, also of a numpy scalar, which a pickle makes by a call with its bytes."""
    if isinstance(value, Named):
        if not value.name.endswith(" scalar"):
            raise ValueError(f"{value.name!r} is no number")
        kind, content = value.arguments
        return int(np.frombuffer(content, np.dtype(str(kind.arguments[0])), count=1)[0])
    return int(value)
