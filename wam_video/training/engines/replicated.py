"""One process, or several with a whole copy of the weights each (DDP)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedType
from jaxtyping import Float
from torch import Tensor, nn

from wam_video.training.engines.base import Engine
from wam_video.training.engines.weights import WholeWeights


class ReplicatedEngine(Engine):
    """`single` and `ddp`."""

    _wrapped: Any = None

    @property
    def kind(self) -> str:  # type: ignore[override] - what is really running, so it is asked for every time
        """`single` or `ddp`."""
        return "single" if self._accelerator.distributed_type == DistributedType.NO else "ddp"

    def prepare(self, module: nn.Module, build: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        """Take charge of the trained module and make its optimizer."""
        self._module = module.to(self.device)
        for parameter in module.parameters():
            parameter.data = parameter.data.contiguous()
        self._optimizer = build(module)
        self._wrapped = self._accelerator.prepare(module)
        self._weights = WholeWeights(module.named_parameters(), self._optimizer, owned=self.is_main)

    def forward(self, *args: Any, **named: Any) -> Any:
        """Run the module in a step."""
        return self._wrapped(*args, **named)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Hold back the exchange of gradients until the last micro-batch of a step."""
        hold = not last and self.kind == "ddp"
        return self._accelerator.no_sync(self._wrapped) if hold else nullcontext()

    def backward(self, loss: Float[Tensor, ""], *, last: bool) -> None:
        """Add the gradient of a micro-batch's share of the loss to the step's."""
        (loss * self.num_processes).backward()

    def update(self) -> tuple[bool, float]:
        """Clip and apply the step's gradient, unless it is not finite."""
        parameters = [p for p in self._module.parameters() if p.grad is not None]
        limit = self._config.clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True).item()
        applied = norm == norm and norm != float("inf")
        if applied:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return applied, norm
