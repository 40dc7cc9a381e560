"""Closed forms and an independent implementation for every score."""

import math

import numpy as np
import pytest
import torch

from wam_video.errors import ConfigError
from wam_video.evaluation import metrics


def _videos(b: int = 3, v: int = 2, f: int = 4, side: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    true = torch.rand(b, v, f, 3, side, side, generator=g)
    return (
        (true + 0.1 * torch.randn(true.shape, generator=g)).clamp(0, 1),
        true,
        torch.rand(b, v, 3, side, side, generator=g),
    )


def test_psnr_of_a_constant_error_is_its_closed_form() -> None:
    image = torch.full((2, 3, 8, 8), 0.5)
    assert metrics.psnr(image + 0.1, image) == pytest.approx([20.0, 20.0], abs=1e-4)
    assert metrics.psnr(image, image) == pytest.approx([metrics.PSNR_CAP] * 2)


def test_ssim_agrees_with_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    g = torch.Generator().manual_seed(1)
    a = torch.rand(2, 3, 24, 20, generator=g)
    b = (a + 0.2 * torch.randn(a.shape, generator=g)).clamp(0, 1)
    ours = metrics.ssim(a, b)
    for i in range(2):
        # scikit-image crops the borders itself before it takes the mean: (window - 1) / 2 pixels, i.e. valid positions.
        theirs = skimage.structural_similarity(
            a[i].double().numpy(), b[i].double().numpy(), gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, data_range=1.0, channel_axis=0,
        )  # fmt: skip
        assert ours[i].item() == pytest.approx(theirs, abs=1e-6)


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(ConfigError, match="at least 11x11"):
        metrics.ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_video_scores_equal_a_plain_loop_over_frames_and_pixels() -> None:
    predicted, true, last = _videos()
    mask = torch.ones(3, 2, 4, dtype=torch.bool)
    mask[0, 1, 2:] = False
    scores = metrics.video_scores(metrics.video_sums(predicted, true, last, mask).sum(0))
    frames = [tuple(i.tolist()) for i in mask.nonzero()]
    db = [10 * math.log10(1 / (predicted[i] - true[i]).double().square().mean().item()) for i in frames]
    moving_error, moving_count = 0.0, 0
    for b, v, f in frames:
        moving = ((true[b, v, f] - last[b, v]).abs() > 0.05).any(0)
        moving_error += ((predicted[b, v, f] - true[b, v, f]).double().square() * moving).sum().item()
        moving_count += 3 * int(moving.sum())
    assert scores["psnr"].item() == pytest.approx(np.mean(db), abs=1e-4)
    assert scores["psnr_moving"].item() == pytest.approx(10 * math.log10(moving_count / moving_error), abs=1e-4)


def test_moving_and_static_pixels_are_told_apart() -> None:
    last = torch.zeros(1, 1, 3, 16, 16)
    true = torch.zeros(1, 1, 1, 3, 16, 16)
    true[..., 0, :8, :] = 1.0  # one channel of the upper half moves
    predicted = true.clone()
    predicted[..., 8:, :] = 0.1  # and the error is below, 0.1 in every channel
    scores = metrics.video_scores(
        metrics.video_sums(predicted, true, last, torch.ones(1, 1, 1, dtype=torch.bool)).sum(0)
    )
    assert scores["psnr_moving"].item() == metrics.PSNR_CAP
    assert scores["psnr_static"].item() == pytest.approx(20.0, abs=1e-4)


def test_motion_ratio_is_zero_for_a_frozen_frame_and_one_for_the_recording() -> None:
    _, true, last = _videos()
    mask = torch.ones(3, 2, 4, dtype=torch.bool)
    frozen = last.unsqueeze(2).expand_as(true)
    assert metrics.video_scores(metrics.video_sums(frozen, true, last, mask).sum(0))["motion_ratio"].item() == 0.0
    assert metrics.video_scores(metrics.video_sums(true, true, last, mask).sum(0))["motion_ratio"].item() == 1.0


def test_masked_frames_do_not_count_even_if_they_are_not_finite() -> None:
    predicted, true, last = _videos()
    mask = torch.ones(3, 2, 4, dtype=torch.bool)
    mask[:, :, 3] = False
    expected = metrics.video_sums(predicted, true, last, mask)
    predicted[:, :, 3] = torch.nan
    assert torch.equal(metrics.video_sums(predicted, true, last, mask), expected)


def test_small_images_have_no_ssim() -> None:
    video = torch.rand(1, 1, 1, 3, 8, 8)
    scores = metrics.video_scores(
        metrics.video_sums(video, video, video[:, :, 0], torch.ones(1, 1, 1, dtype=torch.bool)).sum(0)
    )
    assert math.isnan(scores["ssim"].item())
    assert scores["psnr"].item() == metrics.PSNR_CAP


def _actions(n: int = 50) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    true = torch.randn(n, 5, 3, generator=g) * torch.tensor([1.0, 100.0, 0.01]) + torch.tensor([0.0, 5000.0, 3.0])
    predicted = true + torch.randn(true.shape, generator=g) * torch.tensor([0.5, 20.0, 0.01])
    return predicted, true, torch.ones(n, 5, 3, dtype=torch.bool)


def test_action_scores_equal_their_textbook_forms() -> None:
    predicted, true, mask = _actions()
    scale = true.flatten(0, 1).std(0)
    overall, each = metrics.action_scores(metrics.action_sums(predicted, true, mask, torch.zeros(3)).sum(0), scale)
    y, p = true.flatten(0, 1).double().numpy(), predicted.flatten(0, 1).double().numpy()
    residual, spread = np.square(y - p).sum(0), np.square(y - y.mean(0)).sum(0)
    assert each["r2"].numpy() == pytest.approx(1 - residual / spread, abs=1e-6)
    assert each["mae"].numpy() == pytest.approx(np.abs(y - p).mean(0))
    assert each["rmse"].numpy() == pytest.approx(np.sqrt(np.square(y - p).mean(0)))
    s = scale.double().numpy()
    assert overall["r2"].item() == pytest.approx(1 - (residual / s**2).sum() / (spread / s**2).sum(), abs=1e-6)
    assert overall["nrmse"].item() == pytest.approx(np.sqrt(np.square((y - p) / s).mean()))


def test_the_mean_of_the_targets_has_r2_zero_and_padding_and_constant_dimensions_do_not_dilute() -> None:
    _, true, mask = _actions()
    scale = true.flatten(0, 1).std(0)
    mean = true.flatten(0, 1).double().mean(0).expand_as(true)
    overall, _ = metrics.action_scores(metrics.action_sums(mean, true.double(), mask, torch.zeros(3)).sum(0), scale)
    assert overall["r2"].item() == pytest.approx(0.0, abs=1e-6)
    pad = torch.zeros(50, 5, 2)
    wide = [torch.cat([x, pad], dim=-1) for x in (mean, true)]
    wide_mask = torch.cat([mask, torch.tensor([True, False]).expand(50, 5, 2)], dim=-1)
    padded, each = metrics.action_scores(
        metrics.action_sums(*wide, wide_mask, torch.zeros(5)).sum(0), torch.cat([scale, torch.zeros(2)])
    )
    assert padded["nrmse"].item() == pytest.approx(overall["nrmse"].item(), abs=1e-6)
    assert math.isnan(each["r2"][3].item())
    assert each["mae"][3].item() == 0.0
    assert math.isnan(each["mae"][4].item())


def test_the_centre_changes_no_score() -> None:
    predicted, true, mask = _actions()
    scale = torch.ones(3)
    a, _ = metrics.action_scores(metrics.action_sums(predicted, true, mask, torch.zeros(3)).sum(0), scale)
    b, _ = metrics.action_scores(metrics.action_sums(predicted, true, mask, true.mean((0, 1))).sum(0), scale)
    assert a["r2"].item() == pytest.approx(b["r2"].item(), abs=1e-9)


@pytest.mark.parametrize(("factor", "shift"), [(3.0, 0.0), (0.25, 0.0), (1.0, -0.7), (-1.0, 0.0), (0.0, 0.0)])
def test_actions_in_other_units_are_off_by_as_much(factor: float, shift: float, generator: torch.Generator) -> None:
    true = torch.randn(40, 5, 2, generator=generator) * torch.tensor([1.0, 20.0])
    mask, scale = torch.ones_like(true, dtype=torch.bool), torch.tensor([1.0, 20.0])
    sums = metrics.action_sums(factor * true + shift * scale, true, mask, torch.zeros(2)).sum(0)
    deviation = true.flatten(0, 1).std(0, unbiased=False) / scale
    offset = (factor - 1) * true.flatten(0, 1).mean(0) / scale + shift
    # A constant is not a matter of units, and the opposite spreads too much by nothing: its correlation is not positive.
    spread = (factor - 1) * deviation if factor > 0 else 0 * deviation
    expected = (spread.square() + offset.square()).mean().sqrt()
    assert metrics.action_scores(sums, scale)[0]["off_scale"].item() == pytest.approx(
        expected.item(), rel=1e-6, abs=1e-6
    )


def test_samples_of_the_right_distribution_and_its_conditional_mean_are_of_the_right_scale(
    generator: torch.Generator,
) -> None:
    known, chance, other = (torch.randn(4000, 1, 3, generator=generator) for _ in range(3))
    true, mask, scale = known + chance, torch.ones(4000, 1, 3, dtype=torch.bool), torch.full((3,), 2.0**0.5)
    for right in (known + other, known, true):
        sums = metrics.action_sums(right, true, mask, torch.zeros(3)).sum(0)
        assert metrics.action_scores(sums, scale)[0]["off_scale"].item() < 0.03
    for wrong in (3 * known, 0.3 * known, known + 1):
        sums = metrics.action_sums(wrong, true, mask, torch.zeros(3)).sum(0)
        assert metrics.action_scores(sums, scale)[0]["off_scale"].item() > 0.45
