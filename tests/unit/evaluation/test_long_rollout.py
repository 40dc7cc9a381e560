from dataclasses import replace

import pytest
import torch

from tests.unit.evaluation import long_world
from wam_video.data.windows import WindowConfig
from wam_video.errors import ConfigError
from wam_video.evaluation.long_rollout import RollConfig, Stretch, join, make_grid, roll


def config(context=0.2, future=0.2, k=2, n=2):
    return WindowConfig(num_context_frames=k, num_future_frames=n, context_stride_s=context, future_stride_s=future)


@pytest.mark.parametrize(
    ("window", "tick", "context", "future", "start"),
    [
        (config(), 0.2, 1, 1, 1),
        (config(0.2, 0.4), 0.2, 1, 2, 1),
        (config(0.3, 0.2), 0.1, 3, 2, 3),
        (config(0.4, 0.1, k=1), 0.1, 1, 1, 0),
        (config(1 / 3, 1 / 6), 1 / 6, 2, 1, 2),
    ],
)
def test_the_grid_is_the_coarsest_on_which_both_strides_lie(window, tick, context, future, start) -> None:
    grid = make_grid(window)
    assert grid.tick_s == pytest.approx(tick)
    assert (grid.context_ticks, grid.future_ticks, grid.start) == (context, future, start)


def test_a_model_that_draws_nothing_has_no_grid() -> None:
    with pytest.raises(ConfigError, match="no future frames"):
        make_grid(config(n=0))


@pytest.mark.parametrize(("context", "future"), [(0.2, 0.2), (0.2, 0.4), (0.4, 0.2), (0.2, 0.6)])
@pytest.mark.parametrize("feed_back", [True, False])
def test_a_model_that_knows_the_world_draws_the_recording_at_every_stride(context, future, feed_back) -> None:
    world = long_world.LongWorld(config(context, future))
    grid, stretch = make_grid(world.window), world.stretch(0)
    lengths = [17]
    (made,) = roll(world.model(), [stretch], lengths, grid, RollConfig(feed_back=feed_back))
    torch.testing.assert_close(made, stretch.frames(grid.ticks(17)))


def test_own_frames_are_read_and_nothing_recorded_after_the_start_is() -> None:
    """Everything after the start but the actions is replaced: the rollout must not change by a bit."""
    world = long_world.LongWorld(config(0.2, 0.4))
    grid, stretch = make_grid(world.window), world.stretch(0)

    def spoilt(places):
        batch = world.fetch(places)
        late = torch.tensor([p > stretch.places[grid.start] for p in places])
        video, state = batch.video, batch.state.clone()
        now = torch.tensor([p - stretch.places[grid.start] for p in places])[:, None] + world.offsets[None]
        video = torch.where((now > 0)[:, None, None, :, None, None], 77, video)
        state[late] = 99.0
        return replace(batch, video=video, state=state)

    altered = Stretch(episode=stretch.episode, fetch=spoilt, places=stretch.places)
    noisy = world.model(noise=3.0)
    found = [roll(noisy, [s], [12], grid, RollConfig())[0] for s in (stretch, altered)]
    assert torch.equal(*found)
    told = [roll(noisy, [s], [12], grid, RollConfig(feed_back=False))[0] for s in (stretch, altered)]
    assert not torch.equal(*told)


def test_the_batch_does_not_matter_and_lengths_may_differ() -> None:
    world = long_world.LongWorld(config(0.2, 0.4))
    grid, stretches = make_grid(world.window), [world.stretch(i) for i in range(3)]
    runs = [
        roll(world.model(noise=3.0), stretches, [5, 12, 9], grid, RollConfig(batch_size=size, seed=1))
        for size in (1, 4)
    ]
    assert [len(x) for x in runs[0]] == [5, 12, 9]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    alone = roll(world.model(noise=3.0), stretches[1:2], [12], grid, RollConfig(seed=1))
    assert torch.equal(alone[0], runs[0][1])


def test_joined_windows_are_those_that_were_joined() -> None:
    world = long_world.LongWorld(config())
    batch, one = world.fetch([3, 9]), join([world.fetch([3]), world.fetch([9])])
    assert torch.equal(batch.video, one.video) and torch.equal(batch.actions, one.actions) and batch.keys == one.keys
