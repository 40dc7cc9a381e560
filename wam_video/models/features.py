"""What a network makes of observed frames: the hidden tokens of one block, read by a hook that lives as long as the call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d


@contextmanager
def first_output(block: nn.Module) -> Iterator[Callable[[], Float[Tensor, "b n d"]]]:
    """Read the first stream of tokens that a block puts out at its first call while the context lasts.

    Where a network has a cache, that call is the one that observes the context; else it is the first step of a path. Either way
    the tokens of the context's frames come first.

    Yields:
        What returns the tokens; it raises RuntimeError if the block was not called.
    """
    read: list[Tensor] = []

    def keep(_block: nn.Module, _inputs: Any, output: Any) -> None:
        if not read:
            read.append(output[0].detach())

    def tokens() -> Tensor:
        if not read:
            raise RuntimeError("the block was not run as a module, so its hook was not called")
        return read[0]

    handle = block.register_forward_hook(keep)
    try:
        yield tokens
    finally:
        handle.remove()


def pool_frame(
    tokens: Float[Tensor, "b n d"], frame: int, grid: tuple[int, int, int], side: int
) -> Float[Tensor, "b p"]:
    """Return the features of one frame: its tokens averaged on a coarse grid of each view.

    Args:
        tokens: Frame by frame, all views and sites of a frame together; more may follow.
        frame: Which frame, in tokens.
        grid: Views, rows and columns of a frame's tokens.
        side: Rows and columns of the coarse grid, at most.
    """
    views, rows, columns = grid
    per_frame = views * rows * columns
    site = tokens[:, frame * per_frame : (frame + 1) * per_frame]
    maps = rearrange(site, "b (v h w) d -> (b v) d h w", v=views, h=rows, w=columns)
    pooled = adaptive_avg_pool2d(maps.float(), (min(side, rows), min(side, columns)))
    return rearrange(pooled, "(b v) d h w -> b (v d h w)", v=views)
