"""Messages from strangers: what is said arrives, and nothing else does anything."""

import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wam_video.errors import DataError
from wam_video.inference.server.wire import WireConfig, pack, unpack

MESSAGE = {
    "observation/image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    "state": np.linspace(-1, 1, 5),
    "half": np.ones((2, 1), np.float16),
    "flags": np.array([True, False]),
    "number": np.array(3, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "inner": {"prompt": "push", "values": [None, True, -5, 2**40, 1.5, b"raw"]},
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return (
        np.array_equal(a, b) and getattr(a, "dtype", None) == getattr(b, "dtype", None)
        if isinstance(a, np.ndarray)
        else a == b
    )


def refusal(message: bytes) -> str:
    """Return why a message is refused, or nothing; any other exception is a failure."""
    try:
        unpack(message)
    except DataError as error:
        return str(error)
    return ""


def array(**changed: Any) -> bytes:
    fields = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    return msgpack.packb({"x": {**fields, **{key.encode(): value for key, value in changed.items()}}})


def test_what_is_packed_is_unpacked() -> None:
    assert same(unpack(pack(MESSAGE)), MESSAGE)


def test_arrays_are_owned_writable_and_in_native_order() -> None:
    got = unpack(pack({"x": np.arange(3, dtype=">i4")}))["x"]
    assert got.flags.owndata and got.flags.writeable and got.dtype == np.dtype("i4")
    assert got.tolist() == [0, 1, 2]


def test_keys_may_be_text_as_other_languages_send_them() -> None:
    fields = {"__ndarray__": True, "data": np.float32([1, 2]).tobytes(), "dtype": b"<f4", "shape": [2]}
    assert unpack(msgpack.packb({"x": fields}))["x"].tolist() == [1, 2]


def test_numpy_scalars_become_numbers() -> None:
    scalar = {b"__npgeneric__": True, b"data": 2.5, b"dtype": "<f4"}
    assert unpack(msgpack.packb({"x": scalar})) == {"x": 2.5}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"dtype": "|O"}, "dtype '|O'"),
        ({"dtype": "<U2"}, "dtype"),
        ({"dtype": "|V8"}, "dtype"),
        ({"dtype": "<c8"}, "dtype"),
        ({"dtype": "<M8[s]"}, "dtype"),
        ({"dtype": "f4,f4"}, "dtype"),
        ({"dtype": [["a", "<f4"]]}, "dtype"),
        ({"dtype": None}, "dtype"),
        ({"shape": [-1]}, "size"),
        ({"shape": [True, 2]}, "size"),
        ({"shape": [2.0]}, "size"),
        ({"shape": 2}, "shape"),
        ({"shape": [1] * 9}, "shape"),
        ({"shape": [2**31 - 1] * 8 + [0]}, "shape"),
        ({"shape": [2**30, 2**30, 0], "data": b""}, "2**31"),
        ({"shape": [3]}, "8 bytes"),
        ({"shape": [1]}, "8 bytes"),
        ({"data": "textual!"}, "no bytes"),
    ],
)
def test_a_crafted_array_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match="message holds an array") as caught:
        unpack(array(**changed))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"", "too early"),
        (b"\xc1", "0xc1"),
        (b"\xdd\xff\xff\xff\xff", "too early"),
        (b"\xdf\xff\xff\xff\xff", "too early"),
        (b"\xc6\xff\xff\xff\xff", "too early"),
        (b"\xdb\x00\xff\xff\xff" + bytes(9), "text of"),
        (b"\xa2\xff\xfe", "UTF-8"),
        (b"\x91" * 2000, "levels"),
        (b"\xdd\x00\x01\x00\x00" + b"\xc0" * 65536, "values"),
        (b"\x81\x01\x02", "key of type int"),
        (b"\x82\xa1a\x01\xc4\x01a\x02", "twice"),
        (b"\xc7\x08\x05" + bytes(8), "extension"),
        (b"\x01\x01", "after its end"),
    ],
)
def test_a_broken_message_is_one_line(message: bytes, words: str) -> None:
    with pytest.raises(DataError) as caught:
        unpack(message)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_small_message_does_not_become_large() -> None:
    """Each of these asks for gigabytes, in lists that are announced and lists that are nested."""
    tracemalloc.start()
    for message in (b"\xdd\x10\x00\x00\x00" * 100, b"\xdc\xff\xff" * 7, b"\x9f" * 1_000_000, array(shape=[2**30])):
        with pytest.raises(DataError):
            unpack(message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(message: bytes) -> None:
    assert "\n" not in refusal(message)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=20),
    max_leaves=40,
)


@given(VALUES)
@settings(max_examples=100, deadline=None)
def test_plain_values_are_those_of_the_common_library(value: Any) -> None:
    wide = WireConfig(max_depth=64)
    assert unpack(msgpack.packb(value), wide) == value == msgpack.unpackb(pack(value), strict_map_key=False)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_request_is_read_or_refused(data: st.DataObject) -> None:
    message = bytearray(pack(MESSAGE))
    for place in data.draw(st.lists(st.integers(0, len(message) - 1), min_size=1, max_size=6)):
        message[place] = data.draw(st.integers(0, 255))
    assert "\n" not in refusal(bytes(message[: data.draw(st.integers(1, len(message)))]))
