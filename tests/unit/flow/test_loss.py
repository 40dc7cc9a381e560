"""Noising and masked losses: what counts, what never does."""

import torch

from wam_video.flow.loss import LossConfig, NoisySample, add_noise, bell, loss_terms, video_weights
from wam_video.flow.solvers import State
from wam_video.tensors import Prediction

B, V, C, T, TA, DA = 2, 2, 3, 4, 5, 3


def sample(t_video: float = 0.5, t_action: float = 0.5, frame_mask: torch.Tensor | None = None) -> NoisySample:
    generator = torch.Generator().manual_seed(0)
    clean = State(
        video=torch.randn(B, V, C, T, 2, 2, generator=generator), actions=torch.randn(B, TA, DA, generator=generator)
    )
    noise = State(
        video=torch.randn(B, V, C, T, 2, 2, generator=generator), actions=torch.randn(B, TA, DA, generator=generator)
    )
    action_mask = torch.ones(B, TA, DA, dtype=torch.bool)
    action_mask[1, 3:] = False
    action_mask[:, :, 2] = False
    mask = torch.ones(B, V, T, dtype=torch.bool) if frame_mask is None else frame_mask
    return add_noise(clean, noise, torch.full((B,), t_video), torch.full((B,), t_action), mask, 2, action_mask)


def terms(s: NoisySample, prediction: Prediction, **options: object):
    return loss_terms(LossConfig(**options), prediction, s, ("sample", "sample"), 2)


def test_context_is_given_and_what_was_not_recorded_is_pure_noise() -> None:
    mask = torch.ones(B, V, T, dtype=torch.bool)
    mask[0, :, 0] = mask[0, :, 3] = False
    s = sample(frame_mask=mask)
    assert s.clocks.video.tolist() == [[1.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.5, 0.5]]
    assert torch.equal(s.x_t.video[:, :, :, 1], s.clean.video[:, :, :, 1])
    assert torch.equal(s.x_t.video[0, :, :, 3], s.noise.video[0, :, :, 3])
    assert s.clocks.actions[1].tolist() == [0.5, 0.5, 0.5, 1.0, 1.0]
    assert not s.video_mask[0, :, 3].any() and not s.video_mask[:, :, :2].any()


def test_a_perfect_prediction_costs_nothing_and_padding_never_counts() -> None:
    s = sample()
    wrong_where_masked = torch.where(s.action_mask, s.clean.actions, 1e6)
    result = terms(s, Prediction(video=s.clean.video, actions=wrong_where_masked))
    assert result.video_sum.sum() == 0 and result.action_sum.sum() == 0
    assert result.action_count.tolist() == [TA * 2, 3 * 2]  # two real dims; the second sample has three real steps
    assert result.video_count.tolist() == [V * C * 2 * 4] * 2


def test_an_error_of_one_everywhere_averages_to_one() -> None:
    s = sample()
    result = terms(s, Prediction(video=s.clean.video + 1, actions=s.clean.actions + 1), motion_weight=3.0)
    torch.testing.assert_close(result.video_sum.sum() / result.video_count.sum(), torch.tensor(1.0))
    torch.testing.assert_close(result.action_sum.sum() / result.action_count.sum(), torch.tensor(1.0))


def test_given_modalities_have_no_loss() -> None:
    s = sample(t_video=0.0, t_action=0.0)
    result = terms(s, Prediction(video=s.clean.video + 1, actions=s.clean.actions + 1))
    assert result.video_count.sum() == 0 and result.action_count.sum() == 0


def test_velocity_space_weighs_a_sample_error_by_one_over_t_squared() -> None:
    s = sample(t_video=0.25, t_action=0.5)
    result = terms(s, Prediction(video=s.clean.video + 1, actions=s.clean.actions + 1), space="velocity")
    torch.testing.assert_close(result.video_sum / result.video_count, torch.full((B,), 16.0), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(result.action_sum / result.action_count, torch.full((B,), 4.0), atol=1e-3, rtol=1e-4)


def test_moving_elements_weigh_more_and_masked_ones_nothing() -> None:
    s = sample()
    s.clean.video[:] = 0
    s.clean.video[..., 3, 0, 1] = torch.tensor(
        [1.0, 0.0, 0.05]
    )  # one of three channels changes by more than the threshold
    weights = video_weights(LossConfig(motion_weight=6.0), s, num_context=2)
    assert weights[0, 0, :, 3, 0, 1].tolist() == [7.0, 1.0, 1.0]
    assert weights[..., 2, :, :].eq(1).all() and weights[..., :2, :, :].eq(0).all()


def test_balanced_windows_carry_as_much_loss_however_much_of_them_moves() -> None:
    s = sample()
    s.clean.video[:] = 0
    s.clean.video[0, ..., 2:, :, :] = 1.0  # all of the first window moves, one pixel of the second
    s.clean.video[1, ..., 3, 0, 1] = 1.0
    plain, balanced = (video_weights(LossConfig(motion_weight=6.0, balance_windows=on), s, 2) for on in (False, True))
    assert plain[0].sum() > 3 * plain[1].sum()
    scored = float(V * C * 2 * 4)
    torch.testing.assert_close(balanced.flatten(1).sum(1), torch.full((B,), scored))
    torch.testing.assert_close(balanced[1, 0, 0, 3, 0, 1] / balanced[1, 0, 0, 3, 0, 0], torch.tensor(7.0))
    s.video_mask[0] = False
    assert video_weights(LossConfig(motion_weight=6.0, balance_windows=True), s, 2)[0].eq(0).all()


def test_the_bell_has_the_published_weights() -> None:
    clocks = torch.tensor([1.0, 0.99, 0.95, 0.9, 0.8, 0.5, 0.1])
    expected = torch.tensor([0.0, 0.06, 0.32, 0.63, 1.21, 2.08, 0.64])
    torch.testing.assert_close(bell(clocks), expected, atol=0.011, rtol=0)


def test_the_bell_weighs_errors_by_their_clock_and_leaves_counts_alone() -> None:
    s = sample(t_video=0.5, t_action=1.0)
    prediction = Prediction(video=s.clean.video + 1, actions=s.clean.actions + 1)
    plain, weighed = (terms(s, prediction, weighting=how) for how in ("uniform", "bell"))
    torch.testing.assert_close(weighed.video_sum, plain.video_sum * bell(torch.tensor(0.5)))
    assert (weighed.action_sum == 0).all() and (plain.action_sum > 0).all()
    assert torch.equal(weighed.action_count, plain.action_count)
