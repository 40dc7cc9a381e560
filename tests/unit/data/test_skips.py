"""Samples that can't be used: replaced alike on every rank and worker, counted, named, and fatal beyond a limit."""

import dataclasses
import io
import logging
import shutil
from itertools import islice

import numpy as np
import pytest
import torch

from tests.unit.data.http_folder import serve
from wam_video.data.loader import DataConfig, DatasetConfig, WindowDataset, eval_windows, make_loader
from wam_video.data.manifest import load_manifest
from wam_video.data.reader import REASONS
from wam_video.data.store import StoreConfig
from wam_video.data.windows import WindowConfig
from wam_video.errors import ConfigError, DataError


def make(*paths, seed=3, **options):
    datasets = {f"d{i}": DatasetConfig(path=str(p)) for i, p in enumerate(paths)}
    return WindowDataset(
        DataConfig(datasets=datasets, window=WindowConfig(), **{"max_bad_share": 0.5, **options}), seed
    )


def member(members, suffix):
    return next(name for name in members if name.endswith(suffix))


def put(suffix, content):
    return lambda members: members.update({member(members, suffix): content(members[member(members, suffix)])})


def nan_actions(content):
    array = np.load(io.BytesIO(content))
    array[0] = np.nan
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


@pytest.fixture
def broken(shards, toys, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "broken")
    toys.rewrite_first_sample(folder, put(".mp4", lambda content: content[:500]))
    return folder


def first_key(folder):
    return load_manifest(folder).split("train")[0][1].key


def facts(batches):
    return [
        [
            (k, i, a.tolist(), v.float().mean().item())
            for k, i, a, v in zip(b.keys, b.indices.tolist(), b.actions, b.video, strict=True)
        ]
        for b in batches
    ]


def test_a_bad_clip_is_replaced_and_nothing_else_changes(shards, broken):
    good, bad = make(shards).batch(range(120)), make(broken).batch(range(120))
    hit = [key.startswith(f"d0/{first_key(broken)}@") for key in good.keys]
    assert any(hit)
    for row, replaced in enumerate(hit):
        assert (bad.keys[row] != good.keys[row]) == replaced
        assert torch.equal(bad.video[row], good.video[row]) != replaced or replaced
    (skip,) = bad.skipped
    assert (skip.dataset, skip.key, skip.reason, skip.wanted) == ("d0", first_key(broken), "video", sum(hit))
    assert good.skipped == ()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_number_of_ranks_and_workers_sees_the_same_substitutes(broken, plain_shards, ranks, workers):

    def dataset():
        return make(broken, plain_shards, windows_per_decode=1)

    reference = [dataset().batch(range(12 * s + 30, 12 * s + 42)) for s in range(4)]
    assert any(batch.skipped for batch in reference)
    loaders = [iter(make_loader(dataset(), 12 // ranks, 30, rank, ranks, num_workers=workers)) for rank in range(ranks)]
    for whole in reference:
        parts = [next(loader) for loader in loaders]
        assert [row for part in facts(parts) for row in part] == facts([whole])[0]
    for loader in loaders:
        loader.close()


@pytest.mark.parametrize("start", [0, 1, 17, 50])
def test_resuming_at_any_sample_draws_the_same_substitutes(broken, start):
    whole = make(broken).batch(range(90))
    resumed = make(broken).batch(range(start, 90))
    assert resumed.keys == whole.keys[start:]
    assert torch.equal(resumed.video, whole.video[start:])


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (put(".mp4", lambda content: content[: len(content) // 2]), "video"),
        (put("actions.npy", nan_actions), "arrays"),
        (put(".json", lambda _: b"{"), "json"),
        (lambda members: members.update({"x.pkl": b"never opened"}), "tar"),
        (lambda members: members.pop(member(members, ".mp4")), "manifest"),
    ],
)
def test_each_kind_of_damage_is_counted_under_its_reason_and_named_once(shards, toys, tmp_path, edit, reason, caplog):
    folder = shutil.copytree(shards, tmp_path / "broken")
    toys.rewrite_first_sample(folder, edit)
    loader = make_loader(make(folder), 10)
    with caplog.at_level(logging.WARNING, "wam_video"):
        batches = list(islice(loader, 12))
    assert loader.skips.reasons == {reason: 1}
    assert reason in REASONS
    assert loader.skips.windows == sum(s.wanted for b in batches for s in b.skipped) > 1
    named = [r.getMessage() for r in caplog.records if first_key(folder) in r.getMessage()]
    assert len(named) == 1
    assert f"({reason})" in named[0]
    assert "toy-train-000000.tar" in named[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_beyond_the_limit_the_run_ends_with_one_line(broken, workers):
    loader = make_loader(make(broken, max_bad_share=0.05), 10, num_workers=workers)
    with pytest.raises(
        DataError, match=r"'d0': 1 of \d+ clips can't be used \(1 video\); data\.max_bad_share"
    ) as caught:
        list(islice(loader, 12))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_without_any_good_clip_ends_the_run_with_one_line(shards, tmp_path, workers):
    folder = shutil.copytree(shards, tmp_path / "gone")
    path = folder / "toy-train-000000.tar"
    path.chmod(0o644)
    path.write_bytes(bytes(path.stat().st_size))
    loader = make_loader(make(folder, max_bad_share=1.0), 4, num_workers=workers)
    with pytest.raises(DataError, match="10 clips in a row can't be used, the last because") as caught:
        next(iter(loader))
    assert "\n" not in str(caught.value)


def test_clips_may_be_named_as_unusable_and_the_others_stay_where_they_are(shards, broken):
    key = first_key(shards)
    listed = make(shards, skip=[f"d0/{key}"]).batch(range(120))
    assert listed.keys == make(broken).batch(range(120)).keys  # the reason does not matter, only which clip it is
    assert {s.reason for s in listed.skipped} == {"listed"}
    for wrong in ("d9/x", "x", "d0/"):
        with pytest.raises(ConfigError, match=r"data\.skip holds"):
            make(shards, skip=[wrong])


def test_a_store_that_fails_for_a_while_is_asked_again(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("wam_video.data.store.sleep", lambda _: None)
    store = StoreConfig(cache_dir=str(tmp_path / "c"), retries=0)
    with serve(shards) as server:
        dataset = make(server.url, store=store, cache_mb=0)
        server.failures = 1
        first = dataset.batch([5])
        assert [s.reason for s in first.skipped] == ["unreachable"]
        again = dataset.batch([5])  # that was the store's fault and not the sample's
    assert again.skipped == ()
    assert again.keys == make(shards).batch([5]).keys != first.keys


def test_held_out_windows_leave_bad_clips_out_and_scores_refuse_them(shards, toys, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "val")
    manifest = load_manifest(folder)
    shard, sample = manifest.split("val")[0]
    path = folder / shard.name
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[sample.offset + 600 : sample.offset + 900] = bytes(300)
    path.write_bytes(data)
    kept = eval_windows(make(folder), 30)
    whole = eval_windows(make(shards), 30)
    keys = [key for batch in kept for key in batch.keys]
    assert keys == [k for b in whole for k in b.keys if not k.startswith(f"d0/{sample.key}@")]
    held_out = make(folder).held_out()
    with pytest.raises(DataError, match=sample.key):
        held_out.batch(range(len(held_out)))


def test_a_batch_with_skips_moves_like_any_other(broken):
    batch = make(broken).batch(range(60))
    assert batch.to("cpu").skipped == batch.skipped != ()
    assert {f.name for f in dataclasses.fields(batch.skipped[0])} == {"dataset", "key", "reason", "message", "wanted"}
