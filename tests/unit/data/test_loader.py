import dataclasses
import gc
import time
from itertools import islice

import numpy as np
import pytest
import torch

from wam_video.config import load
from wam_video.data.loader import DataConfig, DatasetConfig, WindowDataset, eval_windows, make_loader
from wam_video.data.manifest import load_manifest
from wam_video.data.shard_set import ClipCache
from wam_video.data.windows import WindowConfig
from wam_video.errors import ConfigError, DataError

WINDOW = WindowConfig(num_context_frames=2, num_future_frames=2, action_horizon=6)


def make(*paths, seed=3, shuffle=True, window=WINDOW, **options):
    datasets = {f"d{i}": p if isinstance(p, DatasetConfig) else DatasetConfig(path=str(p)) for i, p in enumerate(paths)}
    return WindowDataset(DataConfig(datasets=datasets, window=window, **options), seed, shuffle=shuffle)


def assert_equal(a, b):
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, field.name


@pytest.fixture
def dataset(shards, plain_shards):
    return make(shards, plain_shards)


def test_a_window_holds_what_its_key_says(shards):
    batch = make(shards).batch(range(60))
    for row, key in enumerate(batch.keys):
        name, place = key.split("/")
        sample, frame = place.split("@")
        episode, clip, frame = int(sample[2:5]), int(sample[-4:]), int(frame)
        start = 24 * clip + frame  # of the episode: clips have 24 frames
        assert name == "d0"
        for place, offset in enumerate((-2, 0, 2, 4)):
            stored = range(24) if clip == 0 else range(16)
            assert batch.frame_mask[row, 0, place] == (frame + offset in stored)
            light = batch.video[row, 0, :, place].float().mean().item()
            assert light == pytest.approx(20 + 3 * (start + offset) if frame + offset in stored else 0, abs=2)
        real = batch.action_mask[row, :, 0]
        expected = 1000 * episode + 2 * start + torch.arange(6.0)
        assert torch.equal(batch.actions[row, real, 0], expected[real])
        assert (batch.actions[row][~batch.action_mask[row]] == 0).all()
        assert batch.state[row, 0] == 1000 * episode + 2 * start - 0.5
        assert batch.prompts[row] in ("push it", "shove it", "move it")
    assert torch.allclose(batch.frame_times[0], torch.tensor([-0.2, 0, 0.2, 0.4]))
    assert torch.allclose(batch.action_times[0], torch.arange(6) / 20)
    assert batch.video.dtype == torch.uint8
    assert batch.indices.tolist() == list(range(60))


def test_an_epoch_holds_every_window_once(shards):
    dataset = make(shards)
    keys = [
        key
        for start in range(0, len(dataset), 50)
        for key in dataset.batch(range(start, min(start + 50, len(dataset)))).keys
    ]
    assert len(set(keys)) == len(keys) == len(dataset)
    stored = make(shards, shuffle=False)
    assert set(stored.batch(range(len(stored))).keys) == set(keys)
    assert stored.batch(range(len(stored))).keys != tuple(keys)


def test_a_batch_does_not_depend_on_what_was_asked_before(dataset, shards, plain_shards):
    fresh = make(shards, plain_shards, cache_mb=0)
    dataset.batch(range(500, 510))
    assert_equal(fresh.batch(range(40, 50)), dataset.batch(range(40, 50)))
    assert make(shards, plain_shards, seed=4).batch(range(40, 50)).keys != fresh.batch(range(40, 50)).keys


def test_the_mixture_follows_the_weights(shards, plain_shards):
    mixed = make(DatasetConfig(path=str(shards), weight=3.0), DatasetConfig(path=str(plain_shards), weight=1.0))
    names = mixed.batch(range(200)).datasets
    assert abs(names.count("d0") - 150) <= 2


def test_ranks_together_see_what_one_would(dataset):
    whole = [make_loader(dataset, 8, 100)]
    quarter = [make_loader(dataset, 2, 100, rank=r, world_size=4) for r in range(4)]
    for alone, *parts in islice(zip(*whole, *quarter, strict=True), 5):
        assert alone.indices.tolist() == [i for part in parts for i in part.indices.tolist()]
        assert alone.keys == tuple(key for part in parts for key in part.keys)
        assert torch.equal(alone.video, torch.cat([part.video for part in parts]))


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_resuming_at_any_step_goes_on_as_if_nothing_had_happened(dataset, shards, plain_shards, steps):
    whole = list(islice(make_loader(dataset, 6), 9))
    resumed = islice(make_loader(make(shards, plain_shards), 6, 6 * steps), 9 - steps)
    for a, b in zip(whole[steps:], resumed, strict=True):
        assert_equal(a, b)


def test_workers_change_nothing(dataset):
    alone = list(islice(make_loader(dataset, 5, 30, rank=1, world_size=2), 5))
    iterator = iter(make_loader(dataset, 5, 30, rank=1, world_size=2, num_workers=2))
    for a, b in zip(alone, islice(iterator, 5), strict=True):
        assert_equal(a, b)
    del iterator
    gc.collect()


def test_bodies_of_different_width_and_video_without_actions_share_a_batch(shards, plain_shards, toys, tmp_path):
    wide = toys.write(tmp_path / "wide", [toys.episode(9, dim=5, name="wide", rate=10)], val_fraction=0)
    batch = make(shards, plain_shards, wide).batch(range(30))
    assert batch.actions.shape == (30, 6, 5)
    assert set(batch.embodiments) == {"toy", "clip", "wide"}
    for row, name in enumerate(batch.embodiments):
        dim = {"toy": 3, "clip": 0, "wide": 5}[name]
        assert batch.action_mask[row, 0].tolist() == [True] * dim + [False] * (5 - dim)
        assert batch.state_mask[row].tolist() == [True] * dim + [False] * (5 - dim)
        assert (batch.actions[row, :, dim:] == 0).all()
        assert batch.action_times[row, 1].item() == pytest.approx({"toy": 0.05, "clip": 0, "wide": 0.1}[name])
        assert batch.frame_mask[row, 0, 1]


def test_hidden_actions_are_hidden_for_good_and_by_episode(shards):
    half = make(DatasetConfig(path=str(shards), drop_actions=0.5), shuffle=False)
    batch = half.batch(range(len(half)))
    by_episode = {}
    for key, known, state in zip(batch.keys, batch.action_mask.any((1, 2)), batch.state_mask.any(1), strict=True):
        assert known == state
        by_episode.setdefault(key.split("/")[1][:5], set()).add(bool(known))
    assert all(len(kinds) == 1 for kinds in by_episode.values())
    assert {next(iter(kinds)) for kinds in by_episode.values()} == {True, False}
    everything = make(DatasetConfig(path=str(shards), drop_actions=1.0)).batch(range(20))
    assert not everything.action_mask.any()
    assert not everything.actions.any()


def test_another_size_is_made_from_the_stored_one(shards):
    batch = make(shards, window=dataclasses.replace(WINDOW, height=8, width=12)).batch(range(4))
    assert batch.video.shape == (4, 1, 3, 4, 8, 12)
    assert make(shards).window.height == 16


def test_datasets_of_different_sizes_need_one_size(shards, toys, tmp_path):
    other = toys.write(tmp_path / "big", [toys.episode(1)], height=32, width=32, val_fraction=0)
    with pytest.raises(DataError, match=r"d0 16x16, d1 32x32.*set window\.height"):
        make(shards, other)
    assert (
        make(shards, other, window=dataclasses.replace(WINDOW, height=16, width=16)).batch(range(4)).video.shape[-1]
        == 16
    )


def test_held_out_windows_are_the_same_at_every_call_and_of_other_episodes(dataset, shards, plain_shards):
    once, again = (
        eval_windows(dataset, 12, batch_size=5),
        eval_windows(make(shards, plain_shards, seed=9), 12, batch_size=5),
    )
    assert [len(b) for b in once] == [5, 5, 2]
    for a, b in zip(once, again, strict=True):
        assert_equal(a, b)
        assert set(a.prompts) == {"push it"}
    held_out = {e.episode_id for folder in (shards, plain_shards) for _, e in load_manifest(folder).split("val")}
    assert {key.split("/")[1][:5] for b in once for key in b.keys} <= held_out
    assert eval_windows(dataset, 0) == []


def test_few_held_out_windows_come_from_as_many_episodes(shards):
    stored = make(shards, shuffle=False)
    train = {e.episode_id for _, e in load_manifest(shards).split("train")}
    assert len(set(stored.episodes(stored.spread(3)))) == 3
    counts = np.unique(stored.episodes(stored.spread(4 * len(train))), return_counts=True)[1]
    assert counts.tolist() == [4] * len(train)
    assert len(set(stored.spread(10**6))) == len(stored)


def test_an_embodiment_of_two_folders_has_statistics_of_both(shards, toys, tmp_path):
    other = toys.write(tmp_path / "other", [toys.episode(50)], val_fraction=0)
    stats = make(shards, other).stats["toy"]["actions"]
    assert stats["max"][0] == 50077
    assert make(shards, shards).stats == make(shards).stats


def test_one_body_resized_in_two_ways_is_refused(shards, toys, tmp_path):
    padded = toys.write(tmp_path / "out", [toys.episode(i) for i in range(3)], fit="pad")
    with pytest.raises(DataError, match=r"'toy' is stored with fit 'pad' in 'd0' and 'stretch' in 'd1'"):
        make(padded, shards)


def test_another_aspect_ratio_is_made_as_the_shards_were(toys, tmp_path):
    window = WindowConfig(height=16, width=32)
    black = {}
    for fit in ("pad", "stretch"):
        path = toys.write(tmp_path / fit, [toys.episode(i) for i in range(3)], fit=fit)
        black[fit] = bool((make(path, window=window).batch([0]).video[..., :4] < 8).all())
    assert black == {"pad": True, "stretch": False}


def test_one_name_for_two_bodies_is_refused(shards, toys, tmp_path):
    other = toys.write(tmp_path / "other", [toys.episode(0, dim=2)], val_fraction=0)
    with pytest.raises(DataError, match="embodiment 'toy' differs between datasets"):
        make(shards, other)


@pytest.mark.parametrize(
    ("datasets", "window", "message"),
    [
        ({}, {}, r"data\.datasets is empty"),
        ({"split": "test"}, {}, r"split is 'test'; allowed: train, val"),
        ({"path": "/nowhere"}, {}, r"'/nowhere' holds no manifest"),
        (
            {},
            {"action_horizons": {"toys": 2}},
            "embodiment in window.action_horizons is 'toys'; allowed: toy. Did you mean 'toy'",
        ),
        ({}, {"future_stride_s": 0.01}, "is stored at 10 fps"),
    ],
)
def test_what_is_not_there_is_named(shards, datasets, window, message):
    chosen = DatasetConfig(**{"path": str(shards), **datasets})
    config = DataConfig(datasets={} if "empty" in message else {"a": chosen}, window=WindowConfig(**window))
    with pytest.raises(DataError, match=message) as caught:
        WindowDataset(config)
    assert "\n" not in str(caught.value)


def test_clips_too_short_for_any_window_are_no_dataset(toys, tmp_path):
    folder = toys.write(tmp_path / "short", [toys.episode(0, frames=2, dim=0)], val_fraction=0)
    with pytest.raises(DataError, match="holds no window"):
        make(folder)


def test_no_held_out_episode_anywhere_is_an_error(toys, tmp_path):
    folder = toys.write(tmp_path / "all", [toys.episode(0)], val_fraction=0)
    with pytest.raises(DataError, match="split is 'val'; allowed: train"):
        eval_windows(make(folder), 4)


def test_a_broken_sample_is_named_when_it_is_reached(toys, tmp_path):
    folder = toys.write(tmp_path / "shards", [toys.episode(i) for i in range(2)])

    def cut(members):
        name = next(n for n in members if n.endswith(".mp4"))
        members[name] = members[name][:500]

    toys.rewrite_first_sample(folder, cut)
    stored = make(folder, shuffle=False)
    with pytest.raises(DataError, match=r"toy-train-000000\.tar.*ep00\d-0000.*truncated"):
        stored.batch(range(len(stored)))


def test_a_cut_shard_is_found_before_training_starts(toys, tmp_path):
    folder = toys.write(tmp_path / "shards", [toys.episode(i) for i in range(2)])
    path = folder / "toy-train-000000.tar"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"toy-train-000000\.tar.*cut short"):
        make(folder)


def test_numbers_out_of_range_are_refused(dataset):
    for wrong in ({"batch_size": 0}, {"batch_size": 1, "start_index": -1}, {"batch_size": 1, "rank": 1}):
        with pytest.raises(ConfigError, match="batch_size is"):
            make_loader(dataset, **wrong)
    with pytest.raises(DataError, match="window index is -1"):
        dataset.batch([-1])
    with pytest.raises(ConfigError, match="shuffle=False"):
        dataset.spread(3)


def test_the_configuration_is_read_from_keys(shards):
    config = load(
        DataConfig, [f"datasets.a.path={shards}", "window.height=16", "window.width=16", "datasets.a.weight=2"]
    )
    assert config.datasets["a"].weight == 2
    assert len(WindowDataset(config)) > 0
    with pytest.raises(ConfigError, match="Did you mean 'action_horizon"):
        load(DataConfig, ["window.action_horizn=3"])


def test_the_cache_keeps_to_its_size(shards):
    dataset = make(shards)
    clips = [dataset._sets[0]._decode(i, "auto") for i in range(3)]
    cache = ClipCache(2 * clips[0].nbytes)
    loads = []

    def get(number):
        return cache.get(number, lambda: (loads.append(number), clips[number])[1])

    for number in (0, 1, 0, 2, 0, 1):
        assert get(number) is clips[number]
    assert loads == [0, 1, 2, 1]


def test_a_batch_from_decoded_clips_is_quick(toys, tmp_path):
    folder = toys.write(tmp_path / "big", [toys.episode(i) for i in range(4)], height=96, width=96, val_fraction=0)
    dataset = make(folder)
    dataset.batch(range(64))
    times = []
    for _ in range(7):
        start = time.process_time()
        dataset.batch(range(64))
        times.append(time.process_time() - start)
    assert min(times) < 0.02


@pytest.fixture
def mixed(shards, plain_shards):
    """Three datasets in two geometries: the second one's windows are longer and smaller."""
    other = {"num_future_frames": 4, "action_horizon": 9, "height": 8, "width": 8}
    datasets = (
        DatasetConfig(path=str(shards), weight=2.0),
        DatasetConfig(path=str(plain_shards), weight=1.0, window=other),
        DatasetConfig(path=str(shards), weight=1.0),
    )
    return lambda **options: make(*datasets, **{"windows_per_bucket": 12, **options})


def test_datasets_of_different_geometry_never_meet_in_a_batch(mixed):
    dataset = mixed()
    assert dataset.num_buckets == 2
    shapes = {}
    for batch in islice(make_loader(dataset, 6, 24), 60):
        shapes.setdefault(tuple(batch.video.shape[1:]) + tuple(batch.actions.shape[1:]), set()).update(batch.datasets)
    assert shapes == {(1, 3, 4, 16, 16, 6, 3): {"d0", "d2"}, (1, 3, 6, 8, 8, 9, 3): {"d1"}}


def test_the_mixture_holds_across_geometries_and_every_window_comes_once(mixed):
    dataset = mixed()
    places = [dataset._locate(k) for k in range(4800)]
    counts = np.bincount([d for d, _, _ in places]) / len(places)
    assert np.abs(counts - [0.5, 0.25, 0.25]).max() < 0.01
    longer = [p for p in places if p[0] == 1][: len(dataset._sets[1])]
    assert len(set(longer)) == len(longer)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (3, 0), (2, 2)])
def test_geometries_come_in_the_same_order_for_any_ranks_and_workers(mixed, ranks, workers):
    loaders = [iter(make_loader(mixed(), 12 // ranks, 12, r, ranks, num_workers=workers)) for r in range(ranks)]
    for step in range(5):
        whole = mixed().batch(range(12 * step + 12, 12 * step + 24))
        parts = [next(loader) for loader in loaders]
        assert torch.equal(torch.cat([part.video for part in parts]), whole.video)
        assert [key for part in parts for key in part.keys] == list(whole.keys)
    for loader in loaders:
        loader.close()


def test_batches_that_would_straddle_two_geometries_are_refused_before_they_start(mixed):
    for wrong in ({"batch_size": 5}, {"batch_size": 6, "start_index": 3}):
        with pytest.raises(ConfigError, match=r"data\.windows_per_bucket \(12\)"):
            make_loader(mixed(), **wrong)
    dataset = mixed()
    first = next(k for k in range(1000) if dataset.bucket(k) != dataset.bucket(k + 1))
    with pytest.raises(ConfigError, match="are of different geometries"):
        dataset.batch([first, first + 1])


def test_held_out_windows_of_two_geometries_come_in_batches_of_their_own(mixed):
    batches = eval_windows(mixed(), 14, batch_size=4)
    assert sum(map(len, batches)) == 14
    assert {batch.video.shape[3] for batch in batches} == {4, 6}


def test_a_window_of_its_own_is_checked(shards):
    for window, message in (({"num_futur": 1}, "Did you mean"), ({"max_views": 2}, "up to data.window.max_views")):
        with pytest.raises(ConfigError, match=message):
            make(DatasetConfig(path=str(shards), window=window))


def test_few_shards_are_open_at_a_time_where_it_is_asked(toys, tmp_path):
    folder = toys.write(tmp_path / "many", [toys.episode(i) for i in range(12)], shard_bytes=1, val_fraction=0)
    few, all_at_once = make(folder, open_shards=3), make(folder)
    shards = few._sets[0].shards
    length = len(few)
    switches = []
    for dataset in (few, all_at_once):
        visited = [int(shards[dataset._locate(k)[1]]) for k in range(length)]
        spans = [max(i for i, v in enumerate(visited) if v == s) - visited.index(s) for s in set(visited)]
        switches.append(np.mean(spans) / length)
    assert switches[0] < 0.3 < 0.4 < switches[1]
    assert sorted(few.batch(range(length)).keys) == sorted(all_at_once.batch(range(length)).keys)
    assert few.batch(range(length, length + 30)).keys != few.batch(range(30)).keys
