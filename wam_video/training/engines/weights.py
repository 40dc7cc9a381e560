"""What a process holds of the trained weights: ranges of flattened parameters, whichever engine cut them.

A parameter is its elements in row-major order; a fragment is a range of them. Averages, checkpoints and exports are over
fragments only, so that any number of processes under any engine can read what any other wrote.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A range of a flattened parameter."""

    name: str
    start: int
    stop: int
    owned: bool = True
    """This process writes it; another one that holds the same does not."""

    @property
    def numel(self) -> int:
        """Elements in it."""
        return self.stop - self.start


class Weights(ABC):
    """The fragments of one process, with views onto the weights that the optimizer updates and onto its entries.

    Args:
        shapes: Of every parameter, trained or not, by name.
        blocks: The trained fragments that can be at hand at the same time; without offload to disk all in one.
        frozen: Fragments that are not trained.
    """

    cut: bool = True
    """No process has everything."""
    counts_together: bool = False
    """Parameters share the optimizer's scalars, such as its count of steps."""

    def __init__(
        self, shapes: Mapping[str, torch.Size], blocks: Sequence[Sequence[Fragment]], frozen: Sequence[Fragment]
    ) -> None:
        self.shapes = dict(shapes)
        self.blocks = [list(block) for block in blocks]
        self.frozen = list(frozen)

    @property
    def trained(self) -> list[Fragment]:
        """The trained fragments, in order."""
        return [fragment for block in self.blocks for fragment in block]

    @contextmanager
    def open(self, block: Sequence[Fragment], *, write: bool = False) -> Iterator[None]:
        """Have a block at hand; `write`: keep what is written into its views."""
        yield

    @abstractmethod
    def weight(self, fragment: Fragment) -> Shaped[Tensor, " n"]:
        """Return a view of the weight that the optimizer updates; its block must be open, if it is trained."""

    @abstractmethod
    def entries(self, fragment: Fragment) -> dict[str, Tensor]:
        """Return views of the optimizer's entries of an open fragment: ranges, and scalars without an axis."""

    @abstractmethod
    def set_entry(self, fragment: Fragment, entry: str, value: Shaped[Tensor, "*n"]) -> None:
        """Put a range or a scalar in the place of the optimizer's, which may not have it yet."""

    def refresh(self) -> None:  # noqa: B027 - nothing to do where the views are onto the module's own weights
        """Let the module compute with what was written to the weights; every process calls it."""


def flat(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, " n"]:
    """Return a flat view, never a copy."""
    return tensor.detach().view(-1)


class StateOf:
    """Reading and writing the state of a torch optimizer by the tensor that it updates."""

    def __init__(self, optimizer: torch.optim.Optimizer | None) -> None:
        self._optimizer = optimizer

    def entries(self, target: Shaped[Tensor, "*shape"]) -> dict[str, Tensor]:
        """Return all tensors of the state of what the optimizer updates."""
        state = {} if self._optimizer is None else self._optimizer.state.get(target, {})
        return {key: value if torch.is_tensor(value) else torch.tensor(float(value)) for key, value in state.items()}

    def entry(self, target: Shaped[Tensor, "*shape"], key: str) -> Shaped[Tensor, "*shape"]:
        """Return an entry as large as its target, made of zeros where there is none yet."""
        state = self._state(target)
        if key not in state:
            state[key] = torch.zeros_like(target, requires_grad=False)
        return state[key]

    def set_scalar(self, target: Shaped[Tensor, "*shape"], key: str, value: Shaped[Tensor, ""]) -> None:
        """Set an entry without an axis, of the kind that the optimizer has there."""
        state = self._state(target)
        counts = isinstance(state.get(key), int)
        state[key] = int(value) if counts else value.detach().clone().to(target.device)

    def _state(self, target: Tensor) -> dict[str, Any]:
        if self._optimizer is None:
            raise ValueError("there is no optimizer whose state could be set")
        return self._optimizer.state[target]


class WholeWeights(Weights):
    """Of an engine that has every parameter whole on every process.

    Args:
        named: All parameters, contiguous.
        optimizer: Over the trained ones.
        owned: This process writes them.
    """

    cut = False

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        optimizer: torch.optim.Optimizer | None = None,
        *,
        owned: bool = True,
    ) -> None:
        self._parameters = dict(named)
        self._state = StateOf(optimizer)
        fragments = {
            name: Fragment(name=name, start=0, stop=p.numel(), owned=owned) for name, p in self._parameters.items()
        }
        super().__init__(
            {name: p.shape for name, p in self._parameters.items()},
            [[fragments[name] for name, p in self._parameters.items() if p.requires_grad]],
            [fragments[name] for name, p in self._parameters.items() if not p.requires_grad],
        )

    def weight(self, fragment: Fragment) -> Shaped[Tensor, " n"]:
        """Return a view of the parameter."""
        return flat(self._parameters[fragment.name])

    def entries(self, fragment: Fragment) -> dict[str, Tensor]:
        """Return views of the optimizer's entries."""
        found = self._state.entries(self._parameters[fragment.name])
        return {key: flat(value) if value.ndim else value for key, value in found.items()}

    def set_entry(self, fragment: Fragment, entry: str, value: Shaped[Tensor, "*n"]) -> None:
        """Put a range or a scalar in the place of the optimizer's."""
        parameter = self._parameters[fragment.name]
        if value.ndim:
            flat(self._state.entry(parameter, entry)).copy_(value)
        else:
            self._state.set_scalar(parameter, entry, value)
