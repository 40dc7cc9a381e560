"""RLDS datasets byte by byte: TFRecord framing, tf.train.Example and features.json as TFDS writes them."""

import json
import struct
from pathlib import Path

import numpy as np

from tests.unit.data_pipelines.recording_fixtures import encoded, frames, numbers


def crc32c(data: bytes) -> int:
    """Bit by bit (Castagnoli, reflected), so that the reader's library is checked by something else."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 & -(crc & 1))
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def framed(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    return length + masked(length) + record + masked(record)


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(values) -> bytes:
    if isinstance(values, list):
        return field(1, b"".join(field(1, value) for value in values))
    if values.dtype.kind == "f":
        return field(2, field(1, values.astype("<f4").tobytes()) if values.size else b"")
    return field(3, field(1, b"".join(varint(int(v)) for v in values.reshape(-1))))


def example(features: dict) -> bytes:
    entries = [field(1, field(1, name.encode()) + field(2, feature(value))) for name, value in features.items()]
    return field(1, b"".join(entries))


def tensor(*shape: int, dtype: str = "float32") -> dict:
    return {"pythonClassName": "t", "tensor": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype}}


def image() -> dict:
    return {"pythonClassName": "i", "image": {"shape": {"dimensions": ["32", "32", "3"]}, "encodingFormat": "png"}}


def text() -> dict:
    return {"pythonClassName": "s", "text": {}}


def group(**features) -> dict:
    return {"pythonClassName": "d", "featuresDict": {"features": features}}


def structure(**step) -> dict:
    marks = {name: tensor(dtype="bool") for name in ("is_first", "is_last", "is_terminal")}
    return group(
        steps={"pythonClassName": "q", "sequence": {"feature": group(**marks, reward=tensor(), **step)}},
        episode_metadata=group(file_path=text()),
    )


def marks(rows: int) -> dict:
    first = np.eye(rows, dtype=np.int64)
    return {
        "steps/is_first": first[0],
        "steps/is_last": first[-1],
        "steps/is_terminal": first[-1],
        "steps/reward": first[-1].astype(np.float32),
    }


def bridge_episode(number: int, rows: int = 5) -> dict:
    return marks(rows) | {
        "steps/action": numbers(number, rows, 7),
        "steps/observation/state": numbers(number, rows, 7) + 1,
        "steps/observation/image_0": [encoded(f) for f in frames(number, rows)],
        "steps/observation/image_1": [b""] * rows,
        "steps/language_instruction": [f"task {number}".encode()] * rows,
        "steps/language_embedding": np.zeros(rows * 4, np.float32),
        "episode_metadata/file_path": [f"/data/{number}".encode()],
    }


BRIDGE = structure(
    action=tensor(7),
    observation=group(image_0=image(), image_1=image(), state=tensor(7)),
    language_instruction=text(),
    language_embedding=tensor(4),
)


def write_rlds(
    root: Path, features: dict, shards: list[list[dict]], name: str = "bridge_dataset", declared=None
) -> Path:
    """A version folder with one TFRecord file a shard."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "features.json").write_text(json.dumps(features))
    lengths = [str(n) for n in (declared or [len(shard) for shard in shards])]
    split = {"name": "train", "shardLengths": lengths, "numBytes": "1"}
    (root / "dataset_info.json").write_text(json.dumps({"name": name, "version": "1.0.0", "splits": [split]}))
    for number, shard in enumerate(shards):
        path = root / f"{name}-train.tfrecord-{number:05d}-of-{len(lengths):05d}"
        path.write_bytes(b"".join(framed(example(episode)) for episode in shard))
    return root
