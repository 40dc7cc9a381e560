from dataclasses import replace

import numpy as np
import pytest

from wam_video.data.actions import action_at, cut_chunk
from wam_video.data.reader import Clip
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.windows import WindowConfig, anchors, cut_window, frame_indices
from wam_video.errors import ConfigError, DataError


def make_clip(frames=20, fps=10.0, rate=20.0, actions=40, views=("front",)):
    """Frame i is filled with i + 1, action i with i + 1, state i with 100 + i."""
    video = np.broadcast_to(np.arange(1, frames + 1, dtype=np.uint8)[:, None, None, None], (frames, 4, 6, 3)).copy()
    rows = np.arange(actions, dtype=np.float32)[:, None].repeat(2, 1)
    info = {
        "num_frames": frames,
        "num_actions": actions,
        "fps": fps,
        "action_rate": rate,
        "embodiment": "toy",
        "episode_id": "e",
    }
    state = 100 + np.arange(actions + 1, dtype=np.float32)[:, None].repeat(2, 1)
    return Clip(
        video=dict.fromkeys(views, video),
        actions=rows + 1 if actions else None,
        state=state if actions else None,
        reward=None,
        info=info,
    )


def make_spec(fps=10.0, rate=20.0, dim=2):
    return EmbodimentSpec(name="toy", action_dim=dim, state_dim=dim, views=("front",), fps=fps, action_rate=rate)


def seen(window):
    return window.video[0, :, 0, 0, 0].tolist()


CONFIG = WindowConfig(
    num_context_frames=3, num_future_frames=2, context_stride_s=0.2, future_stride_s=0.4, action_horizon=6
)


def test_a_window_in_the_middle_is_exact():
    window = cut_window(make_clip(), 8, CONFIG)
    assert np.allclose(CONFIG.frame_times(), [-0.4, -0.2, 0, 0.4, 0.8])
    assert seen(window) == [5, 7, 9, 13, 17]
    assert window.frame_mask.all()
    assert window.actions[:, 0].tolist() == [17, 18, 19, 20, 21, 22]  # 8 frames at 10 fps are 16 actions at 20 Hz
    assert window.action_mask.all()
    assert window.state.tolist() == [116, 116]


def test_later_states_are_those_at_the_start_of_later_chunks():
    config = replace(CONFIG, num_states=3)
    assert cut_window(make_clip(), 8, config).later_states[:, 0].tolist() == [118, 120]
    assert cut_window(make_clip(), 18, config).later_states[:, 0].tolist() == [138, 140]
    assert cut_window(make_clip(), 19, config).later_states[:, 0].tolist() == [140]  # the clip ends with state 40
    assert len(cut_window(make_clip(), 8, CONFIG).later_states) == 0
    assert cut_window(make_clip(actions=0), 5, config).later_states is None
    with pytest.raises(ConfigError, match="num_states"):
        replace(CONFIG, num_states=4)


def test_frames_before_the_clip_are_zero_and_masked():
    window = cut_window(make_clip(), 2, CONFIG)
    assert seen(window) == [0, 1, 3, 7, 11]
    assert window.frame_mask.tolist() == [[False, True, True, True, True]]


def test_frames_and_actions_after_the_clip_are_zero_and_masked():
    window = cut_window(make_clip(), 18, CONFIG)
    assert seen(window) == [15, 17, 19, 0, 0]
    assert window.frame_mask.tolist() == [[True, True, True, False, False]]
    assert window.actions[:, 0].tolist() == [37, 38, 39, 40, 0, 0]
    assert window.action_mask[:, 0].tolist() == [True] * 4 + [False] * 2


def test_the_nearest_frame_counts_up_to_half_a_period_from_the_clip():
    config = WindowConfig(num_context_frames=2, num_future_frames=1, context_stride_s=0.25, future_stride_s=0.14)
    index, inside = frame_indices(10, 10.0, 2, config)
    assert index.tolist() == [0, 2, 3]  # -0.05 s is half a period before the first frame: still inside
    assert inside.all()
    index, inside = frame_indices(10, 10.0, 1, config)
    assert inside.tolist() == [False, True, True]
    assert frame_indices(4, 10.0, 2, config)[1].tolist() == [True, True, True]  # 3.4 lies within half a period of 3
    assert frame_indices(4, 10.0, 3, config)[1].tolist() == [True, True, False]


