"""What a checkpoint holds, and how it is put back: weights, average, optimizer, random numbers, position in the data."""

import base64
import json
import random
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wam_video.errors import CheckpointError
from wam_video.training.checkpoint import STATE_VERSION, read_state
from wam_video.training.ema import EMA
from wam_video.training.engines import Engine, Fragment, Weights
from wam_video.training.pieces import AVERAGE, BUFFER, WEIGHT, Pieces, check_shapes, key_of
from wam_video.training.saving import Contents, Files


@dataclass(kw_only=True)
class Progress:
    """How far a run is."""

    step: int = 0
    """Optimizer steps done (skipped ones included)."""
    next_index: int = 0
    """Global index of the next sample."""
    bad_steps: int = 0
    """Steps in a row that were skipped."""
    losses: dict[str, list[float]] = field(default_factory=dict)
    """The last steps' losses by modality, where a jump of them skips a step (`health.SpikeDetector`)."""


def snapshot(engine: Engine, ema: EMA, progress: Progress, facts: dict[str, Any]) -> Files:
    """Return the files that this process has to write, copied, so that training may go on; every process calls it.

    Each writes the fragments that it owns. What all have whole, such as buffers, the main process writes.

    Args:
        engine: Holds the trained module and the optimizer.
        ema: The average of the weights.
        progress: How far the run is.
        facts: JSON-able: the configuration and the fingerprint of the data.
    """
    files: dict[str, Contents] = {f"rng-{engine.rank}.json": _random_state()}
    tensors = _owned(engine, ema)
    if engine.is_main:
        buffers = dict(engine.module.named_buffers())
        tensors["model"] |= {f"{name}/{BUFFER}": _copy(value) for name, value in buffers.items()}
        run = {"version": STATE_VERSION, "num_processes": engine.num_processes, "engine": engine.kind}
        files["state.json"] = {**run, "shapes": _shapes(engine), **asdict(progress), **facts}
    for kind, contents in tensors.items():
        if contents:
            files[f"{kind}-{engine.rank:05d}.safetensors"] = contents
    return files


def load(folder: Path, engine: Engine, ema: EMA) -> Progress:
    """Put a verified checkpoint back, whatever engine and however many processes wrote it; every process calls it.

    Raises:
        CheckpointError: It does not fit the model, or is of an older version's DeepSpeed.
    """
    state = read_state(folder)
    if state["version"] == 1 and state["engine"] == "deepspeed":
        raise CheckpointError(
            f"checkpoint {folder} holds DeepSpeed's own shards, as versions before 2 wrote them; finish the run with the version "
            "it was started with, or start from its exported weights (init_from)"
        )
    pieces = Pieces(folder, state["version"])
    check_shapes(pieces.first_shapes if state["version"] == 1 else state["shapes"], _shapes(engine), folder)
    _restore(pieces, engine, ema, folder)
    random_file = folder / f"rng-{engine.rank}.json"
    if random_file.is_file():  # absent on a rank that the saved run did not have
        _set_random_state(json.loads(random_file.read_text()))
    return Progress(**{entry.name: state[entry.name] for entry in fields(Progress) if entry.name in state})


def _shapes(engine: Engine) -> dict[str, list[int]]:
    buffers = {name: list(value.shape) for name, value in engine.module.named_buffers()}
    return {name: list(shape) for name, shape in engine.weights.shapes.items()} | buffers


def _owned(engine: Engine, ema: EMA) -> dict[str, dict[str, Tensor]]:
    """Return copies of what this process writes, by kind of file."""
    files: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
    weights = engine.weights
    for fragment in weights.frozen:
        if fragment.owned:
            files["model"][key_of(fragment, WEIGHT)] = _copy(weights.weight(fragment))
    for block in weights.blocks:
        with weights.open(block):
            for fragment in (fragment for fragment in block if fragment.owned):
                files["model"][key_of(fragment, WEIGHT)] = _copy(weights.weight(fragment))
                files["ema"][key_of(fragment, AVERAGE)] = _copy(ema.average(fragment))
                files["optimizer"] |= _entries(fragment, weights)
    return files


def _entries(fragment: Fragment, weights: Weights) -> dict[str, Tensor]:
    """Return copies of the optimizer's; of scalars a parameter's first piece speaks for the whole of it."""
    found = weights.entries(fragment)
    ranges = {key_of(fragment, entry): _copy(value) for entry, value in found.items() if value.ndim}
    scalars = {f"{fragment.name}/{entry}": _copy(value) for entry, value in found.items() if not value.ndim}
    return ranges | (scalars if fragment.start == 0 else {})


@torch.no_grad()
def _restore(pieces: Pieces, engine: Engine, ema: EMA, folder: Path) -> None:
    for name, buffer in engine.module.named_buffers():
        buffer.copy_(pieces.scalar(name, BUFFER))
    weights = engine.weights
    table = pieces.table()
    if weights.counts_together:
        _check_counts(pieces, table, folder)
    for fragment in weights.frozen:
        weights.weight(fragment).copy_(pieces.read(fragment, WEIGHT))
    for block in weights.blocks:
        with weights.open(block, write=True):
            for fragment in block:
                weights.weight(fragment).copy_(pieces.read(fragment, WEIGHT))
                ema.average(fragment).copy_(pieces.read(fragment, AVERAGE))
                ranges, scalars = table.get(fragment.name, ([], []))
                for entry in ranges:
                    weights.set_entry(fragment, entry, pieces.read(fragment, entry))
                for entry in scalars:
                    weights.set_entry(fragment, entry, pieces.scalar(fragment.name, entry))
    weights.refresh()


def _check_counts(pieces: Pieces, table: dict[str, tuple[list[str], list[str]]], folder: Path) -> None:
    """Refuse counts that differ from parameter to parameter, where the engine has one for many of them."""
    counts: dict[str, set[float]] = {}
    for name, (_, scalars) in table.items():
        for entry in scalars:
            counts.setdefault(entry, set()).add(float(pieces.scalar(name, entry)))
    for entry, values in counts.items():
        if len(values) > 1:
            raise CheckpointError(
                f"checkpoint {folder} has parameters of {len(values)} different counts ({entry} {sorted(values)}), and DeepSpeed has "
                "one for all; go on with ddp or fsdp"
            )


def _copy(tensor: Tensor) -> Tensor:
    """Return a tensor that safetensors takes, and training does not change: on the CPU, no view into another."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _random_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": _encode(torch.get_rng_state()),
        "cuda": [_encode(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(_decode(state["torch"]))
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_decode(text) for text in state["cuda"]])


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
