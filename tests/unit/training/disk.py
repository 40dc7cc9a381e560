"""Processes that are threads, faults, and files to save: what the tests of saving share."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wam_video.training.checkpoint import CheckpointStore, Files
from wam_video.training.saving import Saver, SaverConfig


class Killed(BaseException):
    """Stands for the end of a process: nothing of ours catches it, so nothing is cleaned up."""


class Alone:
    """A group of one process."""

    rank, num_processes, device = 0, 1, torch.device("cpu")

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


class Together:
    """One of several threads that stand for processes; a sum waits for all of them."""

    device = torch.device("cpu")

    def __init__(self, rank: int, parts: list[int], barrier: threading.Barrier) -> None:
        self.rank, self.num_processes, self._parts, self._barrier = rank, len(parts), parts, barrier

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self._parts[self.rank] = int(values.item())
        self._barrier.wait()
        total = torch.tensor([sum(self._parts)])
        self._barrier.wait()
        return total


def files(step: int, rank: int = 0) -> Files:
    """Return what a process saves at a step."""
    tensors = {"a": torch.arange(7) * step, "b": torch.full((3, 5), step / 7), "empty": torch.zeros(0, 4)}
    return {f"part-{rank}.safetensors": tensors, f"rng-{rank}.json": {"step": step, "name": "caf\u00e9"}}


def saver(folder: Path, fault: Callable[[str], None] = lambda point: None, **options: Any) -> Saver:
    """Return the open saver of a run of one process."""
    store = CheckpointStore(folder, keep_last=options.pop("keep_last", 2), fault=fault)
    made = Saver(SaverConfig(**options), store, Alone())
    made.open()
    return made


def save(saver: Saver, *steps: int) -> None:
    for step in steps:
        saver.save(step, lambda step=step: files(step))


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of the committed checkpoints, whose contents must be those of their step."""
    found = sorted(path.parent for path in folder.glob("step-???????/COMMIT.json"))
    for path in found:
        assert json.loads((path / "rng-0.json").read_text())["step"] == int(path.name[5:])
    return [int(path.name[5:]) for path in found]


def at(point: str, act: Callable[[], None], *, after: int = 0) -> Callable[[str], None]:
    """Return a fault: do something at a point, when it has come by so many times before."""
    seen = []

    def fault(name: str) -> None:
        seen.append(name)
        if name == point and seen.count(name) == after + 1:
            act()

    return fault


def kill() -> None:
    raise Killed


def together(number: int, work: Callable[[Together], None]) -> list[BaseException | None]:
    """Run the same work on so many processes; return what each of them ended with."""
    parts, barrier = [0] * number, threading.Barrier(number, timeout=30)
    ends: list[BaseException | None] = [None] * number

    def one(rank: int) -> None:
        try:
            work(Together(rank, parts, barrier))
        except BaseException as error:  # noqa: BLE001 - handed to the test
            ends[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends
