"""A share of the episodes, and of their actions: which ones, and whose statistics."""

import pytest

from wam_video.data.loader import DataConfig, DatasetConfig, WindowDataset
from wam_video.data.windows import WindowConfig
from wam_video.errors import ConfigError

WINDOW = WindowConfig(num_context_frames=2, num_future_frames=2, action_horizon=6)


def make(*datasets, shuffle=True):
    named = {f"d{i}": d if isinstance(d, DatasetConfig) else DatasetConfig(path=str(d)) for i, d in enumerate(datasets)}
    return WindowDataset(DataConfig(datasets=named, window=WINDOW), 3, shuffle=shuffle)


def test_a_share_of_the_episodes_is_what_hiding_the_others_leaves_visible(shards):
    part = make(DatasetConfig(path=str(shards), episodes=0.5), shuffle=False)
    hidden = make(DatasetConfig(path=str(shards), drop_actions=0.5), shuffle=False)
    whole = make(shards, shuffle=False)
    batch = hidden.batch(range(len(hidden)))
    visible = {key for key, known in zip(batch.keys, batch.action_mask.any((1, 2)), strict=True) if known}
    assert set(part.batch(range(len(part))).keys) == visible
    assert 0 < len(part) < len(whole)
    assert 0 < len(set(part.episodes(range(len(part))))) < len(set(whole.episodes(range(len(whole)))))
    assert len(part.held_out()) == len(hidden.held_out()) == len(whole.held_out())  # scores stay on all of them


def test_statistics_come_from_the_visible_episodes(shards):
    part, hidden, whole = (
        make(DatasetConfig(path=str(shards), **options)).stats["toy"]
        for options in ({"episodes": 0.5}, {"drop_actions": 0.5}, {})
    )
    assert part == hidden != whole
    seen = make(DatasetConfig(path=str(shards), episodes=0.5), shuffle=False)
    actions = seen.batch(range(len(seen)))
    assert hidden["actions"]["max"] == actions.actions.amax((0, 1))[:3].tolist()
    both = make(DatasetConfig(path=str(shards), episodes=0.5), DatasetConfig(path=str(shards), drop_actions=0.5))
    assert both.stats["toy"] == part
    assert make(DatasetConfig(path=str(shards), drop_actions=1.0)).stats["toy"] == whole  # there is nothing else


def test_an_empty_share_is_refused(shards):
    with pytest.raises(ConfigError, match=r"episodes is 0\.0; allowed: above 0, up to 1"):
        make(DatasetConfig(path=str(shards), episodes=0.0))
