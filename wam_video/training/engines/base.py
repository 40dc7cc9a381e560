"""What the trainer sees of an engine, whichever it is.

Gradients: a micro-batch's loss is already divided by the counts of the whole step, so the gradient of a step is the SUM over
micro-batches and processes. All engines take means over processes (and DeepSpeed over micro-batches); `Engine.backward`
multiplies their divisors back.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from wam_video.errors import ToldError, WamError
from wam_video.training.config import FSDPConfig, TrainConfig
from wam_video.training.engines.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What the launcher announced, read from the environment by the command line."""

    num_processes: int = 1
    attempt: int = 0
    """How often the launcher has started the processes again."""
    deepspeed: bool = False
    fsdp: bool = False
    offload: bool = False
    """The launcher's file asks for FSDP's weights on the CPU."""
    shard_size: int = 0
    """Processes of this machine, where the launcher's file asks for hybrid sharding; else 0."""

    @property
    def engine(self) -> str:
        """The engine that was launched."""
        if self.deepspeed or self.fsdp:
            return "deepspeed" if self.deepspeed else "fsdp"
        return "single" if self.num_processes == 1 else "ddp"


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What must carry the run."""

    engine: str = "auto"
    """single, ddp, deepspeed, fsdp, or auto: what was launched."""
    num_processes: int | None = None
    mixed_precision: str = "auto"
    batch_size: int = 1
    grad_accum: int = 1
    clip_norm: float = 0.0
    optimizer: str = "adamw"
    fsdp: FSDPConfig = field(default_factory=FSDPConfig)
    compile: bool = False
    sequence_parallel: int = 1
    """Neighbouring processes that share the tokens of the same samples."""
    collective_timeout_s: float = 1800.0
    """How long a process waits for the others in an exchange."""

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
            optimizer=config.optim.name,
            fsdp=config.fsdp,
            compile=config.compile,
            sequence_parallel=config.sequence_parallel,
            collective_timeout_s=config.health.collective_timeout_s,
        )


class Engine(ABC):
    """One process's handle on the run: device, collectives, and the update of the trained module."""

    kind: str
    """`single`, `ddp`, `deepspeed` or `fsdp`: what is really running."""

    def __init__(self, config: EngineConfig, accelerator: Accelerator) -> None:
        self._config = config
        self._accelerator = accelerator
        self._module: Any = None
        self._optimizer: Any = None
        self._weights: Weights | None = None

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
    def data_processes(self) -> int:
        """Processes that have samples of their own: those that share the tokens of a sample count once."""
        return self.num_processes // self._config.sequence_parallel

    @property
    def data_rank(self) -> int:
        """Which of them this process belongs to, from 0."""
        return self.rank // self._config.sequence_parallel

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
        """The trained module; run it outside of steps on all processes alike, for it may have to gather its weights."""
        return self._module

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer, over what this process holds of the weights; its groups take the learning rates."""
        return self._optimizer

    @property
    def weights(self) -> Weights:
        """What this process holds of the weights and of the optimizer's state."""
        if self._weights is None:
            raise RuntimeError("the engine has no module yet")
        return self._weights

    @abstractmethod
    def prepare(self, module: nn.Module, build: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        """Take charge of the trained module and make its optimizer, once it stands as the engine wants it."""

    @abstractmethod
    def forward(self, *args: Any, **named: Any) -> Any:
        """Run the module in a step."""

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Hold back the exchange of gradients until the last micro-batch of a step, where that costs no memory."""
        return nullcontext()

    @abstractmethod
    def backward(self, loss: Float[Tensor, ""], *, last: bool) -> None:
        """Add the gradient of a micro-batch's share of the loss to the step's."""

    @abstractmethod
    def update(self) -> tuple[bool, float]:
        """Clip and apply the step's gradient, unless it is not finite.

        Returns:
            Whether it was applied, and its norm before clipping; the same on every process.
        """

    def sum(self, values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Return the sum of a tensor over all processes."""
        if self.num_processes == 1:
            return values
        return self._accelerator.reduce(values, reduction="sum")  # type: ignore[return-value]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Go on after the block if no process refused in it (`WamError`); one word is enough, and it is printed once.

        Raises:
            WamError: This process's own, on the main process, or where that one did not refuse; else `ToldError`.
        """
        refused: WamError | None = None
        try:
            yield
        except WamError as error:
            refused = error
        told = torch.tensor([refused is not None, self.is_main and refused is not None], device=self.device)
        refusals, by_main = self.sum(told.float()).tolist()
        if refused is not None and (self.is_main or not by_main):
            raise refused
        if refusals:
            raise ToldError("another process can't go on, and tells why")

    def gather(self, name: str, pieces: Mapping[int, Shaped[Tensor, " _"]]) -> Float[Tensor, "*shape"] | None:
        """Put a parameter together on the main process; every process calls it with the same names in the same order.

        Args:
            name: Of the parameter.
            pieces: By their starts, the fragments that this process writes.

        Returns:
            The parameter in float32 on the CPU; None on other processes.
        """
        shape = self.weights.shapes[name]
        if not self.weights.cut:
            return pieces[0].float().cpu().view(shape) if self.is_main else None
        whole = torch.zeros(shape.numel(), device=self.device)
        for start, piece in pieces.items():
            whole[start : start + piece.numel()] = piece.to(self.device)
        # As whole numbers: where others add zeros, the bits stay what they are, those of -0.0 and NaN too.
        torch.distributed.reduce(whole.view(torch.int32), dst=0)
        return whole.cpu().view(shape) if self.is_main else None

    def wait(self) -> None:
        """Wait for every process."""
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group of one; a process of several is to end with `leave`, which says why."""
        if self.num_processes == 1:
            self._accelerator.end_training()
