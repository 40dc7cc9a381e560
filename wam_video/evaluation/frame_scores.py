"""Scores of generated frames by camera and by step into the future: `metrics.video_sums` and what needs more than pixels."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from wam_video.data.optical_flow import endpoint_error, optical_flow
from wam_video.errors import MissingDependencyError
from wam_video.evaluation.intervals import BootstrapConfig, Estimate, estimate
from wam_video.evaluation.metrics import VIDEO_SUMS, moving_mask, video_scores, video_sums
from wam_video.tensors import Batch

FrameMetric = Callable[[Float[Tensor, "n 3 h w"], Float[Tensor, "n 3 h w"]], Float[Tensor, " n"]]
"""From pictures in [0, 1] and others to a distance of each pair."""

EXTRA_SUMS = ("epe", "n_epe", "epe_moving", "n_epe_moving", "lpips", "n_lpips")
METRICS = {
    "psnr_moving": True, "psnr": True, "ssim": True, "flow_epe_moving": False, "flow_epe": False, "lpips": False,
}  # fmt: skip
"""Metric -> whether more is better."""
UNITS = {"psnr": "dB", "psnr_moving": "dB", "flow_epe": "px", "flow_epe_moving": "px"}


def clip_frames(video: UInt8[Tensor, "b v c f h w"]) -> Float[Tensor, "b v f c h w"]:
    """Return stored frames as the modes give them: in [0, 1], time before channels."""
    return rearrange(video, "b v c f h w -> b v f c h w").float() / 255


def to_pixels(video: Float[Tensor, "f c h w"]) -> UInt8[np.ndarray, "f h w c"]:
    """Return frames in [0, 1] as they would be stored."""
    return rearrange((video * 255).round().clamp(0, 255).to(torch.uint8), "f c h w -> f h w c").cpu().numpy()


def frame_sums(
    video: Float[Tensor, "b v f 3 h w"],
    recorded: Float[Tensor, "b v g 3 h w"],
    batch: Batch,
    distance: FrameMetric | None = None,
) -> Float[Tensor, "b k v f"]:
    """Return the sums of `VIDEO_SUMS` and `EXTRA_SUMS` of each window, camera and future frame (float64).

    The flow of a future frame is that from the frame before it; before the first one comes the last context frame, which
    is the recorded one on both sides. Without OpenCV nothing is counted of it.

    Args:
        video: Generated future frames in [0, 1].
        recorded: The whole window, g frames.
        batch: It again, with its masks.
        distance: Such as LPIPS.
    """
    k = batch.num_context_frames
    last, future = recorded[:, :, k - 1], recorded[:, :, k:]
    mask = batch.frame_mask[:, :, k:] & batch.frame_mask[:, :, k - 1 : k]
    by_view = [video_sums(*(x[:, i : i + 1] for x in (video, future, last, mask))) for i in range(video.shape[1])]
    extra = torch.zeros(*mask.shape, len(EXTRA_SUMS), dtype=torch.float64)
    moving = moving_mask(future, last)
    for i, j in mask.any(dim=-1).nonzero().tolist():
        extra[i, j, :, :4] = _flow_sums(video[i, j], future[i, j], last[i, j], moving[i, j])
        if distance is not None:
            extra[i, j, :, 4] = distance(video[i, j], future[i, j]).double().cpu()
            extra[i, j, :, 5] = 1.0
    before = torch.cat([batch.frame_mask[:, :, k - 1 : k], mask[..., :-1]], dim=-1)
    counted = torch.stack([mask & before] * 4 + [mask] * 2, dim=-1)
    extra = rearrange(torch.where(counted, extra, 0.0), "b v f k -> b k v f")
    return torch.cat([torch.stack(by_view, dim=2), extra], dim=1)


def _flow_sums(video: Tensor, future: Tensor, last: Tensor, moving: Tensor) -> Float[Tensor, "f 4"]:
    true, made = (to_pixels(torch.cat([last[None], frames])) for frames in (future, video))
    try:
        error = torch.from_numpy(endpoint_error(made, optical_flow(true)))
    except MissingDependencyError:
        return torch.zeros(len(video), 4, dtype=torch.float64)
    size = torch.full((len(video),), float(error[0].numel()), dtype=torch.float64)
    parts = (error.sum(dim=(1, 2)), size, (error * moving).sum(dim=(1, 2)), moving.double().sum(dim=(1, 2)))
    return torch.stack(parts, dim=-1)


def score(sums: Float[Tensor, "*n k f"]) -> dict[str, Float[Tensor, "*n"]]:
    """Return the scores of `METRICS` of added `frame_sums` of one camera or several; NaN where nothing was counted."""
    video = video_scores(sums[..., : len(VIDEO_SUMS), :])
    extra = dict(zip(EXTRA_SUMS, sums[..., len(VIDEO_SUMS) :, :].sum(dim=-1).unbind(dim=-1), strict=True))
    return {
        "psnr_moving": video["psnr_moving"],
        "psnr": video["psnr"],
        "ssim": video["ssim"],
        "flow_epe_moving": extra["epe_moving"] / extra["n_epe_moving"],
        "flow_epe": extra["epe"] / extra["n_epe"],
        "lpips": extra["lpips"] / extra["n_lpips"],
    }


def column_rows(
    sums: Float[Tensor, "n k v f"],
    episodes: Sequence[str],
    views: Sequence[str],
    times: Sequence[float],
    config: BootstrapConfig,
) -> list[tuple[dict[str, Any], Estimate]]:
    """Return every metric over all, by step, by camera and by both, each with the columns of its row.

    Args:
        sums: From `frame_sums`.
        episodes: Of the windows.
        views: Names of the cameras; a single one is not told apart.
        times: Seconds of the future frames.
        config: Of the intervals.
    """
    cameras: list[tuple[str | None, slice]] = [(None, slice(None))]
    if len(views) > 1:
        cameras += [(name, slice(i, i + 1)) for i, name in enumerate(views)]
    steps: list[tuple[float | None, slice]] = [(None, slice(None))]
    steps += [(t, slice(i, i + 1)) for i, t in enumerate(times)]
    parts = [(v, t, a, b) for v, a in cameras for t, b in steps]
    columns = [{"metric": m, "view": v, "time_s": t} for v, t, _, _ in parts for m in METRICS]

    def statistic(x: Tensor) -> Tensor:
        found = [score(x[..., a, b].sum(dim=-2)) for _, _, a, b in parts]
        return torch.stack([scores[m] for scores in found for m in METRICS], dim=-1)

    estimates = estimate(sums, episodes, statistic, config)
    return [(column, e) for column, e in zip(columns, estimates, strict=True) if e.value is not None]
