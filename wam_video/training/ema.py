"""The exponential moving average of a module's trainable weights, in float32."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.training.config import EMAConfig
from wam_video.training.engines import Fragment, Weights


class EMA:
    """Average of the trained weights: of a process's own fragments, where those lie; nothing is gathered in a step.

    Args:
        config: How fast it moves.
        weights: What this process holds.
    """

    def __init__(self, config: EMAConfig, weights: Weights) -> None:
        self._config = config
        self._weights = weights
        self._average: dict[Fragment, Tensor] = {}
        for block in weights.blocks:
            with weights.open(block):
                self._average |= {fragment: weights.weight(fragment).float().clone() for fragment in block}

    def decay(self, step: int) -> float:
        """Return the decay of the update after step `step` (0 is the first)."""
        if self._config.power:
            return min(self._config.decay, 1 - max(step, 1) ** -self._config.power)
        return min(self._config.decay, (1 + step) / (10 + step)) if self._config.warmup else self._config.decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after step `step`."""
        for block in self._weights.blocks:
            with self._weights.open(block):
                if block:
                    new = [self._weights.weight(fragment).float() for fragment in block]
                    torch._foreach_lerp_([self._average[fragment] for fragment in block], new, 1 - self.decay(step))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the place of the weights, and the weights back afterwards; every process calls it."""
        kept: dict[Fragment, Tensor] = {}
        for block in self._weights.blocks:
            with self._weights.open(block):
                kept |= {fragment: self._weights.weight(fragment).clone() for fragment in block}
        self._write(self._average)
        try:
            yield
        finally:
            self._write(kept)

    def average(self, fragment: Fragment) -> Float[Tensor, " n"]:
        """Return the average over a fragment, to be read or written."""
        return self._average[fragment]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by parameter name: with its shape where this process has it whole, else its range, flat."""
        shapes = self._weights.shapes
        return {
            fragment.name: value.view(shapes[fragment.name])
            if fragment.numel == shapes[fragment.name].numel()
            else value
            for fragment, value in self._average.items()
        }

    @torch.no_grad()
    def _write(self, values: Mapping[Fragment, Tensor]) -> None:
        for block in self._weights.blocks:
            with self._weights.open(block, write=True):
                for fragment in block:
                    self._weights.weight(fragment).copy_(values[fragment])
        self._weights.refresh()
