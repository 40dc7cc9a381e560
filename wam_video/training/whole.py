"""The averaged weights in one place, for the export: whole tensors on the main process's CPU, put together one by one."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from wam_video.training.build import Parts
from wam_video.training.ema import EMA
from wam_video.training.engines import Engine


class WholeParts:
    """A second set of the trained parts, without memory for its weights until they are asked for.

    Args:
        parts: As they were built, before an engine takes charge of them.
        module: What is trained, which holds some of the parts by their names.
        is_main: Only the main process has the second set.
    """

    def __init__(self, parts: Parts, module: nn.Module, *, is_main: bool) -> None:
        self._parts = parts
        names = [name for name, _ in module.named_parameters()]
        held = {name.split(".", 1)[0] for name in names} & {"transformer", "text_encoder"}
        self._names = [name for name in names if name.split(".", 1)[0] in held]
        self._blank: dict[str, nn.Module] = {name: _blank(getattr(parts, name)) for name in held} if is_main else {}

    @contextmanager
    def filled(self, engine: Engine, ema: EMA) -> Iterator[Parts | None]:
        """Give the parts with the averaged weights on the main process, None on others; every process calls it."""
        targets = {
            f"{part}.{name}": parameter
            for part, module in self._blank.items()
            for name, parameter in module.named_parameters()
        }
        pieces = _pieces(engine, ema)
        values: dict[int, nn.Parameter] = {}
        for name in self._names:
            whole = engine.gather(name, pieces.get(name, {}))
            if whole is not None:
                target = targets[name]
                values[id(target)] = nn.Parameter(whole.to(target.dtype), target.requires_grad)
        for part, module in self._blank.items():
            for name, buffer in getattr(self._parts, part).named_buffers():
                module.get_buffer(name).copy_(buffer)
        empty = [_swap(module, values) for module in self._blank.values()]
        del values
        try:
            yield replace(self._parts, **self._blank) if engine.is_main else None
        finally:
            for module, blanks in zip(self._blank.values(), empty, strict=True):
                _swap(module, blanks)


def _pieces(engine: Engine, ema: EMA) -> dict[str, dict[int, Tensor]]:
    """Return what this process contributes, by name and start: averages of what is trained, the rest as it is."""
    found: dict[str, dict[int, Tensor]] = {}
    weights = engine.weights
    for fragments, read in ((weights.trained, ema.average), (weights.frozen, weights.weight)):
        for fragment in fragments:
            if fragment.owned:
                found.setdefault(fragment.name, {})[fragment.start] = read(fragment)
    return found


def _blank(module: nn.Module) -> Any:
    """Return a copy whose parameters take no memory."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in module.parameters()
    }
    return copy.deepcopy(module, memo)


def _swap(module: nn.Module, values: dict[int, nn.Parameter]) -> dict[int, nn.Parameter]:
    """Put parameters in the place of those with these ids; return how to take them back."""
    back: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and id(parameter) in values:
                part._parameters[name] = values[id(parameter)]
                back[id(values[id(parameter)])] = parameter
    return back
