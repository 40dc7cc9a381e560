"""Processes, devices and the distributed engine: the only module that knows accelerate and DeepSpeed.

Both can silently be less than what was asked for (one process instead of two, DDP instead of DeepSpeed; the traps are in
`start_engine`), so what is really running is compared with what was wanted before anything is trained.

Gradients: a micro-batch's loss is already divided by the counts of the whole step, so the gradient of a step is the SUM over
micro-batches and processes. DDP and DeepSpeed take means; `Engine.backward` multiplies their divisors back.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from wam_video.errors import ConfigError
from wam_video.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What the launcher announced, read from the environment by the command line."""

    num_processes: int = 1
    deepspeed: bool = False


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What must carry the run."""

    engine: str = "auto"
    """single, ddp, deepspeed, or auto: what was launched."""
    num_processes: int | None = None
    mixed_precision: str = "auto"
    batch_size: int = 1
    grad_accum: int = 1
    clip_norm: float = 0.0

    @classmethod
    def of(cls, config: TrainConfig) -> "EngineConfig":
        """Return what a run asks of its engine."""
        return cls(
            engine=config.engine,
            num_processes=config.num_processes,
            mixed_precision=config.mixed_precision,
            batch_size=config.batch_size,
            grad_accum=config.grad_accum,
            clip_norm=config.optim.clip_norm,
        )


class Engine:
    """One process's handle on the run: device, collectives, and the update of the trained module."""

    def __init__(self, config: EngineConfig, accelerator: Accelerator) -> None:
        self._config = config
        self._accelerator = accelerator
        self._wrapped: Any = None  # DDP, a DeepSpeed engine or the module itself
        self._module: Any = None
        self._optimizer: Any = None

    @property
    def kind(self) -> str:
        """`single`, `ddp` or `deepspeed`: what is really running."""
        if self._accelerator.distributed_type == DistributedType.DEEPSPEED:
            return "deepspeed"
        return "single" if self._accelerator.distributed_type == DistributedType.NO else "ddp"

    def describe(self) -> str:
        """Return one line on what carries the run."""
        return f"{self.kind} engine, {self.num_processes} process(es) on {self.device.type}, precision {self.precision}"

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self._accelerator.device

    @property
    def num_processes(self) -> int:
        """Processes that take part."""
        return self._accelerator.num_processes

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return self._accelerator.process_index

    @property
    def is_main(self) -> bool:
        """True on the process that writes."""
        return self._accelerator.is_main_process

    @property
    def precision(self) -> str:
        """`bf16` or `no`."""
        return self._accelerator.mixed_precision

    @property
    def module(self) -> nn.Module:
        """The trained module, without wrappers."""
        return self._module

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer; under DeepSpeed over this process's flat shards of the weights."""
        return self._wrapped.optimizer.optimizer if self.kind == "deepspeed" else self._optimizer

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take charge of the trained module and its optimizer."""
        self._module, self._optimizer = module, optimizer
        if self.kind == "deepspeed":
            self._wrapped, _ = self._accelerator.prepare(module, optimizer)
        else:
            self._wrapped = self._accelerator.prepare(module)

    def forward(self, *args: Any, **named: Any) -> Any:
        """Run the wrapped module."""
        return self._wrapped(*args, **named)

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Hold back the exchange of gradients until the last micro-batch of a step."""
        hold = not last and self.kind == "ddp"
        with self._accelerator.no_sync(self._wrapped) if hold else nullcontext():
            yield

    def backward(self, loss: Float[Tensor, ""], *, last: bool) -> None:
        """Add the gradient of a micro-batch's share of the loss to the step's."""
        if self.kind == "deepspeed":
            self._wrapped.set_gradient_accumulation_boundary(is_boundary=last)
            self._wrapped.backward(loss * (self.num_processes * self._config.grad_accum))
        else:
            (loss * self.num_processes).backward()

    def update(self) -> tuple[bool, float]:
        """Clip and apply the step's gradient, unless it is not finite.

        Returns:
            Whether it was applied, and its norm before clipping; the same on every process.
        """
        if self.kind == "deepspeed":
            self._wrapped.step()
            norm = self._wrapped.get_global_grad_norm()
            return self._wrapped.was_step_applied(), float("nan") if norm is None else float(norm)
        parameters = [p for p in self._module.parameters() if p.grad is not None]
        limit = self._config.clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True).item()
        applied = norm == norm and norm != float("inf")
        if applied:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return applied, norm

    def sum(self, values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Return the sum of a tensor over all processes."""
        if self.num_processes == 1:
            return values
        return self._accelerator.reduce(values, reduction="sum")  # type: ignore[return-value]

    def wait(self) -> None:
        """Wait for every process."""
        self._accelerator.wait_for_everyone()

    def master_weights(self) -> list[Tensor]:
        """Return DeepSpeed's float32 shards of the weights on this process; empty for the other engines."""
        return list(self._wrapped.optimizer.single_partition_of_fp32_groups) if self.kind == "deepspeed" else []

    def close(self) -> None:
        """Leave the process group."""
        self._accelerator.end_training()


def start_engine(config: EngineConfig, launch: Launch) -> Engine:
    """Start what was launched and make sure that it is that.

    Two traps on CPU machines: without `PartialState(cpu=True)` first, DeepSpeed sees as many main processes as there are
    processes; and `Accelerator(cpu=True)` drops a DeepSpeed plugin without a word.

    Raises:
        ConfigError: The engine or the number of processes is not what was launched or asked for.
    """
    cpu = not torch.cuda.is_available()
    if cpu:
        PartialState(cpu=True)
    plugin = _deepspeed_plugin(config) if launch.deepspeed else None
    accelerator = Accelerator(
        cpu=cpu and plugin is None,
        mixed_precision=_precision(config.mixed_precision),
        deepspeed_plugin=plugin,
        gradient_accumulation_steps=config.grad_accum if plugin is not None else 1,
    )
    engine = Engine(config, accelerator)
    wanted = config.engine
    if wanted == "auto":
        wanted = "deepspeed" if launch.deepspeed else "single" if launch.num_processes == 1 else "ddp"
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
    return engine


def _precision(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"


def _deepspeed_plugin(config: EngineConfig) -> DeepSpeedPlugin:
    """Complete the plugin that the launcher describes with what it leaves to the run.

    Raises:
        ConfigError: ZeRO stage 3, which shards the weights themselves.
    """
    plugin = DeepSpeedPlugin()
    settings = plugin.deepspeed_config
    stage = settings.get("zero_optimization", {}).get("stage")
    if stage not in (1, 2):
        raise ConfigError(f"DeepSpeed ZeRO stage is {stage}; allowed: 1, 2 (averages and exports need whole weights)")
    settings["train_micro_batch_size_per_gpu"] = config.batch_size
    settings["gradient_accumulation_steps"] = config.grad_accum
    settings["gradient_clipping"] = config.clip_norm
    settings.pop("train_batch_size", None)
    if isinstance(settings.get("bf16"), dict):
        settings["bf16"]["check_grad_overflow"] = True
    return plugin
