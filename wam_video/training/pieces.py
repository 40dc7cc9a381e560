"""The tensor files of a checkpoint: pieces of flattened parameters by name, entry and range, read by whoever needs which range.

A key is `name/entry/start-stop` for a range and `name/entry` for a scalar or a buffer. The entry is `weight`, `ema`, or one of the
optimizer's. Version 1 had whole tensors: `name` in model.safetensors and ema.safetensors, `name/entry` in optimizer.safetensors.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wam_video.errors import CheckpointError
from wam_video.training.engines import Fragment

WEIGHT, AVERAGE, BUFFER = "weight", "ema", "buffer"


def key_of(fragment: Fragment, entry: str) -> str:
    """Return the key of a range."""
    return f"{fragment.name}/{entry}/{fragment.start}-{fragment.stop}"


class Pieces:
    """What the files of a checkpoint hold between them; nothing is read before it is asked for.

    Args:
        folder: Of a verified checkpoint.
        version: Of its format.
    """

    def __init__(self, folder: Path, version: int) -> None:
        self._folder = folder
        self._ranges: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = {}
        self._scalars: dict[tuple[str, str], tuple[Any, str]] = {}
        self._first: dict[str, tuple[int, ...]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                file = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise CheckpointError(f"{path} can't be read ({error}); remove the checkpoint {folder}") from error
            for key in file.keys():  # noqa: SIM118 - the handle is no mapping
                self._add(path.stem, file, key) if version == 1 else self._add_piece(file, key)

    @property
    def first_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what a checkpoint of version 1 holds."""
        return self._first

    def table(self) -> dict[str, tuple[list[str], list[str]]]:
        """Return the optimizer's entries by parameter: those with ranges, and scalars."""
        found: dict[str, tuple[list[str], list[str]]] = {}
        for name, entry in self._ranges:
            if entry not in (WEIGHT, AVERAGE):
                found.setdefault(name, ([], []))[0].append(entry)
        for name, entry in self._scalars:
            if entry != BUFFER:
                found.setdefault(name, ([], []))[1].append(entry)
        return found

    def read(self, fragment: Fragment, entry: str) -> Shaped[Tensor, " n"]:
        """Return a range, from however many pieces it lies in.

        Raises:
            CheckpointError: Some of it is nowhere.
        """
        found, at = [], fragment.start
        for start, stop, file, key in sorted(self._ranges.get((fragment.name, entry), []), key=lambda piece: piece[:2]):
            if start <= at < min(stop, fragment.stop):
                end = min(stop, fragment.stop)
                found.append(_cut(file, key, at - start, end - start))
                at = end
        if at < fragment.stop:
            raise CheckpointError(
                f"checkpoint {self._folder} has nothing for elements {at} to {fragment.stop} of {fragment.name}/{entry}; "
                "a file of it is missing: use another checkpoint"
            )
        return found[0] if len(found) == 1 else torch.cat(found)

    def scalar(self, name: str, entry: str) -> Shaped[Tensor, "*shape"]:
        """Return a scalar or a buffer."""
        file, key = self._scalars[name, entry]
        return file.get_tensor(key)

    def _add_piece(self, file: Any, key: str) -> None:
        name, entry, *where = key.split("/")
        if where:
            start, stop = (int(number) for number in where[0].split("-"))
            self._ranges.setdefault((name, entry), []).append((start, stop, file, key))
        else:
            self._scalars[name, entry] = file, key

    def _add(self, stem: str, file: Any, key: str) -> None:
        shape = tuple(file.get_slice(key).get_shape())
        if stem.startswith("optimizer"):
            name, entry = key.rsplit("/", 1)
        else:
            name, entry = key, {"model": WEIGHT, "ema": AVERAGE}[stem]
        if stem == "model":
            self._first[name] = shape
            self._scalars[name, BUFFER] = file, key
        if shape or entry in (WEIGHT, AVERAGE):
            self._ranges.setdefault((name, entry), []).append((0, prod(shape), file, key))
        else:
            self._scalars[name, entry] = file, key


def check_shapes(saved: Mapping[str, Any], own: Mapping[str, Any], folder: Path) -> None:
    """Refuse a checkpoint of another model.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    saved = {name: tuple(shape) for name, shape in saved.items()}
    own = {name: tuple(shape) for name, shape in own.items()}
    if saved != own:
        names = sorted(saved.keys() ^ own.keys()) or [name for name in own if saved[name] != own[name]]
        raise CheckpointError(
            f"checkpoint {folder} is of another model: {names[0]} differs; use the configuration it was made with"
        )


def _cut(file: Any, key: str, start: int, stop: int) -> Tensor:
    view = file.get_slice(key)
    return view[start:stop] if len(view.get_shape()) == 1 else file.get_tensor(key).reshape(-1)[start:stop]
