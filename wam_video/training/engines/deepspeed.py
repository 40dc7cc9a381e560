"""DeepSpeed's ZeRO: the optimizer's state (stage 1) and the gradients (2) are shared among the processes."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from jaxtyping import Float
from torch import Tensor, nn

from wam_video.errors import ConfigError
from wam_video.training.engines.base import Engine, EngineConfig


class DeepSpeedEngine(Engine):
    """ZeRO as the launcher's JSON describes it."""

    kind = "deepspeed"

    def __init__(self, config: EngineConfig, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        if config.optimizer == "muon":
            raise ConfigError(
                "optim.name is 'muon', which needs whole matrices; DeepSpeed cuts them up: set optim.name=adamw, or train with ddp"
            )
        self._engine: Any = None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer, over this process's flat shards of the weights."""
        return self._engine.optimizer.optimizer

    def prepare(self, module: nn.Module, build: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        """Take charge of the trained module and make its optimizer."""
        self._module = module.to(self.device)
        self._engine, _ = self._accelerator.prepare(module, build(module))

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
        return self._engine.was_step_applied(), float("nan") if norm is None else float(norm)

    def master_weights(self) -> list[Tensor]:
        """Return the float32 shards of the weights on this process."""
        return list(self._engine.optimizer.single_partition_of_fp32_groups)


def deepspeed_plugin(config: EngineConfig) -> DeepSpeedPlugin:
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
