"""Windows cut into chunks: clocks of their own, clean copies of what later chunks read, and a run that trains on them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training.fakes import MODEL, FakeFeed, tiny_config, tiny_trainer
from wam_video.errors import ConfigError
from wam_video.flow.density import DensityConfig
from wam_video.flow.loss import LossConfig
from wam_video.models.masks import AttentionConfig
from wam_video.models.text import build_byte_t5
from wam_video.models.video_codec import PixelCodec
from wam_video.training.sample import Sampler, SamplerConfig, TextCache

CPU = torch.device("cpu")
TWO = {"pattern": "causal", "chunk_frames": 1}
"""The made-up windows have two context frames, two future ones and four actions: two chunks."""


def sampler(rule: dict[str, Any] | None = None, **density: Any) -> Sampler:
    config = SamplerConfig(
        density=DensityConfig(**density), loss=LossConfig(), attention=AttentionConfig.read(rule or TWO)
    )
    text = TextCache(*build_byte_t5(d_model=16, num_layers=1, num_heads=2, max_length=8))
    return Sampler(config, PixelCodec(patch_size=8), FakeFeed().processor(""), text)


def test_each_chunk_has_clocks_of_its_own_that_its_frames_and_actions_share() -> None:
    sample = sampler(name="shared")(FakeFeed().batch(list(range(32))), CPU)
    video, actions = sample.noisy.clocks.video, sample.noisy.clocks.actions
    assert video is not None and actions is not None and sample.noisy.action_mask is not None
    assert video[:, :2].eq(0).all() and (video[:, 2] != video[:, 3]).all()
    real = sample.noisy.action_mask.any(-1).all(-1)
    assert real.sum() > 8
    torch.testing.assert_close(actions[real], video[real][:, 2:].repeat_interleave(2, dim=1))
    assert torch.equal(sample.t_video, video[:, 2:].mean(1))


def test_a_window_in_chunks_does_not_depend_on_its_neighbours() -> None:
    feed, make = FakeFeed(), sampler({**TWO, "action_history": True}, noisy_history=0.5)
    whole, part = make(feed.batch([3, 4, 5, 6]), CPU), make(feed.batch([5, 4]), CPU)
    assert whole.history is not None and part.history is not None
    for a, b in (
        (whole.noisy.x_t.video, part.noisy.x_t.video),
        (whole.noisy.x_t.actions, part.noisy.x_t.actions),
        (whole.history.latents, part.history.latents),
        (whole.history.actions, part.history.actions),
    ):
        assert a is not None and b is not None and torch.equal(a[[2, 1]], b)


def test_one_chunk_is_noised_as_without_chunks() -> None:
    batch = FakeFeed().batch([0, 1, 2])
    one = sampler({"pattern": "causal", "chunk_frames": 2})(batch, CPU)
    none = sampler({"pattern": "bidirectional"})(batch, CPU)
    assert one.history is None and none.history is None and torch.equal(one.t_video, none.t_video)
    assert one.noisy.x_t.video is not None and none.noisy.x_t.video is not None
    assert torch.equal(one.noisy.clocks.video, none.noisy.clocks.video)  # type: ignore[arg-type]


def test_clean_copies_are_what_was_recorded() -> None:
    batch = FakeFeed().batch(list(range(16)))
    sample = sampler({**TWO, "action_history": True})(batch, CPU)
    history, clean = sample.history, sample.noisy.clean
    assert history is not None and clean.video is not None and clean.actions is not None
    recorded = batch.frame_mask[:, :, 2].any(1)
    assert history.first == 2 and history.num_frames == 1 and history.num_actions == 2
    assert torch.equal(history.latents[recorded], clean.video[recorded][:, :, :, 2:3])
    assert torch.equal(history.t_video[:, 0], (~recorded).float())
    assert torch.equal(history.times, sample.latent_times[:, 2:3])
    known = batch.action_mask.any(-1)[:, :2]
    assert torch.equal(history.actions[known], clean.actions[:, :2][known])  # type: ignore[index]


def test_history_may_be_a_little_noisy() -> None:
    sample = sampler(noisy_history=0.5, noisy_history_max=0.2)(FakeFeed().batch(list(range(32))), CPU)
    assert sample.history is not None and sample.noisy.clocks.video is not None
    recorded = FakeFeed().batch(list(range(32))).frame_mask[:, :, 2].any(1)
    for clocks in (sample.history.t_video[recorded, 0], sample.noisy.clocks.video[:, 0]):
        assert 0.2 < clocks.gt(0).float().mean() < 0.8 and clocks[clocks < 1].max() <= 0.2
    assert sample.noisy.clocks.video[:, 0].eq(sample.noisy.clocks.video[:, 1]).all()  # one draw a chunk


def test_where_video_is_absent_later_chunks_still_read_the_past() -> None:
    sample = sampler()(FakeFeed().batch([0, 1]), CPU, absent_video=True)
    assert sample.history is not None and sample.history.num_frames == 1
    assert sample.noisy.x_t.video is not None and sample.noisy.x_t.video.shape[3] == 2 and sample.t_video.eq(1).all()


@pytest.mark.parametrize("rule", [TWO, {**TWO, "state_sees": "self", "action_history": True, "window": 1}])
def test_a_causal_run_learns(tmp_path: Path, rule: dict[str, Any]) -> None:
    density = DensityConfig(absent_video=0.3, noisy_history=0.5)
    config = tiny_config(tmp_path, model=MODEL | {"attention": rule}, steps=6, density=density)
    trainer = tiny_trainer(config)
    before = {name: p.detach().clone() for name, p in trainer.parts.transformer.named_parameters()}
    trainer.run([])
    after = dict(trainer.parts.transformer.named_parameters())
    assert trainer.progress.step == 6 and all(bool(p.isfinite().all()) for p in after.values())
    assert all(not torch.equal(p, before[name]) for name, p in after.items() if "attn1.to_k" in name)


def test_later_chunks_have_the_state_at_their_start() -> None:
    batch = FakeFeed().batch([0, 1, 2, 3])
    later = torch.full((4, 1, batch.state.shape[1]), 0.25)
    known = batch.state_mask[:, None].clone()
    known[0] = False
    with_later = replace(batch, later_state=later, later_state_mask=known)
    sample = sampler()(with_later, CPU)
    assert sample.state.shape[1] == 2 and torch.equal(sample.state[:, 0], sampler()(batch, CPU).state)
    assert sample.state[0, 1].eq(0).all() and sample.state[1, 1].ne(0).any()
    none = sampler({"pattern": "bidirectional"})(with_later, CPU)
    assert none.state.ndim == 2  # one chunk has one state


@pytest.mark.parametrize("rule", [TWO, {"pattern": "bidirectional"}])
def test_committed_actions_are_given_unscored_and_leave_the_rest_as_it_was(rule: dict[str, Any]) -> None:
    batch = FakeFeed().batch(list(range(64)))
    plain, committed = (sampler(rule, prefix=share, prefix_max=1)(batch, CPU).noisy for share in (1e-9, 0.7))
    assert committed.clocks.actions is not None and committed.action_mask is not None
    real = plain.action_mask.any(-1)  # type: ignore[union-attr] - there are actions
    given = (committed.clocks.actions == 0) & real
    assert 0.5 < given[real[:, 0], 0].float().mean() < 0.9, "the first action of a chunk, as often as asked for"
    assert not given[:, 1].any()
    assert torch.equal(committed.x_t.actions[given], committed.clean.actions[given])  # type: ignore[index]
    assert not committed.action_mask[given].any(), "nothing is to be learnt of them"
    for a, b in ((plain.x_t.actions, committed.x_t.actions), (plain.action_mask, committed.action_mask)):
        assert torch.equal(a[~given], b[~given])  # type: ignore[index]


def test_a_prefix_as_long_as_a_chunk_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"allowed for density\.prefix_max: below 2"):
        sampler(prefix=1.0, prefix_max=3)(FakeFeed().batch(list(range(16))), CPU)
