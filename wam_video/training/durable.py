"""Files that are on the disk when a function returns: written with their hash, synced, put in place by a rename; and a lock."""

import errno
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from wam_video.errors import CheckpointError
from wam_video.log import get_logger

_LOG = get_logger(__name__)

_BLOCK = 1 << 24
"""Bytes that are written and hashed at a time."""

_DTYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL"},
}


def write_tensors(
    path: Path, tensors: Mapping[str, Shaped[Tensor, "..."]], midway: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Write a safetensors file from tensors on the CPU, without a second copy of them in memory.

    safetensors' own writer hands back bytes or a file, and its hash would cost reading the file again.

    Args:
        path: Of the file.
        tensors: By name; contiguous.
        midway: Called when a part of the file is written.

    Returns:
        `bytes` and `sha256` of the file.
    """
    return _write(path, _safetensors_blocks(tensors), midway)


def write_json(path: Path, content: Any, midway: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Write JSON so that the file is whole or not there; return its `bytes` and `sha256`."""
    return write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n", midway)


def write_text(path: Path, text: str, midway: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Write text so that the file is whole or not there; return its `bytes` and `sha256`."""
    temporary = path.with_name(path.name + ".tmp")
    facts = _write(temporary, iter([text.encode()]), midway)
    os.replace(temporary, path)
    return facts


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FolderLock:
    """Keeps a second run off a folder; it goes with the process that holds it, however that ends.

    A record lock (`fcntl`): data workers, which are forked, do not inherit it, so a killed run's orphans block nobody. For the same
    reason it does not keep a process from its own folder.

    Args:
        path: Of the lock file, which stays.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            CheckpointError: Another process holds it.
            OSError: The folder can't be written.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                raise CheckpointError(
                    f"{str(self._path.parent)!r} is in use by {holder}; stop that run, or give another output_dir"
                ) from None
            _LOG.warning("%s can't be locked (%s); make sure that only one run writes there", self._path.parent, error)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _write(path: Path, blocks: Iterator[Any], midway: Callable[[], None]) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        for number, block in enumerate(blocks):
            view = memoryview(block)
            digest.update(view)
            size += len(view)
            _write_all(file.fileno(), view, midway if number == 0 else None)
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _write_all(descriptor: int, view: memoryview, midway: Callable[[], None] | None) -> None:
    """Write all of a block (a nearly full disk takes less at a time), with a call in the middle of it."""
    done, half = 0, len(view) // 2
    while midway is not None and done < half:
        done += os.write(descriptor, view[done:half])
    if midway is not None:
        midway()
    while done < len(view):
        done += os.write(descriptor, view[done:])


def _safetensors_blocks(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    """Yield the header and then the tensors, largest elements first so that each is aligned."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, start = {}, 0
    for name in names:
        size = tensors[name].numel() * tensors[name].element_size()
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _DTYPES[tensors[name].dtype], "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        flat: Any = tensors[name].detach().reshape(-1).view(torch.uint8).numpy()
        for first in range(0, len(flat), _BLOCK):
            yield flat[first : first + _BLOCK]
