"""Scores of long rollouts: what moved, what stands still, sharpness, brightness, and change where none should be."""

import torch
from einops import rearrange, reduce
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import conv2d

from wam_video.evaluation.metrics import decibel, moving_mask, psnr

DRIFT_SUMS = ("frames", "db", "se_moving", "n_moving", "off_static", "n_static", "edges", "true_edges", "brightness")
UNITS = {
    "psnr_moving": "dB", "psnr": "dB", "static_drift": "%", "sharpness": "", "brightness_drift": "%",
    "still_change": "%/s",
}  # fmt: skip
"""Metric -> unit; the last is that of `change_sums`, the others are those of `drift_scores`."""


def drift_sums(
    video: UInt8[Tensor, "f v c h w"], true: UInt8[Tensor, "f v c h w"], last: UInt8[Tensor, "1 v c h w"]
) -> Float[Tensor, "k f"]:
    """Return the sums of `DRIFT_SUMS` for each frame, added over views (float64).

    Args:
        video: What was drawn.
        true: What happened.
        last: The last real frame before; a pixel moves where the truth differs from it.
    """
    made, real, first = (x.float() / 255 for x in (video, true, last))
    moving = moving_mask(rearrange(real, "f v c h w -> v f c h w"), first[0])
    moving = rearrange(moving, "v f h w -> f v h w")
    off = (made - real).double()
    square, absolute = (reduce(x, "f v c h w -> f v h w", "mean") for x in (off.square(), off.abs()))

    def count(x: Tensor) -> Tensor:
        return reduce(x.double(), "f v h w -> f", "sum")

    values = {
        "frames": torch.full((len(video),), float(video.shape[1])),
        "db": psnr(made, real).sum(dim=-1),
        "se_moving": count(square * moving),
        "n_moving": count(moving),
        "off_static": count(absolute * ~moving),
        "n_static": count(~moving),
        "edges": _edges(made),
        "true_edges": _edges(real),
        "brightness": off.mean(dim=(-3, -2, -1)).abs().sum(dim=-1),
    }
    return torch.stack([values[name].double() for name in DRIFT_SUMS])


def drift_scores(sums: Float[Tensor, "*n k"]) -> dict[str, Float[Tensor, "*n"]]:
    """Return the scores of added `drift_sums`; NaN where nothing was counted."""
    s = dict(zip(DRIFT_SUMS, sums.double().unbind(dim=-1), strict=True))
    return {
        "psnr_moving": decibel(s["se_moving"] / s["n_moving"]),
        "psnr": s["db"] / s["frames"],
        "static_drift": 100 * s["off_static"] / s["n_static"],
        "sharpness": s["edges"] / s["true_edges"],
        "brightness_drift": 100 * s["brightness"] / s["frames"],
    }


def change_sums(video: UInt8[Tensor, "f v c h w"], second: int) -> Float[Tensor, " 2"]:
    """Return the mean change of a pixel within `second` ticks, % of the range, added over the pairs, and their number."""
    shift = min(second, len(video) - 1)
    change = (video[shift:].double() - video[:-shift].double()).abs().mean(dim=(1, 2, 3, 4)) * 100 / 255
    return torch.stack([change.sum() * second / shift, torch.tensor(float(len(change)), dtype=torch.float64)])


def _edges(video: Float[Tensor, "f v c h w"]) -> Float[Tensor, " f"]:
    """Return the variance of the grey picture's Laplacian, added over views (Pech-Pacheco et al. 2000)."""
    grey = rearrange(video.mean(dim=2), "f v h w -> (f v) 1 h w").double()
    kernel = grey.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    found = conv2d(grey, rearrange(kernel, "h w -> 1 1 h w")).flatten(1).var(dim=1, correction=0)
    return reduce(found, "(f v) -> f", "sum", v=video.shape[1])
