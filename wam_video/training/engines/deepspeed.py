"""DeepSpeed's ZeRO: the optimizer's state (stage 1), the gradients (2) and the weights (3) are cut up among the processes.

What the launcher's JSON says holds, offload to the CPU or to disk too; batch, accumulation, clipping and the optimizer are the
run's. The optimizer stays torch's AdamW where DeepSpeed would put its own for offload (`zero_force_ds_cpu_optimizer`), so that
all engines learn the same and nothing has to be compiled; set the key to true in the JSON for DeepSpeed's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from jaxtyping import Float
from torch import Tensor, nn

from wam_video.errors import ConfigError
from wam_video.training.engines.base import Engine, EngineConfig
from wam_video.training.engines.zero_weights import Zero3Weights, Zero12Weights


class DeepSpeedEngine(Engine):
    """ZeRO as the launcher's JSON describes it."""

    kind = "deepspeed"

    def __init__(self, config: EngineConfig, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        if config.optimizer == "muon":
            raise ConfigError(
                "optim.name is 'muon', which needs whole matrices; DeepSpeed cuts them up: set optim.name=adamw, or train with ddp"
            )
        plugin: Any = accelerator.state.deepspeed_plugin
        self._settings: dict[str, Any] = plugin.deepspeed_config
        self._engine: Any = None
        if config.compile and self.stage == 3:
            raise ConfigError(
                "compile is true, which needs a block's weights before it starts; ZeRO 3 fetches them layer by layer: set compile=false, "
                "or train with fsdp"
            )

    @property
    def stage(self) -> int:
        """Of ZeRO: 1, 2 or 3."""
        return self._settings["zero_optimization"]["stage"]

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer, over this process's lines of the weights."""
        return self._engine.optimizer.optimizer

    def describe(self) -> str:
        """Return one line on what carries the run."""
        zero = self._settings["zero_optimization"]
        places = {part: zero.get(f"offload_{part}", {}).get("device", "none") for part in ("optimizer", "param")}
        offload = "".join(f", {part} on {place}" for part, place in places.items() if place != "none")
        return f"{super().describe()}, ZeRO {self.stage}{offload}"

    def prepare(self, module: nn.Module, build: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        """Take charge of the trained module and make its optimizer."""
        for parameter in module.parameters():
            parameter.data = parameter.data.contiguous()
        named = dict(module.named_parameters())
        shapes = {name: p.shape for name, p in named.items()}
        precise = {name: p.data for name, p in named.items() if p.requires_grad} if self._is_bf16 else {}
        optimizer = build(module)  # before the parameters are cut up: its groups depend on their shapes
        self._module = module
        if self.stage == 3:
            self._cut_up(module)
        else:
            module.to(self.device)
        self._engine, _ = self._accelerator.prepare(module, optimizer)
        zero = self._engine.optimizer
        if self.stage == 3:
            self._weights = Zero3Weights(zero, named, shapes, self.rank)
        else:
            self._weights = Zero12Weights(zero, named, owned=self.is_main)
        self._sharpen(precise)

    @torch.no_grad()
    def _sharpen(self, precise: Mapping[str, Tensor]) -> None:
        """Start from the float32 weights; DeepSpeed makes its own from those that it has rounded to bfloat16."""
        if not precise:
            return
        for block in self.weights.blocks:
            with self.weights.open(block, write=True):
                for fragment in block:
                    value = precise[fragment.name].view(-1)[fragment.start : fragment.stop]
                    self.weights.weight(fragment).copy_(value)
        self.weights.refresh()

    @property
    def _is_bf16(self) -> bool:
        return self._settings.get("bf16", {}).get("enabled") is True

    def forward(self, *args: Any, **named: Any) -> Any:
        """Run the module in a step."""
        return self._engine(*args, **named)

    def backward(self, loss: Float[Tensor, ""], *, last: bool) -> None:
        """Add the gradient of a micro-batch's share of the loss to the step's."""
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        self._engine.backward(loss * (self.num_processes * self._config.grad_accum))

    def update(self) -> tuple[bool, float]:
        """Clip and apply the step's gradient, unless it is not finite."""
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        applied = self._engine.was_step_applied()
        return applied, float(norm) if applied and norm is not None else float("nan")

    def _cut_up(self, module: nn.Module) -> None:
        """Cut the weights up one by one, so that no device has to take them all at once."""
        from deepspeed import zero

        if self._is_bf16:
            module.to(torch.bfloat16)
        for buffers in (part._buffers for part in module.modules()):
            buffers.update({name: value.to(self.device) for name, value in buffers.items() if value is not None})
        zero.Init(module=module, config_dict_or_path=self._settings)
        # DeepSpeed brings a module's weights back for its backward pass where it finds tensors in what the module returned. The
        # network returns a `Prediction`, in which it finds none, so its own parameters come back with the module around it.
        network = getattr(module, "transformer", module)
        for part in (network, getattr(network, "expert", None)):
            for parameter in () if part is None else part.parameters(recurse=False):
                zero.register_external_parameter(module, parameter)


def deepspeed_plugin(config: EngineConfig) -> DeepSpeedPlugin:
    """Complete the plugin that the launcher describes with what it leaves to the run.

    Raises:
        ConfigError: The JSON asks for something whose shards can't be told apart.
    """
    plugin = DeepSpeedPlugin()
    settings = plugin.deepspeed_config
    zero = settings.get("zero_optimization", {})
    if zero.get("stage") not in (1, 2, 3):
        raise ConfigError(f"DeepSpeed ZeRO stage is {zero.get('stage')}; allowed: 1, 2, 3 (for 0 take ddp)")
    for key in ("zero_hpz_partition_size", "mics_shard_size"):
        if zero.get(key, 0) > 1:
            raise ConfigError(
                f"zero_optimization.{key} is {zero[key]}; leave it out, or use engine fsdp and fsdp.shard_size"
            )
    if zero.get("offload_optimizer", {}).get("ratio", 1.0) != 1.0:
        raise ConfigError(
            f"zero_optimization.offload_optimizer.ratio is {zero['offload_optimizer']['ratio']}; allowed: 1.0 (all of it)"
        )
    _need_disk_access([zero.get(f"offload_{part}", {}).get("device") for part in ("optimizer", "param")])
    settings.setdefault("zero_force_ds_cpu_optimizer", False)
    settings["train_micro_batch_size_per_gpu"] = config.batch_size
    settings["gradient_accumulation_steps"] = config.grad_accum
    settings["gradient_clipping"] = config.clip_norm
    settings.pop("train_batch_size", None)
    if isinstance(settings.get("bf16"), dict):
        settings["bf16"]["check_grad_overflow"] = True
    return plugin


def _need_disk_access(devices: Sequence[str | None]) -> None:
    """Refuse offload to disk where DeepSpeed can't build its reader, which it would say in a page of traceback."""
    if "nvme" not in devices:
        return
    from deepspeed.ops.op_builder.async_io import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise ConfigError(
            "the DeepSpeed file offloads to 'nvme', for which libaio is missing; install it (apt-get install libaio-dev), or set the "
            "devices to cpu"
        )
