from dataclasses import replace

import pytest
import torch

from tests.unit.training.fakes import FakeFeed
from wam_video.flow.density import DensityConfig
from wam_video.flow.loss import LossConfig, loss_terms
from wam_video.models.text import build_byte_t5
from wam_video.models.video_codec import PixelCodec
from wam_video.tensors import Prediction
from wam_video.training.sample import Sampler, SamplerConfig, TextCache, TrainingSample, is_video_absent, window_seed

CPU = torch.device("cpu")


def sampler(**changes: object) -> Sampler:
    feed = FakeFeed()
    options = {"density": DensityConfig(), "loss": LossConfig(motion_weight=2.0), "prompt_dropout": 0.5} | changes
    text = TextCache(*build_byte_t5(d_model=16, num_layers=1, num_heads=2, max_length=8))
    return Sampler(SamplerConfig(**options), PixelCodec(patch_size=8), feed.processor(""), text)


def same(a: TrainingSample, b: TrainingSample, rows: list[int]) -> None:
    for x, y in (
        *((a.noisy.x_t.video, b.noisy.x_t.video), (a.noisy.x_t.actions, b.noisy.x_t.actions)),
        *((a.t_video, b.t_video), (a.t_action, b.t_action), (a.text_embeds, b.text_embeds)),
    ):
        assert torch.equal(x[rows], y)


def test_a_window_does_not_depend_on_its_neighbours() -> None:
    feed, make = FakeFeed(), sampler()
    whole = make(feed.batch([3, 4, 5, 6]), CPU)
    same(whole, make(feed.batch([5, 4]), CPU), [2, 1])


def test_another_index_or_seed_gives_other_noise() -> None:
    feed = FakeFeed()
    first = sampler()(feed.batch([3]), CPU)
    for other in (sampler()(feed.batch([35]), CPU), sampler(seed=1)(feed.batch([3]), CPU)):
        assert not torch.equal(first.noisy.noise.actions, other.noisy.noise.actions)


def test_seeds_do_not_collide() -> None:
    assert len({window_seed(7, index) for index in range(20_000)}) == 20_000


def test_context_frames_are_given_clean() -> None:
    sample = sampler()(FakeFeed().batch([0, 1]), CPU)
    assert torch.equal(sample.noisy.x_t.video[:, :, :, :2], sample.noisy.clean.video[:, :, :, :2])
    assert (sample.noisy.clocks.video[:, :2] == 0).all()


def test_a_missing_context_frame_is_noise() -> None:
    batch = FakeFeed().batch([0, 1])
    mask = batch.frame_mask.clone()
    mask[1, :, 0] = False
    sample = sampler()(replace(batch, frame_mask=mask), CPU)
    frame = sample.noisy.x_t.video[1, :, :, 0]
    assert sample.noisy.clocks.video[1, 0] == 1
    assert 0.8 < frame.std() < 1.2
    assert torch.equal(sample.noisy.x_t.video[0], sampler()(batch, CPU).noisy.x_t.video[0])


def test_missing_action_steps_carry_no_loss_and_padding_is_zero() -> None:
    batch = FakeFeed().batch([0, 1])
    mask = batch.action_mask.clone()
    mask[0, 2:] = False
    sample = sampler()(replace(batch, action_mask=mask), CPU)
    assert not sample.noisy.action_mask[0, 2:].any()
    assert (sample.noisy.clean.actions[~mask] == 0).all()
    assert (sample.noisy.clocks.actions[0, 2:] == 1).all()


def test_an_absent_video_keeps_the_context_only() -> None:
    sample = sampler()(FakeFeed().batch([0, 1]), CPU, absent_video=True)
    assert sample.noisy.x_t.video.shape[3] == sample.latent_times.shape[1] == 2
    assert sample.video_count.sum() == 0
    assert (sample.t_video == 1).all()
    assert sample.action_count.sum() > 0


def test_prompts_are_dropped_at_the_given_share() -> None:
    feed = FakeFeed()
    batch = feed.batch(list(range(0, 3 * 400, 3)))
    with_prompt = sum(bool(prompt) for prompt in batch.prompts)
    kept = sum(bool(prompt) for prompt in sampler(prompt_dropout=0.25)(batch, CPU).prompts)
    assert 0.65 < kept / with_prompt < 0.85
    assert sampler(prompt_dropout=0.0)(batch, CPU).prompts == batch.prompts


@pytest.mark.parametrize("absent", [False, True])
def test_counts_before_the_forward_pass_are_those_of_the_loss(absent: bool) -> None:
    sample = sampler()(FakeFeed().batch([0, 1, 2, 3]), CPU, absent_video=absent)
    prediction = Prediction(
        video=torch.zeros_like(sample.noisy.clean.video), actions=torch.zeros_like(sample.noisy.clean.actions)
    )
    terms = loss_terms(LossConfig(motion_weight=2.0), prediction, sample.noisy, ("sample", "velocity"), 2)
    torch.testing.assert_close(sample.video_count, terms.video_count)
    torch.testing.assert_close(sample.action_count, terms.action_count)


def test_the_share_of_steps_without_video_is_as_configured_and_depends_on_the_step_only() -> None:
    density = DensityConfig(absent_video=0.3)
    steps = [is_video_absent(density, 0, step) for step in range(500)]
    assert 0.22 < sum(steps) / 500 < 0.38
    assert steps == [is_video_absent(density, 0, step) for step in range(500)]


def test_cached_text_is_that_of_the_encoder() -> None:
    tokenizer, encoder = build_byte_t5(d_model=16, num_layers=1, num_heads=2, max_length=8)
    cache = TextCache(tokenizer, encoder, size=2)
    first = cache(["a", "b", "a"])
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    cache(["c", "d"])  # pushes both out
    assert torch.equal(cache(["a"])[0], first[0])
