"""Where ZeRO keeps the float32 weights and the optimizer's entries of this process, as fragments of parameters.

DeepSpeed lays the parameters of a group end to end and cuts that line: into one piece a process (stages 1 and 2), or each
parameter into as many pieces as there are processes, a process's pieces laid end to end again (stage 3). The torch optimizer
updates these lines, so its counts of steps are a line's and not a parameter's.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from wam_video.errors import ConfigError
from wam_video.training.engines.weights import Fragment, StateOf, Weights, flat


class _LineWeights(Weights):
    """What both layouts share: a fragment is a range of a line.

    Args:
        optimizer: DeepSpeed's, around torch's.
        shapes: Of every parameter, before DeepSpeed took it.
        places: Index of the line and offset in it of every trained fragment, in the order of the lines.
        frozen: What is not trained, flat.
    """

    counts_together = True

    def __init__(
        self,
        optimizer: Any,
        shapes: Mapping[str, torch.Size],
        places: Mapping[Fragment, tuple[int, int]],
        frozen: Mapping[Fragment, Tensor],
    ) -> None:
        self._zero = optimizer
        self._state = StateOf(optimizer.optimizer)
        self._places = dict(places)
        self._still = dict(frozen)
        super().__init__(shapes, self._blocks(), list(frozen))

    def weight(self, fragment: Fragment) -> Shaped[Tensor, " n"]:
        """Return a view of the float32 weight, or of the frozen one as it is."""
        if fragment in self._still:
            return self._still[fragment]
        return self._cut(self._line(fragment), fragment)

    def entries(self, fragment: Fragment) -> dict[str, Tensor]:
        """Return views of the optimizer's entries."""
        found = self._state.entries(self._line(fragment))
        return {key: self._cut(value, fragment) if value.ndim else value for key, value in found.items()}

    def set_entry(self, fragment: Fragment, entry: str, value: Shaped[Tensor, "*n"]) -> None:
        """Put a range or a scalar in the place of the optimizer's."""
        line = self._line(fragment)
        if value.ndim:
            self._cut(self._state.entry(line, entry), fragment).copy_(value)
        else:
            self._state.set_scalar(line, entry, value)

    def _blocks(self) -> list[list[Fragment]]:
        return [list(self._places)]

    @abstractmethod
    def _lines(self) -> Sequence[Tensor]:
        """Return the lines of the float32 weights."""

    def _line(self, fragment: Fragment) -> Tensor:
        return self._lines()[self._places[fragment][0]]

    def _cut(self, line: Tensor, fragment: Fragment) -> Tensor:
        return flat(line).narrow(0, self._places[fragment][1], fragment.numel)


class Zero12Weights(_LineWeights):
    """Of stages 1 and 2, which leave the parameters whole and cut the lines of their float32 copies.

    Args:
        optimizer: DeepSpeed's.
        named: All parameters.
        owned: This process writes those that are not trained, which all have.
    """

    def __init__(self, optimizer: Any, named: Mapping[str, nn.Parameter], *, owned: bool) -> None:
        places, frozen = {}, {}
        for name, parameter in named.items():
            if not parameter.requires_grad:
                frozen[Fragment(name=name, start=0, stop=parameter.numel(), owned=owned)] = flat(parameter)
                continue
            mapping: Any = getattr(parameter, "_hp_mapping", None)
            if mapping is not None:
                here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                fragment = Fragment(name=name, start=here.start, stop=here.start + here.numel)
                places[fragment] = (mapping.param_group_index, there.start)
        super().__init__(optimizer, {name: p.shape for name, p in named.items()}, places, frozen)

    def refresh(self) -> None:
        """Copy the lines into the parameters, and let all processes have all of them."""
        self._zero.update_lp_params()

    def _lines(self) -> Sequence[Tensor]:
        return self._zero.single_partition_of_fp32_groups


class Zero3Weights(_LineWeights):
    """Of stage 3, which cuts each parameter; lines that DeepSpeed keeps on disk come into memory one at a time.

    Args:
        optimizer: DeepSpeed's.
        named: All parameters, which DeepSpeed has emptied.
        shapes: What they were before.
        rank: Of this process.
    """

    def __init__(
        self, optimizer: Any, named: Mapping[str, nn.Parameter], shapes: Mapping[str, torch.Size], rank: int
    ) -> None:
        places, frozen = {}, {}
        for name, parameter in named.items():
            piece: Any = parameter.ds_tensor  # type: ignore[attr-defined] - DeepSpeed's
            start = rank * piece.ds_numel
            stop = min(start + piece.ds_numel, shapes[name].numel())
            if start >= stop:
                continue
            fragment = Fragment(name=name, start=start, stop=stop)
            if parameter.requires_grad:
                line, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
                places[fragment] = (line, offset)
            elif piece.status.name == "AVAILABLE":
                frozen[fragment] = flat(piece)[: stop - start]
            else:
                raise ConfigError(
                    f"{name} is not trained, and offload_param.device is 'nvme', where only trained weights may be; set it to cpu"
                )
        places = dict(sorted(places.items(), key=lambda item: item[1]))
        super().__init__(optimizer, shapes, places, frozen)

    @contextmanager
    def open(self, block: Sequence[Fragment], *, write: bool = False) -> Iterator[None]:
        """Have a block at hand; one on disk is read, and `write` writes it back."""
        line = self._places[block[0]][0] if block else 0
        if not block or not self._zero._swappable_optimizer_subgroup(line):
            yield
            return
        self._zero._optimizer_states_and_gradient_swap_in(line)
        yield
        if write:
            self._zero._reassign_or_swap_out_partitioned_parameters(line)
            self._zero._optimizer_states_and_gradient_swap_out(line)
        else:
            self._zero._release_swap_buffers(line)

    def refresh(self) -> None:
        """Copy the lines into the pieces of the parameters, and drop what was put together from the old ones."""
        self._zero._partition_all_parameters()
        kept = self._zero.persistent_parameters
        if kept:
            kept[0].partition(kept)
        for line in range(len(self._lines())):
            if not self._zero._swappable_optimizer_subgroup(line):
                self._zero._reassign_or_swap_out_partitioned_parameters(line)
        self._zero.invalidate_secondary_tensor()
        if kept:
            kept[0].all_gather(kept)

    def _blocks(self) -> list[list[Fragment]]:
        if not self._zero.swap_optimizer:
            return [list(self._places)]
        lines: dict[int, list[Fragment]] = {}
        for fragment, (line, _) in self._places.items():
            lines.setdefault(line, []).append(fragment)
        return list(lines.values())

    def _lines(self) -> Sequence[Tensor]:
        return self._zero.fp32_partitioned_groups_flat
