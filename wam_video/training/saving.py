"""How the processes of a run put their files of a checkpoint together, so that it is whole or not there."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from wam_video.training.checkpoint import CheckpointStore, write_json

Contents = Mapping[str, Tensor] | Mapping[str, Any]
"""Of a file: tensors by name (`.safetensors`), or what is JSON-able (`.json`)."""

Files = Mapping[str, Contents]
"""The files of one process, by name."""


class Saver:
    """Writes the checkpoints of a run; every process has one and calls it together with the others.

    Args:
        store: Where.
        is_main: This process begins and commits.
        wait: Waits for every process.
    """

    def __init__(self, store: CheckpointStore, *, is_main: bool, wait: Callable[[], None]) -> None:
        self._store = store
        self._is_main = is_main
        self._wait = wait

    def save(self, step: int, files: Files) -> Path:
        """Write this process's files and commit what all have written; return the folder."""
        if self._is_main:
            self._store.begin(step)
        self._wait()
        for name, contents in files.items():
            path = self._store.writing(step) / name
            if path.suffix == ".safetensors":
                save_file(dict(contents), path)
            else:
                write_json(path, contents)
        self._wait()
        if self._is_main:
            self._store.commit(step)
        self._wait()
        return self._store.path(step)