@pytest.mark.parametrize("seed", range(5))
def test_every_frame_and_action_is_the_nearest_in_time(seed):
    rng = np.random.default_rng(seed)
    fps, rate = float(rng.choice([5, 10, 15, 30])), float(rng.choice([5, 10, 15, 20]))
    frames = int(rng.integers(5, 40))
    count = int(frames / fps * rate)
    config = WindowConfig(
        num_context_frames=int(rng.integers(1, 4)),
        num_future_frames=int(rng.integers(0, 4)),
        context_stride_s=float(rng.uniform(0.2, 0.7)),
        future_stride_s=float(rng.uniform(0.2, 0.7)),
        action_horizon=int(rng.integers(1, 12)),
    )
    clip = make_clip(frames, fps, rate, count)
    for anchor in anchors(frames, count, make_spec(fps, rate), config):
        window = cut_window(clip, int(anchor), config)
        for place, time in enumerate(config.frame_times()):
            distance = np.abs(np.arange(frames) / fps - (anchor / fps + time))
            if window.frame_mask[0, place]:
                assert distance[seen(window)[place] - 1] == pytest.approx(distance.min(), abs=1e-6)
                assert distance.min() <= 0.5 / fps + 1e-6
            else:
                assert seen(window)[place] == 0
                assert distance.min() > 0.5 / fps
        first = window.actions[0, 0] - 1
        assert window.action_mask[0].all()
        assert abs(first / rate - anchor / fps) <= 0.25 / rate + 1e-6
        steps = int(window.action_mask[:, 0].sum())
        assert steps == min(config.action_horizon, count - first)
        assert (np.diff(window.actions[:steps, 0]) == 1).all()
        assert (window.actions[steps:] == 0).all()
        assert window.state[0] == 100 + first


def test_anchors_are_all_frames_that_an_action_follows():
    assert anchors(20, 40, make_spec(), CONFIG).tolist() == list(range(20))
    assert anchors(20, 37, make_spec(), CONFIG).tolist() == list(range(19))
    assert anchors(20, 2, make_spec(), CONFIG).tolist() == [0]
    # frames between two actions have no action that starts there
    assert anchors(6, 3, make_spec(fps=20, rate=10), CONFIG).tolist() == [0, 2, 4]


def test_anchors_without_actions_need_one_future_frame():
    assert anchors(20, 0, make_spec(dim=0), CONFIG).tolist() == list(range(16))
    assert anchors(3, 0, make_spec(dim=0), CONFIG).tolist() == []
    still = replace(CONFIG, num_future_frames=0)
    assert anchors(3, 0, make_spec(dim=0), still).tolist() == [0, 1, 2]


def test_a_shorter_horizon_masks_the_rest():
    window = cut_window(make_clip(), 0, replace(CONFIG, action_horizons={"toy": 2}))
    assert window.action_mask[:, 0].tolist() == [True, True, False, False, False, False]
    assert window.actions[2:].tolist() == np.zeros((4, 2)).tolist()


def test_absent_views_are_masked_and_views_keep_their_places():
    config = replace(CONFIG, max_views=3)
    clip = make_clip(views=("front", "wrist"))
    window = cut_window(clip, 8, config, views=("front", "side", "wrist"))
    assert window.frame_mask.any(1).tolist() == [True, False, True]
    assert window.video[1].max() == 0
    assert cut_window(clip, 8, CONFIG, views=("front", "side", "wrist")).video.shape[0] == 1


def test_a_clip_without_actions_has_neither_actions_nor_state():
    window = cut_window(make_clip(actions=0), 5, CONFIG)
    assert window.actions.shape == (6, 0)
    assert window.state is None


def test_cutting_a_chunk_pads_and_masks_columns():
    chunk, mask = cut_chunk(np.ones((3, 2), np.float32), 1, 4, width=5)
    assert chunk.sum() == mask.sum() == 4
    assert mask[:2, :2].all()
    assert not cut_chunk(None, 0, 4, width=5)[1].any()
    assert not cut_chunk(np.ones((3, 2), np.float32), 7, 4)[1].any()


def test_ties_go_to_the_earlier_action():
    index, off = action_at(np.arange(4), 20.0, 10.0)
    assert index.tolist() == [0, 0, 1, 1]
    assert np.allclose(off, [0, 0.5, 0, 0.5])


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_context_frames": 0},
        {"action_horizon": 0},
        {"context_stride_s": 0.0},
        {"height": 64},
        {"max_views": 0},
        {"action_horizons": {"toy": 9}},
    ],
)
def test_a_window_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        WindowConfig(**wrong)


def test_a_stride_below_the_stored_period_is_refused():
    with pytest.raises(DataError, match=r"future_stride_s is 0\.05.*at 10 fps, allowed: at least 0\.1"):
        WindowConfig(future_stride_s=0.05).check_rate(make_spec())
    WindowConfig(context_stride_s=0.05, num_context_frames=1).check_rate(make_spec())
