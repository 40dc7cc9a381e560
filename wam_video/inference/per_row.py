"""Numbers of a call, one row a sample: each as wide as its body, finite, float32."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from wam_video.errors import ConfigError


def one_each(what: str, given: Any, widths: list[int], embodiments: tuple[str, ...], *, ndim: int) -> list[Tensor]:
    """Split `[b] ... width` into one tensor a sample, each as wide as its embodiment.

    A list holds one array a sample; an array is as wide as the widest embodiment of the call.

    Raises:
        ConfigError: There are more or fewer rows, they are of another width, or hold no finite numbers.
    """
    if isinstance(given, list | tuple) and given and isinstance(given[0], np.ndarray | Tensor):
        rows = [_as_float(what, row) for row in given]
        offered = [row.shape[-1] if row.ndim else 0 for row in rows]
    else:
        array = _as_float(what, given)
        array = array[None] if array.ndim == ndim else torch.atleast_1d(array)
        rows = list(array)
        extra = array.shape[-1] - max(widths) if array.ndim else 0
        offered = [width + extra for width in widths]
    if len(rows) != len(widths) or any(row.ndim != ndim for row in rows):
        shape = "[b] ta da" if ndim == 2 else "[b] ds"
        raise ConfigError(
            f"{what} is {len(rows)} rows of shape {tuple(rows[0].shape) if rows else ()} for {len(widths)} samples; give {shape!r}"
        )
    for name, width, columns in zip(embodiments, widths, offered, strict=True):
        if columns != width:
            raise ConfigError(
                f"{what} is {columns} wide; embodiment {name!r} has {width} dimensions: give exactly these"
            )
    return [row[..., :width] for row, width in zip(rows, widths, strict=True)]


def _as_float(what: str, values: Any) -> Tensor:
    try:
        tensor = (
            values.detach().cpu().float()
            if isinstance(values, Tensor)
            else torch.as_tensor(np.asarray(values, np.float32))
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what} is no array of numbers ({error}); give float32") from error
    if not bool(torch.isfinite(tensor).all()):
        raise ConfigError(f"{what} holds numbers that are not finite; allowed: finite numbers in physical units")
    return tensor
