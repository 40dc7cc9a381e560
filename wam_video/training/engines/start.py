"""Starting what was launched, and making sure that it is that.

Accelerate can silently be less than what was asked for (one process instead of two, DDP instead of DeepSpeed; the traps are
in `start_engine`), so what is really running is compared with what was wanted before anything is trained.
"""

import logging
import os
import sys
from dataclasses import replace
from datetime import timedelta
from typing import NoReturn

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch.distributed import PrefixStore, rendezvous

from wam_video.errors import ConfigError
from wam_video.training.engines.base import Engine, EngineConfig, Launch
from wam_video.training.engines.deepspeed import DeepSpeedEngine, deepspeed_plugin
from wam_video.training.engines.fsdp import FSDPEngine
from wam_video.training.engines.replicated import ReplicatedEngine


def start_engine(config: EngineConfig, launch: Launch) -> Engine:
    """Start what was launched and make sure that it is that.

    Two traps on CPU machines: without `PartialState(cpu=True)` first, DeepSpeed sees as many main processes as there are
    processes; and `Accelerator(cpu=True)` drops a DeepSpeed plugin without a word.

    Raises:
        ConfigError: The engine or the number of processes is not what was launched or asked for, or can't do what the run needs.
    """
    if launch.offload:
        config = replace(config, fsdp=replace(config.fsdp, cpu_offload=True))
    if launch.shard_size and not config.fsdp.shard_size:
        config = replace(config, fsdp=replace(config.fsdp, shard_size=launch.shard_size))
    wanted = launch.engine if config.engine == "auto" else config.engine
    cpu = not torch.cuda.is_available()
    patience = timedelta(seconds=config.collective_timeout_s)
    if launch.attempt and launch.num_processes > 1:
        _meet_again(launch.attempt, cpu, patience)
    if cpu:
        PartialState(cpu=True, timeout=patience)
    plugin = deepspeed_plugin(config) if launch.deepspeed else None
    accelerator = Accelerator(
        cpu=cpu and plugin is None,
        mixed_precision=_precision(config.mixed_precision),
        deepspeed_plugin=plugin,
        gradient_accumulation_steps=config.grad_accum if plugin is not None else 1,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=patience)],
    )
    kinds = {"deepspeed": DeepSpeedEngine, "fsdp": FSDPEngine}
    running = "deepspeed" if accelerator.distributed_type == DistributedType.DEEPSPEED else ""
    if not running and (launch.fsdp or wanted == "fsdp"):  # any launcher's processes will do for it
        running = "fsdp"
    engine = kinds.get(running, ReplicatedEngine)(config, accelerator)
    if engine.kind != wanted:
        raise ConfigError(
            f"the run is carried by {engine.kind!r} but should be by {wanted!r} (engine={config.engine}, "
            f"{launch.num_processes} launched); start it with accelerate launch --config_file launch/accelerate/..."
        )
    processes = config.num_processes or launch.num_processes
    if engine.num_processes != processes:
        raise ConfigError(
            f"{engine.num_processes} processes take part but should be {processes}; on CPUs use "
            "launch/accelerate/cpu_two_processes.yaml or torchrun (accelerate launch --cpu starts only one)"
        )
    if engine.num_processes % config.sequence_parallel:
        raise ConfigError(
            f"sequence_parallel is {config.sequence_parallel}, which does not divide the {engine.num_processes} processes; "
            "launch a multiple of it"
        )
    return engine


def is_one_of_several() -> bool:
    """Whether this process has joined others; then it is to end with `leave`."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def leave(code: int) -> NoReturn:
    """End a process of several at once, after all of its work is on disk.

    Neither its process groups nor the interpreter are taken down: gloo's threads may still hold the tensors of the last exchange
    and need the interpreter to give them back. While that is being taken down they abort the process (`terminate called without
    an active exception`), and while a group's end waits for them with the interpreter in its hands, neither goes on. A launcher
    would count a run that is complete as failed.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _meet_again(attempt: int, cpu: bool, patience: timedelta) -> None:
    """Join the processes that a launcher has started again, under names of this attempt.

    torchrun keeps its store, and with it the addresses of the processes that are gone: who comes before the others have
    written theirs (torch 2.13 uses the same names every time) would call those.
    """
    store, rank, size = next(rendezvous("env://", timeout=patience))
    store = PrefixStore(f"attempt-{attempt}", store)
    backend = "gloo" if cpu else "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)


def _precision(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
