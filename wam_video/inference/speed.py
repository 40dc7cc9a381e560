"""Making a pipeline's network faster than as it is written: compiled, replayed as CUDA graphs, with smaller weights.

Compiled blocks and graphs compute what the network computes, up to rounding. Quantization changes its answers: `wam-video
bench policy --data` says by how much (a way with `quantize=`). This is the only module that imports torchao.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wam_video.errors import ConfigError, MissingDependencyError, one_of
from wam_video.models.adapters import has_adapter
from wam_video.models.transformer import WAMTransformer
from wam_video.tensors import Prediction

if TYPE_CHECKING:
    from wam_video.inference.opening import Acting
    from wam_video.inference.pipeline import WAMPipeline

COMPILATIONS = ("none", "default", "graphs")
QUANTIZATIONS = ("none", "int8", "fp8")
DTYPES = ("float32", "bfloat16", "float16")
FP8_CAPABILITY = (8, 9)
"""Compute capability from which on a GPU multiplies 8-bit floats: Ada, Hopper and later."""
_FP8_MULTIPLE = 16
"""Of which the widths of a layer have to be, or the GPU's kernel does not take it."""
_GRAPHS = 64
"""Graphs of one piece of code, before torch gives up: torch's own 8 would be few for networks of several towers and masks."""


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """How the network is run."""

    compile: str = "none"
    """`default`: each block is compiled. `graphs`: the whole network is, and what it launches is recorded as a CUDA graph for
    each shape, so one for each filling of a causal network's window; needs CUDA."""
    quantization: str = "none"
    """Of the blocks' linear layers: `int8` weights, or `fp8` weights and activations (each row of them by its own scale)."""
    dtype: str | None = None
    """Of all parts but the fp8 or int8 layers; None: as they were loaded."""
    backend: str = "inductor"
    """Of torch.compile; `aot_eager` traces and makes no machine code."""

    def __post_init__(self) -> None:
        if self.compile not in COMPILATIONS:
            raise ConfigError(one_of("compile", self.compile, COMPILATIONS))
        if self.quantization not in QUANTIZATIONS:
            raise ConfigError(one_of("quantization", self.quantization, QUANTIZATIONS))
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(one_of("dtype", self.dtype, DTYPES))

    @property
    def changes_network(self) -> bool:
        """Whether more is done than casting."""
        return (self.compile, self.quantization) != ("none", "none")


def speed_up(pipe: "Acting", config: SpeedConfig) -> dict[str, Any]:
    """Have a pipeline's network run as the configuration says, from now on; call it on the device where it will run.

    Args:
        pipe: On its device. One that is sped up can't be saved or sped up again.
        config: How.

    Returns:
        For records: `compile`, `quantization`, `dtype`, `quantized_layers`, `weights_mb` of the network, and the version of
        torchao if it has worked.

    Raises:
        ConfigError: The device or the network can't do it; nothing has changed then.
        MissingDependencyError: Quantization needs torchao.
    """
    network, device = pipe.transformer, pipe.transformer.device
    _check_device(config, device, str(config.dtype or network.dtype).removeprefix("torch."))
    ours = _check_network(network) if config.changes_network else None
    if config.dtype is not None:
        pipe.to(getattr(torch, config.dtype))
    layers = 0 if ours is None or config.quantization == "none" else quantize(ours, config.quantization)
    if ours is not None and config.compile == "default":
        _compile_blocks(ours, config.backend)
    elif ours is not None and config.compile == "graphs":
        ours.forward = Replayed(ours.forward, compiled(ours.forward, mode="reduce-overhead"))
    facts: dict[str, Any] = {
        "compile": config.compile,
        "quantization": config.quantization,
        "dtype": str(network.dtype).removeprefix("torch."),
        "quantized_layers": layers,
        "weights_mb": round(weight_bytes(network) / 2**20, 3),
    }
    return facts | ({"torchao": version("torchao")} if layers else {})


def faster_copy(pipe: "WAMPipeline", config: SpeedConfig) -> "WAMPipeline":
    """Return a pipeline with a network of its own that is run as the configuration says; it shares the other parts.

    Raises:
        ConfigError: As of `speed_up`.
    """
    copy = type(pipe)(**{**pipe.components, "transformer": deepcopy(pipe.transformer)})
    copy.set_progress_bar_config(disable=True)
    speed_up(copy, config)
    return copy


def _check_network(network: nn.Module) -> WAMTransformer:
    if not isinstance(network, WAMTransformer):
        raise ConfigError(
            f"compile and quantization are for world action models, and the network is a {type(network).__name__}; leave them out"
        )
    if has_adapter(network):
        raise ConfigError(
            "the network has an adapter beside its weights; load it with merge=True to compile or quantize the network"
        )
    if isinstance(network.__dict__.get("forward"), Replayed) or any(b._compiled_call_impl for b in network.blocks):
        raise ConfigError("the network is sped up already; load the checkpoint again to run it in another way")
    if network.training:
        raise ConfigError("the network is being trained; call eval() on it before it is compiled or quantized for use")
    return network


