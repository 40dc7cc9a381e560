"""Errors of video and actions, as pure functions on tensors.

Everything is first reduced to *sums* per window (squared errors, counts, ...) with one axis of named quantities, and a
score is a function of sums. So a score of many windows is the function of the added sums, and a bootstrap over episodes
(`intervals`) adds other multisets of the same sums: no score is ever averaged where it should be pooled.

Two kinds of PSNR live here, and they differ: `psnr` is the mean over frames of each frame's dB (the convention of the
video prediction literature); `psnr_moving` and `psnr_static` are the dB of the squared error pooled over all such pixels,
because a frame may have hardly any moving pixel.
"""

from collections.abc import Mapping

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import conv2d

from wam_video.errors import ConfigError

MOVING_THRESHOLD = 0.05
"""A pixel moves where any channel differs from the last context frame by more than this share of the range."""

PSNR_CAP = 100.0
"""dB of two equal images, which would be infinite."""

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5

VIDEO_SUMS = (
    "frames",
    "db",
    "ssim_frames",
    "ssim",
    "se_moving",
    "n_moving",
    "se_static",
    "n_static",
    "motion",
    "true_motion",
)
ACTION_SUMS = ("n", "absolute", "squared", "target", "target2", "predicted", "predicted2")


def psnr(predicted: Float[Tensor, "*n c h w"], true: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n"]:
    """Return the peak signal-to-noise ratio in dB of each image in [0, 1], at most `PSNR_CAP`."""
    return decibel(reduce((predicted - true).double().square(), "... c h w -> ...", "mean"))


def decibel(mse: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return -10 log10 of a mean squared error of signals in [0, 1], at most `PSNR_CAP`."""
    return (-10 * torch.log10(mse)).clamp(max=PSNR_CAP)


def ssim(predicted: Float[Tensor, "n c h w"], true: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Return the structural similarity of each image in [0, 1] (Wang et al. 2004).

    Gaussian window of 11 x 11 with sigma 1.5, C1 = 0.01^2, C2 = 0.03^2, population covariance, valid positions only, mean
    over channels: `skimage.metrics.structural_similarity(gaussian_weights=True, use_sample_covariance=False)`.

    Raises:
        ConfigError: The images are smaller than the window.
    """
    n, c, h, w = true.shape
    if min(h, w) < SSIM_WINDOW:
        raise ConfigError(f"images of {h}x{w} pixels; SSIM needs at least {SSIM_WINDOW}x{SSIM_WINDOW}; leave it out")
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64, device=true.device) - SSIM_WINDOW // 2
    row = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    row = row / row.sum()

    def blur(x: Tensor) -> Tensor:
        flat = rearrange(x, "n c h w -> (n c) 1 h w")
        flat = conv2d(conv2d(flat, rearrange(row, "k -> 1 1 k 1")), rearrange(row, "k -> 1 1 1 k"))
        return rearrange(flat, "(n c) 1 h w -> n c h w", n=n, c=c)

    x, y = predicted.double(), true.double()
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    local = ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return reduce(local, "n c h w -> n", "mean")


def moving_mask(future: Float[Tensor, "*n f c h w"], last: Float[Tensor, "*n c h w"]) -> Bool[Tensor, "*n f h w"]:
    """Return where the true future differs from the last context frame (videos in [0, 1])."""
    return ((future - last.unsqueeze(-4)).abs() > MOVING_THRESHOLD).any(dim=-3)


def video_sums(
    predicted: Float[Tensor, "b v f c h w"],
    true: Float[Tensor, "b v f c h w"],
    last: Float[Tensor, "b v c h w"],
    mask: Bool[Tensor, "b v f"],
) -> Float[Tensor, "b k f"]:
    """Return the sums of `VIDEO_SUMS` for each window and future frame, added over views (float64).

    Args:
        predicted: Generated future frames in [0, 1].
        true: Recorded ones.
        last: The last context frame.
        mask: True where a future frame was recorded.
    """
    moving = moving_mask(true, last)
    error = reduce((predicted - true).double().square(), "b v f c h w -> b v f h w", "sum")
    channels = true.shape[3]
    weight = mask.double()
    structure = torch.zeros_like(weight)
    has_ssim = min(true.shape[-2:]) >= SSIM_WINDOW
    if has_ssim:
        flat = [rearrange(x, "b v f c h w -> (b v f) c h w") for x in (predicted, true)]
        structure = ssim(*flat).reshape(weight.shape)

    def change(video: Tensor) -> Tensor:
        return reduce((video - last.unsqueeze(2)).double().abs(), "b v f c h w -> b v f h w", "sum")

    def count(x: Tensor) -> Tensor:
        return reduce(x.double(), "b v f h w -> b v f", "sum")

    values = {
        "frames": torch.ones_like(weight),
        "db": psnr(predicted, true),
        "ssim_frames": torch.full_like(weight, float(has_ssim)),
        "ssim": structure,
        "se_moving": count(error * moving),
        "n_moving": count(moving) * channels,
        "se_static": count(error * ~moving),
        "n_static": count(~moving) * channels,
        "motion": count(change(predicted) * moving),
        "true_motion": count(change(true) * moving),
    }
    stacked = torch.stack([values[name] for name in VIDEO_SUMS], dim=1)
    return reduce(torch.where(mask[:, None], stacked, 0.0), "b k v f -> b k f", "sum")


def video_scores(sums: Float[Tensor, "*n k f"]) -> dict[str, Float[Tensor, "*n"]]:
    """Return the scores of added `video_sums`; NaN where nothing was counted.

    `psnr` (mean of the frames' dB), `ssim`, `psnr_moving` and `psnr_static` (dB of the pooled squared error), and
    `motion_ratio`: how much the moving pixels differ from the last context frame as generated, over how much as recorded:
    0 for a frozen frame, 1 for the recording.
    """
    s = dict(zip(VIDEO_SUMS, sums.double().sum(dim=-1).unbind(dim=-1), strict=True))
    return {
        "psnr": s["db"] / s["frames"],
        "psnr_moving": decibel(s["se_moving"] / s["n_moving"]),
        "psnr_static": decibel(s["se_static"] / s["n_static"]),
        "ssim": s["ssim"] / s["ssim_frames"],
        "motion_ratio": s["motion"] / s["true_motion"],
    }


def action_sums(
    predicted: Float[Tensor, "b ta da"],
    true: Float[Tensor, "b ta da"],
    mask: Bool[Tensor, "b ta da"],
    centre: Float[Tensor, " da"],
) -> Float[Tensor, "b k ta da"]:
    """Return the sums of `ACTION_SUMS` for each window, step and dimension (float64).

    Args:
        predicted: Actions in physical units.
        true: Recorded ones.
        mask: True where an action was recorded.
        centre: Subtracted from both before they are squared, for precision alone; any value gives the same scores.
    """
    y, p = true.double() - centre.double(), predicted.double() - centre.double()
    error = predicted.double() - true.double()
    values = {
        "n": torch.ones_like(y),
        "absolute": error.abs(),
        "squared": error.square(),
        "target": y,
        "target2": y.square(),
        "predicted": p,
        "predicted2": p.square(),
    }
    stacked = torch.stack([values[name] for name in ACTION_SUMS], dim=1)
    return torch.where(mask[:, None], stacked, 0.0)


def action_scores(
    sums: Float[Tensor, "*n k ta da"], scale: Float[Tensor, " da"]
) -> tuple[dict[str, Float[Tensor, "*n"]], dict[str, Float[Tensor, "*n da"]]]:
    """Return the scores of added `action_sums`: over all dimensions, and of each dimension.

    Over all: `nrmse`, the root of the mean squared error after each dimension is divided by its `scale`, and `r2`, which
    is 1 - (squared error) / (squared distance of the targets from their own mean), both added over dimensions after that
    division, i.e. the mean of the dimensions' R2 weighted by their variance in such units: metres and radians count
    alike; and `off_scale` (see there). Of each dimension: `mae` and `rmse` in physical units, `r2`. R2 is against the mean action of the very targets
    that are scored, not of the training set. NaN where nothing was counted or the targets don't vary.

    Args:
        sums: From `action_sums`, added over windows (and kept apart over steps, which are pooled here).
        scale: Standard deviation of each dimension in training; dimensions where it is 0 only count in `mae` and `rmse`.
    """
    s: dict[str, Tensor] = dict(zip(ACTION_SUMS, sums.double().sum(dim=-2).unbind(dim=-2), strict=True))
    spread = (s["target2"] - s["target"].square() / s["n"]).clamp(min=0)
    spread = torch.where(spread > 1e-12 * s["target2"], spread, 0.0)
    varies = scale > 0
    weight = torch.where(varies, 1 / torch.where(varies, scale, 1.0).double().square(), 0.0)

    def ratio(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(b > 0, a / b, torch.nan)

    def added(x: Tensor) -> Tensor:
        return torch.nan_to_num(x * weight).sum(dim=-1)

    overall = {
        "nrmse": ratio(added(s["squared"]), torch.where(varies, s["n"], 0.0).sum(dim=-1)).sqrt(),
        "r2": 1 - ratio(added(s["squared"]), added(spread)),
        "off_scale": off_scale(s, weight),
    }
    each = {
        "mae": ratio(s["absolute"], s["n"]),
        "rmse": ratio(s["squared"], s["n"]).sqrt(),
        "r2": 1 - ratio(s["squared"], spread),
    }
    return overall, each


def off_scale(sums: Mapping[str, Float[Tensor, "*n da"]], weight: Float[Tensor, " da"]) -> Float[Tensor, "*n"]:
    """Return how far actions are off in mean and scale, in standard deviations of training, root mean square over dimensions.

    Neither samples from the right distribution nor its conditional mean are off: the former spread as the recorded actions do,
    the latter as much of it as they correlate with. What spreads more than the first or less than the second is off by the
    difference, and a shift counts in full. An exact answer in units that are k times too large is off by |k - 1| deviations.

    Args:
        sums: Quantities of `ACTION_SUMS`.
        weight: 1 / variance in training; 0 for dimensions that don't count.
    """
    n, mean_y, mean_p = sums["n"], sums["target"] / sums["n"], sums["predicted"] / sums["n"]
    deviation_y = (sums["target2"] / n - mean_y.square()).clamp(min=0).sqrt()
    deviation_p = (sums["predicted2"] / n - mean_p.square()).clamp(min=0).sqrt()
    product = (sums["predicted2"] + sums["target2"] - sums["squared"]) / (2 * n) - mean_p * mean_y
    # The scale 1e-9 is below any action's precision: a constant answer correlates with nothing.
    explained = torch.where(deviation_p > 1e-9 * deviation_y, product / deviation_p, 0.0)
    too_wide, too_narrow = (deviation_p - deviation_y).clamp(min=0), (explained - deviation_p).clamp(min=0)
    off = ((mean_p - mean_y).square() + too_wide.square() + too_narrow.square()) * weight
    counts = ((weight > 0) & (n > 0)).sum(dim=-1)
    return (torch.nan_to_num(off).sum(dim=-1) / torch.where(counts > 0, counts, torch.nan)).sqrt()
