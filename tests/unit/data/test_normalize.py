import json

import numpy as np
import pytest
import torch

from wam_video.data.normalize import KINDS, Normalizer, compute_stats, load_stats, save_stats, stats_hash
from wam_video.errors import ConfigError, DataError


def describe(values):
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    rows = {
        "mean": values.mean(0),
        "std": values.std(0),
        "min": values.min(0),
        "max": values.max(0),
        "q01": q01,
        "q99": q99,
    }
    return {name: row.tolist() for name, row in rows.items()} | {"count": len(values)}


@pytest.fixture
def values() -> np.ndarray:
    rng = np.random.default_rng(0)
    columns = [
        rng.normal(3, 2, 1000),
        np.full(1000, 0.7),
        (rng.random(1000) < 0.003) * 1.0,
        rng.uniform(-1e-3, 1e-3, 1000),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_inverting_gives_the_values_back_and_constants_exactly(values, kind):
    normalizer = Normalizer(kind, describe(values))
    there = normalizer.apply(values)
    back = normalizer.invert(there)
    assert there.dtype == back.dtype == np.float32
    assert np.allclose(back, values, rtol=1e-5, atol=1e-6)
    assert (there[:, 1] == 0).all()
    assert (normalizer.invert(there + 5)[:, 1] == np.float32(0.7)).all()
    assert np.isfinite(there).all()
    assert np.abs(there).max() < 20


def test_each_kind_lands_where_it_says(values):
    stats = describe(values)
    column = values[:, 0]
    quantile = Normalizer("quantile", stats).apply(values)[:, 0]
    assert np.allclose(np.quantile(quantile, [0.01, 0.99]), [-1, 1], atol=1e-4)
    assert quantile[column.argmax()] > 1  # nothing is clipped
    extremes = Normalizer("min_max", stats).apply(values)[:, [0, 2, 3]]
    assert np.allclose([extremes.min(0), extremes.max(0)], [[-1] * 3, [1] * 3], atol=1e-5)
    standard = Normalizer("mean_std", stats).apply(values)[:, [0, 2, 3]]
    assert np.allclose([standard.mean(0), standard.std(0)], [[0] * 3, [1] * 3], atol=1e-4)


def test_a_dimension_that_moves_rarely_keeps_its_range(values):
    rare = Normalizer("quantile", describe(values)).apply(values)[:, 2]
    assert set(np.unique(rare)) == {-1.0, 1.0}


def test_torch_and_numpy_agree(values):
    normalizer = Normalizer("quantile", describe(values))
    tensor = torch.from_numpy(values)
    assert np.array_equal(normalizer.apply(tensor).numpy(), normalizer.apply(values))
    assert np.array_equal(normalizer.invert(tensor).numpy(), normalizer.invert(values))


def test_a_wrong_width_kind_or_field_is_refused(values):
    stats = describe(values)
    with pytest.raises(DataError, match="last dimension is 3; the statistics have 4"):
        Normalizer("quantile", stats).apply(values[:, :3])
    with pytest.raises(ConfigError, match=r"normalization is 'quantiles'.*Did you mean 'quantile'"):
        Normalizer("quantiles", stats)
    with pytest.raises(DataError, match="'q99'"):
        Normalizer("quantile", {k: v for k, v in stats.items() if k != "q99"})


def test_statistics_are_of_the_train_split_alone(shards, toys):
    from wam_video.data.manifest import load_manifest

    stats = load_stats(shards)["toy"]
    train = sorted({int(e.episode_id[2:]) for _, e in load_manifest(shards).split("train")})
    actions = np.concatenate([toys.episode(i).actions for i in train])
    assert stats["actions"]["count"] == len(actions)
    for name, expected in describe(actions.astype(np.float64)).items():
        assert np.allclose(stats["actions"][name], expected)
    assert load_stats(shards) == compute_stats(shards)


def test_several_folders_count_as_one(shards, plain_shards, toys, tmp_path):
    other = toys.write(tmp_path / "other", [toys.episode(50)], val_fraction=0)
    both = compute_stats([shards, other, plain_shards])
    assert both["toy"]["actions"]["max"][0] == 50077
    assert both["toy"]["actions"]["count"] == compute_stats(shards)["toy"]["actions"]["count"] + 78
    assert both["clip"] == {}


def test_a_flipped_digit_in_the_file_is_found(shards, tmp_path):
    path = save_stats(load_stats(shards), tmp_path)
    content = path.read_text()
    at = content.index('"mean"') + content[content.index('"mean"') :].index(".") + 1
    path.write_text(content[:at] + str((int(content[at]) + 1) % 10) + content[at + 1 :])
    with pytest.raises(DataError, match="altered"):
        load_stats(tmp_path)
    path.write_text("{}")
    with pytest.raises(DataError, match="not a statistics file"):
        load_stats(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        load_stats(tmp_path)


def test_the_hash_depends_on_values_and_not_on_order():
    assert stats_hash({"a": {"x": 1.5}, "b": {}}) == stats_hash({"b": {}, "a": {"x": 1.5}})
    assert stats_hash({"a": {"x": 1.5}}) != stats_hash({"a": {"x": 1.25}})
    stats = {"a": {"actions": {"mean": [0.1, 1 / 3]}}}
    assert stats_hash(json.loads(json.dumps(stats))) == stats_hash(stats)