def _check_device(config: SpeedConfig, device: torch.device, dtype: str) -> None:
    """Refuse what the device can't do."""
    if config.compile == "graphs" and device.type != "cuda":
        raise ConfigError(
            f"compile is 'graphs', but the network is on {device.type}, and CUDA graphs need a CUDA device; allowed here: "
            "none, default"
        )
    if config.quantization != "none" and find_spec("torchao") is None:
        raise MissingDependencyError("torchao", "speed", f"quantization {config.quantization!r}")
    if config.quantization != "fp8":
        return
    needed = ".".join(map(str, FP8_CAPABILITY))
    if device.type != "cuda":
        raise ConfigError(
            f"quantization is 'fp8', which needs a GPU of compute capability {needed} or more, and the network is on "
            f"{device.type}; allowed here: none, int8"
        )
    has = torch.cuda.get_device_capability(device)
    if has < FP8_CAPABILITY:
        raise ConfigError(
            f"quantization is 'fp8', which needs a GPU of compute capability {needed} or more, and {torch.cuda.get_device_name(device)} "
            f"has {has[0]}.{has[1]}; allowed here: none, int8"
        )
    if dtype != "bfloat16":
        raise ConfigError(
            f"quantization is 'fp8', whose other layers must be bfloat16, and dtype is {dtype!r}; give bfloat16"
        )


# Smaller weights


def quantize(network: WAMTransformer, kind: str) -> int:
    """Replace the weights of the blocks' linear layers; embeddings, clocks, bodies' layers and heads stay as they are.

    Args:
        network: Changed.
        kind: `int8` or `fp8`.

    Returns:
        Number of layers.

    Raises:
        ConfigError: No layer is of a width that this kind can take.
    """
    with _quiet():
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig as Float8
        from torchao.quantization import Int8WeightOnlyConfig, PerRow, quantize_

    def wanted(module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Linear) or not name.startswith(("blocks.", "expert.blocks.")):
            return False
        return kind == "int8" or not (module.in_features % _FP8_MULTIPLE or module.out_features % _FP8_MULTIPLE)

    layers = sum(wanted(module, name) for name, module in network.named_modules())
    if not layers:
        raise ConfigError(
            f"quantization is {kind!r}, but no linear layer of the blocks has widths that are multiples of {_FP8_MULTIPLE}; "
            "allowed here: none, int8"
        )
    # torchao would set options of the compiler for the whole process
    int8 = Int8WeightOnlyConfig(set_inductor_config=False)
    with _quiet():
        quantize_(network, int8 if kind == "int8" else Float8(granularity=PerRow(), set_inductor_config=False), wanted)
    return layers


def weight_bytes(network: nn.Module) -> int:
    """Return the memory that a network's parameters and buffers take, those of quantized layers included."""
    return sum(_bytes(tensor) for tensor in (*network.parameters(), *network.buffers()))


def _bytes(tensor: Tensor) -> int:
    parts = getattr(tensor, "__tensor_flatten__", None)  # of a tensor that is made of others
    if parts is not None:
        return sum(_bytes(getattr(tensor, name)) for name in parts()[0])
    return tensor.numel() * tensor.element_size()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torchao from warning of kernels for other machines, which it looks for when it is imported."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


# Compiled


def _compile_blocks(network: WAMTransformer, backend: str) -> None:
    """Compile each block as one graph.

    All blocks are one piece of code, so they share what is compiled. Sizes that change (rows, the filling of a window) become
    symbols when they first do: a server whose robots come and go would else wait for the compiler at every new number of them.
    """
    for block in network.blocks:
        block.compile(fullgraph=True, backend=backend, recompile_limit=_GRAPHS)


def compiled(forward: Callable[..., Prediction], **options: Any) -> Callable[..., Prediction]:
    """Return a network's `forward`, compiled as one graph; `options` are those of torch.compile."""
    return torch.compile(forward, fullgraph=True, recompile_limit=_GRAPHS, **options)  # type: ignore[call-overload] - the stub lacks recompile_limit


class Replayed:
    """A compiled `forward` whose outputs lie in memory that its next call writes over: they are copied out.

    Keys and values of a cache are told to be where they are in the next call too, for a graph that reads them in place; without
    that all of them would be copied before every step. `observe` and gradients (continuation `guided`) take the plain network.

    Args:
        plain: As it is written.
        graph: The same, compiled.
    """

    def __init__(self, plain: Callable[..., Prediction], graph: Callable[..., Prediction]) -> None:
        self.plain, self._graph = plain, graph

    def __call__(self, **inputs: Any) -> Prediction:
        """Return what the network predicts; arguments as of `WAMTransformer.forward`."""
        if torch.is_grad_enabled():
            return self.plain(**inputs)
        cache = inputs.get("cache")
        for layer in () if cache is None else cache.layers:
            for tensor in (layer.key, layer.value):
                torch._dynamo.mark_static_address(tensor, guard=False)  # a new session's are recorded anew
        torch.compiler.cudagraph_mark_step_begin()
        made = self._graph(**inputs)
        video, actions = (None if part is None else part.clone() for part in (made.video, made.actions))
        return Prediction(video=video, actions=actions)
