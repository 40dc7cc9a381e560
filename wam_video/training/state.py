"""What a checkpoint holds, and how it is put back: weights, average, optimizer, random numbers, position in the data."""

import base64
import json
import random
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from wam_video.errors import CheckpointError
from wam_video.training.checkpoint import STATE_VERSION, read_state
from wam_video.training.ema import EMA
from wam_video.training.engines import Engine
from wam_video.training.engines.deepspeed import DeepSpeedEngine
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

    Args:
        engine: Holds the trained module and the optimizer.
        ema: The average of the weights.
        progress: How far the run is.
        facts: JSON-able: the configuration and the fingerprint of the data.
    """
    files: dict[str, Contents] = {f"rng-{engine.rank}.json": _random_state()}
    if engine.is_main:
        files["model.safetensors"] = _module_tensors(engine.module)
        files["ema.safetensors"] = _contiguous(ema.state_dict())
        run = {"version": STATE_VERSION, "num_processes": engine.num_processes, "engine": engine.kind}
        files["state.json"] = {**run, **asdict(progress), **facts}
    if engine.is_main or engine.kind == "deepspeed":
        files[_optimizer_file(engine)] = _optimizer_tensors(engine)
    return files


def load(folder: Path, engine: Engine, ema: EMA) -> Progress:
    """Put a verified checkpoint back; every process calls it.

    Raises:
        CheckpointError: It does not fit the model, or DeepSpeed's shards do not fit the processes.
    """
    state = read_state(folder)
    if engine.kind != state["engine"] and "deepspeed" in (engine.kind, state["engine"]):
        raise CheckpointError(
            f"checkpoint {folder} was written under {state['engine']!r}, not {engine.kind!r}; launch it as before"
        )
    if engine.kind == "deepspeed" and engine.num_processes != state["num_processes"]:
        raise CheckpointError(
            f"checkpoint {folder} holds DeepSpeed shards of {state['num_processes']} processes, not {engine.num_processes}; "
            "launch as many as before"
        )
    weights = load_file(folder / "model.safetensors")
    own = _named(engine.module)
    if weights.keys() != own.keys() or any(weights[k].shape != own[k].shape for k in own):
        names = sorted(weights.keys() ^ own.keys()) or [k for k in own if weights[k].shape != own[k].shape]
        raise CheckpointError(
            f"checkpoint {folder} is of another model: {names[0]} differs; use the configuration it was made with"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])
    ema.load_state_dict(load_file(folder / "ema.safetensors"))
    _load_optimizer(folder, engine)
    random_file = folder / f"rng-{engine.rank}.json"
    if random_file.is_file():  # absent on a rank that the saved run did not have
        _set_random_state(json.loads(random_file.read_text()))
    return Progress(**{entry.name: state[entry.name] for entry in fields(Progress) if entry.name in state})


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _module_tensors(module: nn.Module) -> dict[str, Tensor]:
    return _contiguous(_named(module))


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that safetensors takes: whole, on the CPU, none a view into another (DeepSpeed's are)."""
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}


def _optimizer_file(engine: Engine) -> str:
    return f"optimizer-{engine.rank}.safetensors" if engine.kind == "deepspeed" else "optimizer.safetensors"


def _master_weights(engine: Engine) -> list[Tensor]:
    return engine.master_weights() if isinstance(engine, DeepSpeedEngine) else []


def _optimizer_keys(engine: Engine) -> dict[Tensor, str]:
    """Name the tensors that the optimizer updates: parameters by name, DeepSpeed's flat shards by group."""
    if engine.kind == "deepspeed":
        return {shard: f"shard{i}" for i, shard in enumerate(_master_weights(engine))}
    return {parameter: name for name, parameter in engine.module.named_parameters()}


def _optimizer_tensors(engine: Engine) -> dict[str, Tensor]:
    names = _optimizer_keys(engine)
    tensors = {
        f"{names[parameter]}/{key}": value
        for parameter, entries in engine.optimizer.state.items()
        for key, value in entries.items()
    }
    return _contiguous(tensors | {f"master/{i}": shard for i, shard in enumerate(_master_weights(engine))})


@torch.no_grad()
def _load_optimizer(folder: Path, engine: Engine) -> None:
    tensors = load_file(folder / _optimizer_file(engine))
    for index, shard in enumerate(_master_weights(engine)):
        shard.copy_(tensors.pop(f"master/{index}"))
    targets = {name: parameter for parameter, name in _optimizer_keys(engine).items()}
    for key, value in tensors.items():
        name, entry = key.rsplit("/", 1)
        parameter = targets[name]
        # AdamW keeps its step counts on the parameter's device when it is fused
        engine.optimizer.state[parameter][entry] = value.to(parameter.device)


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
