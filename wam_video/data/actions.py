"""Action chunks: cut from a clip, padded with zeros, with a mask of what is real."""

import numpy as np
from jaxtyping import Bool, Float, Int

_ROUNDING = 1e-6


def action_at(
    frame: int | Int[np.ndarray, " n"], fps: float, action_rate: float
) -> tuple[Int[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Return the action that starts nearest to each stored frame, and how far off it is in action periods (0 to 0.5).

    Both clocks start at 0 with the clip. Ties go to the earlier action.
    """
    exact = np.asarray(frame, np.float64) * (action_rate / fps)
    index = np.ceil(exact - 0.5 - _ROUNDING)
    return index.astype(np.int64), np.abs(exact - index)


def cut_chunk(
    actions: Float[np.ndarray, "n da"] | None,
    start: int,
    horizon: int,
    allowed: int | None = None,
    width: int | None = None,
) -> tuple[Float[np.ndarray, "ta dw"], Bool[np.ndarray, "ta dw"]]:
    """Cut `horizon` steps from `start`.

    Args:
        actions: Of the clip; None without actions.
        start: First step.
        horizon: Steps of the result.
        allowed: Steps beyond this one stay masked, for an embodiment with a shorter horizon.
        width: Columns of the result, at least the actions' own; their own by default.

    Returns:
        The chunk and its mask; zeros and False beyond the clip, beyond `allowed` and in padded columns.
    """
    dims = 0 if actions is None else actions.shape[1]
    chunk = np.zeros((horizon, dims if width is None else width), np.float32)
    mask = np.zeros(chunk.shape, np.bool_)
    if actions is not None and start >= 0:
        steps = max(0, min(horizon, horizon if allowed is None else allowed, len(actions) - start))
        chunk[:steps, :dims] = actions[start : start + steps]
        mask[:steps, :dims] = True
    return chunk, mask
