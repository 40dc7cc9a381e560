import multiprocessing
import os
import signal
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.unit.data.http_folder import serve
from wam_video.data.disk_cache import DiskCache
from wam_video.data.loader import DataConfig, DatasetConfig, WindowDataset, make_loader
from wam_video.data.manifest import load_manifest
from wam_video.data.reader import SampleError, read_sample
from wam_video.data.store import RemoteStore, StoreConfig, UnreachableError, as_store
from wam_video.data.windows import WindowConfig
from wam_video.errors import ConfigError, DataError, MissingDependencyError


def settings(tmp_path, **options):
    return StoreConfig(**{"cache_dir": str(tmp_path / "cache"), "retries": 3, "timeout_s": 5, **options})


def windows(path, **options):
    return WindowDataset(DataConfig(datasets={"a": DatasetConfig(path=str(path))}, window=WindowConfig(), **options), 3)


@pytest.fixture
def no_pauses(monkeypatch):
    waits = []
    monkeypatch.setattr("wam_video.data.store.sleep", waits.append)
    return waits


@pytest.mark.parametrize("ranges", [True, False])
def test_shards_on_a_web_server_give_the_batches_of_a_folder(shards, tmp_path, ranges):
    local = windows(shards).batch(range(20, 50))
    with serve(shards, ranges=ranges) as server:
        remote = windows(server.url, store=settings(tmp_path), cache_mb=0).batch(range(20, 50))
        tars = [ask for ask in server.asked if ask[0].endswith(".tar")]
    assert remote.keys == local.keys
    assert torch.equal(remote.video, local.video)
    assert torch.equal(remote.actions, local.actions)
    samples = len({key.split("@")[0] for key in local.keys})
    # by ranges each sample is asked for once, else the whole shard is sent once and all its samples are kept
    assert len(tars) == (samples if ranges else 1)


def test_a_second_run_asks_the_cache_and_workers_too(shards, tmp_path):
    with serve(shards) as server:
        config = settings(tmp_path)
        whole = windows(server.url, store=config)
        first = whole.batch(range(40))
        whole.batch(range(len(whole)))
        server.asked.clear()
        again = windows(server.url, store=config, num_workers=1)
        assert torch.equal(next(iter(make_loader(again, 40))).video, first.video)
        assert not [path for path, _ in server.asked if path.endswith(".tar")]


