"""The densities over the noise square, against their moments and supports."""

import pytest
import torch

from wam_video.errors import ConfigError
from wam_video.flow.density import NUM_UNIFORMS, DensityConfig, draw_clocks, draw_prefix

N = 20_000


def draw(has_actions: bool = True, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    uniforms = torch.rand(N, NUM_UNIFORMS, generator=torch.Generator().manual_seed(0))
    return draw_clocks(DensityConfig(**options), uniforms, torch.full((N,), has_actions))


def test_independent_clocks_are_uniform_and_uncorrelated() -> None:
    video, action = draw(name="independent")
    assert abs(video.mean() - 0.5) < 0.01 and abs(action.var() - 1 / 12) < 0.002
    assert abs(torch.corrcoef(torch.stack([video, action]))[0, 1]) < 0.02


def test_shared_clocks_are_one_clock() -> None:
    video, action = draw(name="shared")
    assert torch.equal(video, action)


def test_flash_video_clock_is_beta_7_1() -> None:
    video, action = draw(name="flash")
    assert abs(video.mean() - 7 / 8) < 0.005  # the mean of Beta(7, 1)
    assert abs(action.mean() - 0.5) < 0.01


def test_ordered_video_clock_is_never_below_the_action_clock_and_fills_the_triangle() -> None:
    video, action = draw(name="ordered")
    assert (video >= action).all()
    assert abs(video.mean() - 2 / 3) < 0.01 and abs(action.mean() - 1 / 3) < 0.01


def test_logit_normal_is_symmetric_with_the_right_spread() -> None:
    video, _ = draw(name="logit_normal")
    assert abs(torch.logit(video).std() - 1) < 0.02 and abs(video.median() - 0.5) < 0.01


def test_edges_get_their_stated_mass() -> None:
    video, action = draw(edges={"policy": 0.2, "forward": 0.3, "inverse": 0.1, "video": 0.1, "joint": 0.1})
    shares = [(video == 1), (action == 0), (video == 0), (action == 1), (video == action) & (video < 1)]
    for share, stated in zip(shares, [0.2, 0.3, 0.1, 0.1], strict=False):
        assert abs(share.float().mean() - stated) < 0.015


def test_start_mass_sits_where_the_paths_begin() -> None:
    video, action = draw(edges={"forward": 0.5}, start=0.4)
    forward = action == 0
    assert abs((video[forward] == 1).float().mean() - 0.4) < 0.02
    assert ((video == 1) & (action == 1))[~forward].float().mean() > 0.35


def test_action_free_samples_have_unknown_actions_and_keep_a_spread_of_video_clocks() -> None:
    video, action = draw(has_actions=False, name="ordered", edges={"inverse": 0.9})
    assert (action == 1).all()
    assert abs(video.mean() - 0.5) < 0.01  # never 0, where nothing would be learned


@pytest.mark.parametrize(
    "bad", [{"name": "indpendent"}, {"edges": {"policy": 0.7, "video": 0.4}}, {"edges": {"x": 0.1}}, {"start": 2}]
)
def test_bad_densities_are_refused_with_what_is_allowed(bad: dict) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        DensityConfig(**bad)


def test_asynchronous_actions_are_uniform_and_the_video_is_further_on_the_noisy_side() -> None:
    video, action = draw(name="asynchronous")
    rest = (video - action) / (1 - action)
    assert (video >= action).all()
    assert abs(action.mean() - 0.5) < 0.01 and abs(rest.mean() - 0.6) < 0.01  # the mean of Beta(1.5, 1)


def test_prefixes_are_as_frequent_and_as_long_as_asked_for() -> None:
    uniforms = torch.rand(N, 1, 2, generator=torch.Generator().manual_seed(0))
    lengths = draw_prefix(DensityConfig(prefix=0.6, prefix_max=3), uniforms)
    counts = torch.bincount(lengths.flatten(), minlength=4) / N
    torch.testing.assert_close(counts, torch.tensor([0.4, 0.2, 0.2, 0.2]), atol=0.01, rtol=0)
