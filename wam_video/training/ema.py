"""The exponential moving average of a module's trainable weights, in float32."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wam_video.training.config import EMAConfig


class EMA:
    """Average of the trainable parameters; every rank holds the same one."""

    def __init__(self, config: EMAConfig, module: nn.Module) -> None:
        self._config = config
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    def decay(self, step: int) -> float:
        """Return the decay of the update after step `step` (0 is the first)."""
        if self._config.power:
            return min(self._config.decay, 1 - max(step, 1) ** -self._config.power)
        return min(self._config.decay, (1 + step) / (10 + step)) if self._config.warmup else self._config.decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after step `step`."""
        weights = [p.detach().float() for p in self._parameters.values()]
        torch._foreach_lerp_(list(self._average.values()), weights, 1 - self.decay(step))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the place of the weights, and the weights back afterwards."""
        kept = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._write(self._average)
        try:
            yield
        finally:
            self._write(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average by parameter name."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over an average; the names and shapes must be those of `state_dict`."""
        for name, value in self._average.items():
            value.copy_(state[name])

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