def test_shards_in_memory_are_read_through_fsspec(shards, tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    for path in shards.iterdir():
        store.pipe_file(f"/toys/{path.name}", path.read_bytes())
    remote = windows("memory://toys", store=settings(tmp_path))
    assert torch.equal(remote.batch(range(9)).video, windows(shards).batch(range(9)).video)


def test_a_dataset_that_was_converted_again_is_not_answered_from_the_cache(shards, toys, tmp_path):
    manifest = load_manifest(shards)
    shard, sample = manifest.split("train")[0]
    with serve(shards) as server:
        store = as_store(server.url, settings(tmp_path))
        read_sample(store, shard, sample)
        server.asked.clear()
        read_sample(store, shard, sample)
        assert not server.asked
        read_sample(store, replace(shard, sha256="another"), sample)
        assert len(server.asked) == 1


def test_failures_are_tried_again_with_growing_pauses(shards, tmp_path, no_pauses):
    with serve(shards) as server:
        store = as_store(server.url, settings(tmp_path))
        shard, sample = load_manifest(store).split("train")[0]
        server.failures = 3
        read_sample(store, shard, sample)
        assert len(no_pauses) == 3
        assert all(0.25 * 2**i <= wait <= 0.75 * 2**i for i, wait in enumerate(no_pauses))
        server.failures = 4
        with pytest.raises(SampleError, match="no answer in 4 tries") as caught:
            read_sample(store, shard, load_manifest(store).split("train")[1][1])
        assert caught.value.reason == "unreachable"
        assert "\n" not in str(caught.value)


def test_what_takes_too_long_is_given_up(shards, tmp_path, no_pauses):
    with serve(shards) as server:
        store = RemoteStore(server.url, settings(tmp_path, timeout_s=0.2, retries=1))
        server.delay_s = 3.0
        start = time.monotonic()
        with pytest.raises(UnreachableError, match=r"took longer than 0\.2 s"):
            store.read("toy-train-000000.tar", (0, 512))
        assert time.monotonic() - start < 2


def test_what_is_not_there_is_told_at_once(shards, tmp_path, no_pauses):
    with serve(shards) as server:
        with pytest.raises(DataError, match=r"/nothing' holds no manifest\.json"):
            load_manifest(as_store(f"{server.url}/nothing", settings(tmp_path)))
        store = as_store(server.url, settings(tmp_path))
        shard, sample = load_manifest(store).split("train")[0]
        with pytest.raises(SampleError) as caught:
            read_sample(store, replace(shard, name="gone.tar"), sample)
        assert caught.value.reason == "missing"
    assert not no_pauses


def test_addresses_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no store nowhere://; allowed"):
        as_store("nowhere://bucket/x")
    with pytest.raises(ConfigError, match=r"data\.store\.retries is -1"):
        StoreConfig(retries=-1)
    with pytest.raises(ConfigError, match=r"timeout_s is 0"):
        StoreConfig(timeout_s=0)


def test_a_missing_package_names_the_extra(monkeypatch):
    import fsspec

    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(MissingDependencyError, match=r"'s3fs'.*wam-video\[data\]"):
        load_manifest("s3://bucket/shards")


def test_the_least_recently_used_go_first_and_the_bound_holds(tmp_path):
    cache = DiskCache(tmp_path / "c", 4 * 132)  # four entries of 100 bytes and their digests
    for name in "abcd":
        cache.put(name, name.encode() * 100)
    assert cache.get("a") == b"a" * 100
    cache.put("e", b"e" * 100)
    assert [name for name in "abcde" if cache.get(name)] == ["a", "c", "d", "e"]
    assert cache.used == 4 * 132
    cache.put("big", b"x" * 528)
    assert cache.get("big") is None  # larger than the bound, with its digest
    assert cache.used == 4 * 132
    cache.put("most", b"x" * 400)
    assert [name for name in ("a", "c", "d", "e", "most") if cache.get(name)] == ["most"]
    assert cache.used == 432


def test_a_damaged_entry_is_no_entry(tmp_path):
    cache = DiskCache(tmp_path, 1000)
    cache.put("a", b"abc")
    (path,) = tmp_path.glob("*.bin")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert cache.get("a") is None
    cache.put("a", b"abc")
    assert cache.get("a") == b"abc"


def test_a_cache_that_can_not_be_written_costs_no_data(shards, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with serve(shards) as server:
        batch = windows(server.url, store=settings(tmp_path, cache_dir=str(blocked / "cache"))).batch(range(5))
    assert batch.keys == windows(shards).batch(range(5)).keys


def _fill(folder: str, start: int, bound: int, out: "multiprocessing.Queue[object]") -> None:
    cache = DiskCache(folder, bound)
    worst = 0
    for number in range(60):
        key = str((start + number) % 40)
        found = cache.get(key)
        if found is not None and found != key.encode() * 50:
            worst = 10**9
        cache.put(key, key.encode() * 50)
        worst = max(worst, cache.used)
    out.put(worst)


def test_several_processes_fill_one_cache_and_none_breaks_its_bound(tmp_path):
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    bound = 12 * 132
    workers = [context.Process(target=_fill, args=(str(tmp_path / "c"), 13 * i, bound, out)) for i in range(3)]
    for worker in workers:
        worker.start()
    largest = [out.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert 0 < max(largest) <= bound
    assert not list((tmp_path / "c").glob("*.tmp"))


def _write_for_ever(folder: str) -> None:
    cache = DiskCache(folder, 3 << 20)
    for number in range(10**9):
        cache.put(str(number), os.urandom(1 << 20))


def test_a_process_killed_while_it_writes_leaves_nothing_that_counts(tmp_path):
    folder = tmp_path / "c"
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        worker = context.Process(target=_write_for_ever, args=(str(folder),))
        worker.start()
        while not list(folder.glob("*.bin")):
            time.sleep(0.005)
        time.sleep(0.03)
        os.kill(worker.pid, signal.SIGKILL)  # type: ignore[arg-type]
        worker.join()
    cache = DiskCache(folder, 3 << 20)
    cache.put("after", b"x")
    assert not list(folder.glob("*.tmp"))
    assert cache.used <= 3 << 20
    assert cache.get("after") == b"x"


def test_the_stream_from_a_server_survives_a_stutter(shards, tmp_path, no_pauses):
    with serve(shards) as server:
        loader = make_loader(windows(server.url, store=settings(tmp_path), cache_mb=0), 4)
        server.failures = 2
        keys = [batch.keys for batch in islice(loader, 4)]
        assert keys == [batch.keys for batch in islice(make_loader(windows(shards), 4), 4)]
        assert loader.skips.reasons == {}
    assert Path(tmp_path / "cache").is_dir()
