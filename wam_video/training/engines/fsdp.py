"""FSDP2: weights, gradients and optimizer state are cut by rows, and a block's weights are put together while it computes.

`torch.distributed.fsdp.fully_shard` is called directly. Accelerate starts the processes, but its own FSDP branch is not for
CPU processes, and prepares modules without asking where its shards lie. The blocks of the network are a unit each; the root
holds what is left over, an action expert too, whose layers are run by the trunk's blocks.

Gradients are summed over processes as they come, micro-batch by micro-batch, so that no process ever has all of them.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from wam_video.errors import ConfigError
from wam_video.training.engines.base import Engine, EngineConfig
from wam_video.training.engines.weights import Fragment, StateOf, Weights, flat


class FSDPEngine(Engine):
    """Fully sharded, over all processes or in groups of `fsdp.shard_size` that have copies of each other."""

    kind = "fsdp"

    def __init__(self, config: EngineConfig, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        if config.optimizer == "muon":
            raise ConfigError(
                "optim.name is 'muon', which needs whole matrices; FSDP cuts them up: set optim.name=adamw, or train with ddp"
            )
        group = config.fsdp.shard_size or self.num_processes
        if self.num_processes % group:
            raise ConfigError(
                f"fsdp.shard_size is {group}; allowed: 0 (all) or what divides the number of processes ({self.num_processes})"
            )
        _need_process_group(self.device)
        copies = self.num_processes // group
        self._mesh: DeviceMesh = (
            init_device_mesh(self.device.type, (group,), mesh_dim_names=("shard",))
            if copies == 1
            else init_device_mesh(self.device.type, (copies, group), mesh_dim_names=("copy", "shard"))
        )

    def describe(self) -> str:
        """Return one line on what carries the run."""
        sizes = " x ".join(
            f"{size} {name}" for name, size in zip(self._mesh.mesh_dim_names or (), self._mesh.shape, strict=True)
        )
        return f"{super().describe()}, mesh {sizes}" + ", weights on the CPU" * self._config.fsdp.cpu_offload

    def prepare(self, module: nn.Module, build: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        """Cut the module up, block by block, and make its optimizer over the pieces."""
        bf16 = self.precision == "bf16"
        offload = CPUOffloadPolicy(pin_memory=self.device.type != "cpu")
        options: dict[str, Any] = {
            "mesh": self._mesh,
            "offload_policy": offload if self._config.fsdp.cpu_offload else OffloadPolicy(),
        }
        precision: dict[str, Any] = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if bf16 else {}
        # No casting of inputs: rotary angles and modulations are float32 on purpose, and the modules cast the rest.
        inside = MixedPrecisionPolicy(**precision, cast_forward_inputs=False)
        root = MixedPrecisionPolicy(**precision, cast_forward_inputs=False, output_dtype=torch.float32)
        for block in _blocks(module):
            fully_shard(
                block, mp_policy=inside, reshard_after_forward=self._config.fsdp.reshard_after_forward, **options
            )
        fully_shard(module, mp_policy=root, **options)
        # Said of every module whose output is a view; nothing in a step writes into outputs.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        for unit in module.modules():
            if isinstance(unit, FSDPModule):
                unit.set_gradient_divide_factor(1.0)
                unit.set_force_sum_reduction_for_comms(True)
        self._module = module
        for name, buffer in module.named_buffers():
            module.get_submodule(name.rpartition(".")[0])._buffers[name.rpartition(".")[2]] = buffer.to(self.device)
        self._optimizer = build(module)
        self._weights = FSDPWeights(module, self._optimizer)

    def forward(self, *args: Any, **named: Any) -> Any:
        """Run the module in a step."""
        return self._module(*args, **named)

    def backward(self, loss: Float[Tensor, ""], *, last: bool) -> None:
        """Add the gradient of a micro-batch's share of the loss to the step's."""
        loss.backward()

    def update(self) -> tuple[bool, float]:
        """Clip and apply the step's gradient, unless it is not finite."""
        grads = [local(p.grad) for p in self._module.parameters() if p.grad is not None]
        squares = torch.zeros((), device=self.device)
        if grads:
            norms = torch._foreach_norm([grad for grad in grads if grad.numel()])
            squares += torch.stack([norm.float() for norm in norms]).square().sum().to(self.device)
        torch.distributed.all_reduce(squares, group=self._mesh.get_group("shard"))
        norm = squares.sqrt().item()
        applied = norm == norm and norm != float("inf")
        if applied:
            limit = self._config.clip_norm or float("inf")
            if norm > limit:
                torch._foreach_mul_(grads, limit / (norm + 1e-6))
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return applied, norm


class FSDPWeights(Weights):
    """Rows of dim 0 of every parameter; the first of several copies of them is the one that is written."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._units = [unit for unit in module.modules() if isinstance(unit, FSDPModule)]
        self._parameters: dict[str, Any] = dict(module.named_parameters())
        self._state = StateOf(optimizer)
        trained, frozen = [], []
        for name, parameter in self._parameters.items():
            fragment = _rows(name, parameter)
            if fragment is not None:
                (trained if parameter.requires_grad else frozen).append(fragment)
        super().__init__({name: p.shape for name, p in self._parameters.items()}, [trained], frozen)

    def weight(self, fragment: Fragment) -> Shaped[Tensor, " n"]:
        """Return a view of this process's rows."""
        return flat(local(self._parameters[fragment.name]))

    def entries(self, fragment: Fragment) -> dict[str, Tensor]:
        """Return views of the optimizer's entries of these rows."""
        found = self._state.entries(self._parameters[fragment.name])
        return {key: flat(local(value)) if value.ndim else local(value) for key, value in found.items()}

    def set_entry(self, fragment: Fragment, entry: str, value: Shaped[Tensor, "*n"]) -> None:
        """Put a range or a scalar in the place of the optimizer's."""
        parameter = self._parameters[fragment.name]
        if value.ndim:
            flat(local(self._state.entry(parameter, entry))).copy_(value)
        else:
            self._state.set_scalar(parameter, entry, value)

    def refresh(self) -> None:
        """Drop what was put together from the old rows; the root keeps that after a forward pass without a backward pass."""
        for unit in self._units:
            unit.reshard()


def local(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*part"]:
    """Return this process's part of a distributed tensor; no copy."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def _rows(name: str, parameter: DTensor) -> Fragment | None:
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    width = parameter.shape[1:].numel()
    if not shape[0]:
        return None
    mesh = parameter.device_mesh
    first = mesh.ndim == 1 or mesh.get_local_rank("copy") == 0
    return Fragment(name=name, start=offset[0] * width, stop=(offset[0] + shape[0]) * width, owned=first)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Return the units that are put together one at a time: the blocks of the network, where it has any."""
    return list(getattr(getattr(module, "transformer", None), "blocks", []))


def _need_process_group(device: torch.device) -> None:
    """Make a group of one where nothing launched us: one device with its weights on the CPU is a use of its own."""
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        backend = "gloo" if device.type == "cpu" else "nccl"
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
