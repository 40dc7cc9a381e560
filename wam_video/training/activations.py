"""What of the blocks' activations is kept for the backward pass, and blocks that are compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from wam_video.errors import ConfigError
from wam_video.models.transformer import WAMTransformer

_KEPT = ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm", "convolution", "flex_attention")
"""Operators whose outputs `selective` keeps, beside all kinds of `scaled_dot_product_attention`: those that cost."""


def checkpoint_activations(network: WAMTransformer, kind: str) -> None:
    """Have the blocks of a network keep less for the backward pass, which computes the rest again; no bit changes.

    Args:
        network: In which each block is a unit.
        kind: `none`; `full`: a block keeps its inputs only, and is computed twice; `selective`: it keeps what its matrix
            products and attentions came to as well, so that only what costs little is computed twice (norms, activation
            functions, rotations, modulations).
    """
    if kind == "none":
        return
    if kind == "full":
        network.enable_gradient_checkpointing()
        return
    contexts = partial(create_selective_checkpoint_contexts, _policy)

    def run(block: nn.Module, *args: Any) -> Any:
        return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=contexts)

    network.enable_gradient_checkpointing(run)


def _policy(_context: Any, operator: Any, *_args: Any, **_named: Any) -> CheckpointPolicy:
    name = operator.name().removeprefix("aten::").partition(".")[0] if hasattr(operator, "name") else str(operator)
    costs = name in _KEPT or name.startswith("_scaled_dot_product")
    return CheckpointPolicy.MUST_SAVE if costs else CheckpointPolicy.PREFER_RECOMPUTE


def compile_blocks(network: nn.Module, *, backend: str = "inductor") -> None:
    """Compile the forward of every block by itself, each as one graph; call it before an engine takes the network.

    What runs around a block (an engine's gathering of weights, a teacher's reading) stays outside of its graph, for only
    `forward` is compiled and hooks are called around it.

    Args:
        network: Ours.
        backend: Of torch.compile.

    Raises:
        ConfigError: The network has no blocks of the kind that compiles whole.
    """
    if not isinstance(network, WAMTransformer):
        raise ConfigError(
            f"compile is true, but the network is a {type(network).__name__}; allowed: false, or network=wam"
        )
    for block in network.blocks:
        forward: Callable[..., Any] = torch.compile(block.forward, fullgraph=True, backend=backend)
        block.forward = forward
