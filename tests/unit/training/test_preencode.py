"""Latents in shards: what comes out of them is what the codec makes of the pixels, and only that codec's run takes them."""

import dataclasses
import hashlib
import io
import multiprocessing
import os
import pickle
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from tests.unit.data.conftest import rewrite_first_sample, toy_episode, write_shards
from tests.unit.data.http_folder import serve
from tests.unit.training.fakes import tiny_config, tiny_trainer
from wam_video.cli.main import main as command
from wam_video.data.latents import from_bits, to_npy
from wam_video.data.loader import DataConfig, DatasetConfig, WindowDataset, eval_windows, make_loader
from wam_video.data.manifest import load_manifest, verify_manifest
from wam_video.data.processor import WAMProcessor
from wam_video.data.store import StoreConfig
from wam_video.data.verify import verify
from wam_video.data.windows import WindowConfig
from wam_video.errors import ConfigError, DataError
from wam_video.flow.density import DensityConfig
from wam_video.flow.loss import LossConfig
from wam_video.models.fingerprint import codec_hash
from wam_video.models.video_codec import PixelCodec
from wam_video.training.config import CodecConfig
from wam_video.training.feed import ShardFeed
from wam_video.training.preencode import EncodeConfig, Encoder
from wam_video.training.sample import Sampler, SamplerConfig

WINDOW = WindowConfig(num_context_frames=1, num_future_frames=4, future_stride_s=0.1, action_horizon=6, max_views=2)
BF16 = 2.0**-8
"""Half a unit in the last place of bfloat16, relative."""


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """Five episodes in several shards; one has a second view."""
    episodes = [toy_episode(i, frames=30, views=("front", "wrist")) for i in range(4)]
    lone = toy_episode(4, frames=30, views=("front", "wrist"))
    episodes.append(dataclasses.replace(lone, views={"front": lone.views["front"]}))
    folder = tmp_path_factory.mktemp("pixels") / "shards"
    return write_shards(folder, episodes, shard_bytes=20_000, val_fraction=0.3)


@pytest.fixture(scope="module")
def wan():
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.1] * 4, latents_std=[0.8] * 4).eval().requires_grad_(False)  # fmt: skip


def build(kind, wan):
    return wan if kind == "wan" else PixelCodec(patch_size=4)


def encode_to(output, source, codec, **options):
    return Encoder(str(source), Path(output), codec, EncodeConfig(**{"window": WINDOW, **options})).run()


def windows(path, window=WINDOW, **options):
    return WindowDataset(DataConfig(datasets={"a": DatasetConfig(path=str(path))}, window=window, **options), 3)


def windows_opened_before(dataset):
    """The same dataset without its clips: what a worker gets."""
    return pickle.loads(pickle.dumps(dataset))


def sampler(codec, dataset):
    processor = WAMProcessor.from_dataset(dataset, "quantile")
    return Sampler(SamplerConfig(seed=1, density=DensityConfig(), loss=LossConfig()), codec, processor, None)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


@pytest.mark.parametrize("kind", ["pixel", "wan"])
def test_training_samples_from_latents_are_those_from_pixels_to_bfloat16(pixels, wan, tmp_path, kind):
    codec = build(kind, wan)
    encode_to(tmp_path / "latents", pixels, codec)
    stored, recorded = windows(tmp_path / "latents"), windows(pixels)
    assert len(stored) == len(recorded)
    for start in (0, 40):
        ours, theirs = stored.batch(range(start, start + 12)), recorded.batch(range(start, start + 12))
        for name in ("keys", "prompts", "num_context_frames", "embodiments"):
            assert getattr(ours, name) == getattr(theirs, name)
        for name in ("actions", "action_mask", "state", "frame_mask", "frame_times", "action_times", "indices"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        assert ours.latents.dtype == torch.bfloat16
        assert ours.video.shape == (12, 2, 3, 5, 0, 0)
        from_latents = sampler(codec, stored)(ours, torch.device("cpu"))
        from_pixels = sampler(codec, recorded)(theirs, torch.device("cpu"))
        mask = theirs.frame_mask.any(-1)
        clean, exact = (s.noisy.x_t.video[mask] for s in (from_latents, from_pixels))
        assert (clean - exact).abs().max() <= BF16 * exact.abs().max() * 1.01
        assert torch.equal(from_latents.noisy.x_t.actions, from_pixels.noisy.x_t.actions)
        assert torch.equal(from_latents.t_video, from_pixels.t_video)
        assert torch.equal(from_latents.video_count, from_pixels.video_count)
    assert not mask.all()


class Record:
    """Keep each step's losses and gradient norm."""

    def __init__(self):
        self.rows = []

    def on_step(self, run, result):
        sums, counts = run.tally.terms(result.sums)
        self.rows.append([*(sums / counts.clamp(min=1)).tolist(), float(result.grad_norm)])

    def on_end(self, run):
        pass


def test_a_run_from_latents_goes_the_way_of_the_run_from_pixels(pixels, wan, tmp_path):
    wan.save_pretrained(tmp_path / "vae")
    data = {}
    for name, path in (("pixels", pixels), ("latents", tmp_path / "latents")):
        window = dataclasses.replace(WINDOW, action_horizon=4)
        data[name] = DataConfig(datasets={"a": DatasetConfig(path=str(path))}, window=window)
    encode_to(tmp_path / "latents", pixels, AutoencoderKLWan.from_pretrained(tmp_path / "vae").eval())
    rows = {}
    for name, config in data.items():
        codec = CodecConfig(kind="wan", path=str(tmp_path / "vae"))
        run = tiny_config(tmp_path / name, steps=6, data=config, codec=codec)
        record = Record()
        tiny_trainer(run, ShardFeed(config, run.seed)).run([record])
        rows[name] = torch.tensor(record.rows, dtype=torch.float64)
    assert rows["pixels"].isfinite().all()
    error = (rows["latents"] - rows["pixels"]).abs() / rows["pixels"].abs().clamp(min=1e-3)
    assert 0 < error.max() < 0.01  # losses and gradient norms of six steps; bfloat16 is good to 0.4 %


def test_bits_are_those_of_torch():
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 100
    bits = np.load(io.BytesIO(to_npy(values)))
    assert bits.dtype == np.uint16
    assert torch.equal(from_bits(bits), values.to(torch.bfloat16))


def test_a_run_with_another_codec_is_refused_in_one_line(pixels, wan, tmp_path):
    encode_to(tmp_path / "latents", pixels, PixelCodec(patch_size=4))
    stored = windows(tmp_path / "latents")
    for other in (PixelCodec(patch_size=4, std=0.6), wan):
        with pytest.raises(DataError, match=r"'a' holds latents of codec \w{12}, the run's codec is") as caught:
            sampler(other, stored)(stored.batch([0]), torch.device("cpu"))
        assert "\n" not in str(caught.value)


def test_the_hash_is_of_weights_and_configuration(wan):
    assert codec_hash(PixelCodec(patch_size=4)) == codec_hash(PixelCodec(patch_size=4))
    torch.manual_seed(0)
    twin = AutoencoderKLWan.from_config(wan.config)
    twin.load_state_dict(wan.state_dict())
    assert codec_hash(twin) == codec_hash(wan)
    other = AutoencoderKLWan.from_config(wan.config)
    other.load_state_dict(wan.state_dict())
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    assert codec_hash(other) != codec_hash(wan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_future_frames": 8}, "num_future_frames 4, the run has 8"),
        ({"future_stride_s": 0.2}, "future_stride_s 0.1, the run has 0.2"),
        ({"height": 8, "width": 8}, "height 16, the run has 8"),
        ({"max_views": 3}, r"2 view\(s\), the run has max_views 3"),
    ],
)
def test_other_windows_than_those_encoded_are_refused(pixels, tmp_path, changes, message):
    encode_to(tmp_path / "latents", pixels, PixelCodec(patch_size=4))
    with pytest.raises(DataError, match=message):
        windows(tmp_path / "latents", dataclasses.replace(WINDOW, **changes))


def test_fewer_views_and_fewer_windows_may_be_read(pixels, tmp_path):
    encode_to(tmp_path / "few", pixels, PixelCodec(patch_size=4), every=3)
    fewer = windows(tmp_path / "few", dataclasses.replace(WINDOW, max_views=1))
    whole = windows(pixels, dataclasses.replace(WINDOW, max_views=1))
    assert len(whole) / 3 <= len(fewer) < len(whole) / 2.5
    places = {key: k for k in range(len(whole)) for key in whole.batch([k]).keys}
    batch = fewer.batch(range(20))
    same = torch.cat([whole.batch([places[key]]).video for key in batch.keys])
    codec = PixelCodec(patch_size=4)
    exact = torch.stack([codec.encode(v.float() / 127.5 - 1) for v in same])
    assert (batch.latents.float() - exact).abs().max() <= BF16 * exact.abs().max() * 1.01


def test_pixels_are_read_where_they_were_kept_and_asked_for(pixels, tmp_path):
    encode_to(tmp_path / "both", pixels, PixelCodec(patch_size=4), keep_video=True)
    encode_to(tmp_path / "latents", pixels, PixelCodec(patch_size=4))
    kept = windows(tmp_path / "both", use_latents=False).batch(range(5))
    assert torch.equal(kept.video, windows(pixels).batch(range(5)).video)
    assert kept.latents is None
    assert torch.equal(windows(tmp_path / "both").batch([3]).latents, windows(tmp_path / "latents").batch([3]).latents)
    with pytest.raises(DataError, match="holds latents and no pixels"):
        windows(tmp_path / "latents", use_latents=False)


def test_latents_from_a_web_server_are_those_of_the_folder(pixels, tmp_path):
    encode_to(tmp_path / "latents", pixels, PixelCodec(patch_size=4))
    with serve(tmp_path / "latents") as server:
        store = StoreConfig(cache_dir=str(tmp_path / "cache"))
        far = windows(server.url, store=store).batch(range(8))
    assert torch.equal(far.latents, windows(tmp_path / "latents").batch(range(8)).latents)


def test_latents_that_are_cut_short_are_replaced_like_any_broken_clip(pixels, tmp_path):
    encode_to(tmp_path / "latents", pixels, PixelCodec(patch_size=4))
    dataset = windows(tmp_path / "latents", max_bad_share=1.0)
    whole = dataset.batch(range(40))
    shard, sample = load_manifest(tmp_path / "latents").split("train")[0]
    path = tmp_path / "latents" / shard.name
    path.chmod(0o644)
    os.truncate(path, sample.offset + sample.bytes // 2)
    batch = windows_opened_before(dataset).batch(range(40))
    assert {s.reason for s in batch.skipped} <= {"tar", "arrays"}
    assert batch.skipped
    hit = [key.startswith(f"a/{sample.key}@") for key in whole.keys]
    assert any(hit)
    assert all(ours != theirs for ours, theirs, bad in zip(batch.keys, whole.keys, hit, strict=True) if bad)


def test_hidden_actions_and_held_out_windows_work_from_latents(pixels, tmp_path):
    encode_to(tmp_path / "latents", pixels, PixelCodec(patch_size=4))
    hidden = {"a": DatasetConfig(path=str(tmp_path / "latents"), drop_actions=1.0)}
    dataset = WindowDataset(DataConfig(datasets=hidden, window=WINDOW), 3)
    batch = dataset.batch(range(10))
    assert not batch.action_mask.any()
    assert batch.latents.float().abs().sum() > 0
    held_out = eval_windows(windows(tmp_path / "latents"), 6)
    assert [b.keys for b in held_out] == [b.keys for b in eval_windows(windows(pixels), 6)]
    assert all(b.latents is not None for b in held_out)


def test_pixels_and_latents_in_one_run_get_batches_of_their_own(pixels, tmp_path):
    encode_to(tmp_path / "latents", pixels, PixelCodec(patch_size=4))
    both = {"p": DatasetConfig(path=str(pixels)), "l": DatasetConfig(path=str(tmp_path / "latents"))}
    dataset = WindowDataset(DataConfig(datasets=both, window=WINDOW, windows_per_bucket=4), 3)
    loader = iter(make_loader(dataset, 4))
    kinds = [(next(loader)) for _ in range(8)]
    assert {(b.latents is None, b.datasets[0]) for b in kinds} == {(True, "p"), (False, "l")}


def test_parts_in_any_order_and_alone_make_the_same_bytes(pixels, tmp_path):
    codec = PixelCodec(patch_size=4)
    encode_to(tmp_path / "alone", pixels, codec)
    for part in (2, 0, 1):
        manifest = encode_to(tmp_path / "parts", pixels, codec, part=part, num_parts=3)
        assert (manifest is None) == (part != 1)
    assert digests(tmp_path / "alone") == digests(tmp_path / "parts")
    verify_manifest(tmp_path / "parts", load_manifest(tmp_path / "parts"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone", "parts"]


def test_a_part_that_begins_after_the_others_made_all_is_done(pixels, tmp_path):
    codec = PixelCodec(patch_size=4)
    made = encode_to(tmp_path / "out", pixels, codec)
    late = encode_to(tmp_path / "out", pixels, codec, part=2, num_parts=3)
    assert late == made
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(DataError, match="exists already"):
        encode_to(tmp_path / "out", pixels, PixelCodec(patch_size=4, std=0.7), part=2, num_parts=3)


def test_tasks_over_shards_afar_ask_the_store_as_the_run_does(monkeypatch, tmp_path):
    read = []

    def manifest_of(folder):
        read.append(folder)
        return SimpleNamespace(shards=())

    monkeypatch.setattr("wam_video.data.manifest.load_manifest", manifest_of)
    monkeypatch.setattr("wam_video.data.tasks.run_parts", lambda *args, **kwargs: None)
    asked = ["data", "encode", "memory://shards", "--codec", "pixel", "--output", str(tmp_path / "out")]
    asked += ["--executor", "slurm", "--config", "data.store.retries=0", f"data.store.cache_dir={tmp_path}"]
    assert command(asked) == 0
    assert read[0]._config.retries == 0


def _encode_and_die(source, output, kept):
    """Encode, and be killed in the middle of a shard as soon as more than `kept` are done."""
    codec = PixelCodec(patch_size=4)
    encode = codec.encode

    def encode_or_die(video):
        if len(list(output.with_name("out.partial").glob("*.tar.json"))) > kept:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(video)

    codec.encode = encode_or_die
    encode_to(output, source, codec)


def test_killed_and_started_again_makes_the_same_bytes(pixels, tmp_path):
    context = multiprocessing.get_context("fork")
    partial = tmp_path / "out.partial"
    kept = 0
    for _ in range(2):
        worker = context.Process(target=_encode_and_die, args=(pixels, tmp_path / "out", kept))
        worker.start()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        assert len(list(partial.glob("*.tar.json"))) > kept
        kept = len(list(partial.glob("*.tar.json")))
        assert not (tmp_path / "out").exists()
    before = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.tar")}
    encode_to(tmp_path / "out", pixels, PixelCodec(patch_size=4))
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert sum(done[name] == stamp for name, stamp in before.items()) >= kept  # what was finished is not made again
    encode_to(tmp_path / "whole", pixels, PixelCodec(patch_size=4))
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_another_codec_does_not_go_on_with_what_one_began(pixels, tmp_path):
    encode_to(tmp_path / "out", pixels, PixelCodec(patch_size=4), part=0, num_parts=2)
    with pytest.raises(DataError, match="was begun with another source, codec, window or options"):
        encode_to(tmp_path / "out", pixels, PixelCodec(patch_size=4, std=0.7), part=1, num_parts=2)


def test_a_broken_clip_is_left_out_and_told(tmp_path):
    source = write_shards(tmp_path / "s", [toy_episode(i, views=("front", "wrist")) for i in range(3)], val_fraction=0)

    def cut(members):
        name = next(n for n in members if n.endswith("front.mp4"))
        members[name] = members[name][:400]

    rewrite_first_sample(source, cut)
    manifest = encode_to(tmp_path / "out", source, PixelCodec(patch_size=4))
    assert not list(verify(tmp_path / "out"))
    (skipped,) = manifest.skipped
    assert "front.mp4" in skipped.reason
    assert manifest.counts["total"]["samples"] == load_manifest(source).counts["total"]["samples"] - 1
    windows(tmp_path / "out").batch(range(30))


def test_clips_too_short_for_a_window_stay_and_count_in_the_statistics(tmp_path):
    episodes = [toy_episode(i, frames=n, dim=0, name="clip", views=("front",)) for i, n in enumerate((20, 2, 20))]
    source = write_shards(tmp_path / "s", episodes, val_fraction=0)
    window = WindowConfig(num_context_frames=1, num_future_frames=4, future_stride_s=0.5)
    manifest = encode_to(tmp_path / "out", source, PixelCodec(patch_size=4), window=window)
    assert manifest.counts["total"]["samples"] == 3
    assert not list(verify(tmp_path / "out"))
    stored, recorded = windows(tmp_path / "out", window), windows(source, window)
    assert stored.batch(range(9)).keys == recorded.batch(range(9)).keys


def test_requests_that_make_no_sense_are_refused(pixels, tmp_path):
    for wrong in ({"every": 0}, {"batch_size": 0}, {"part": 2, "num_parts": 2}):
        with pytest.raises(ConfigError):
            EncodeConfig(window=WINDOW, **wrong)
    encode_to(tmp_path / "out", pixels, PixelCodec(patch_size=4))
    with pytest.raises(DataError, match="exists already"):
        encode_to(tmp_path / "out", pixels, PixelCodec(patch_size=4))
    with pytest.raises(DataError, match="holds latents already"):
        encode_to(tmp_path / "again", tmp_path / "out", PixelCodec(patch_size=4))


def test_the_command_makes_a_folder_that_verify_and_a_run_accept(pixels, tmp_path, capsys):
    keys = ["codec.patch_size=4", "data.window.num_context_frames=1", "data.window.num_future_frames=4"]
    keys += ["data.window.future_stride_s=0.1", "data.window.action_horizon=6", "data.window.max_views=2"]
    output = tmp_path / "latents"
    done = command(["data", "encode", str(pixels), "--codec", "pixel", "--output", str(output), "--config", *keys])
    assert done == 0
    assert "codec " + codec_hash(PixelCodec(patch_size=4))[:12] in capsys.readouterr().out
    assert windows(output).batch([0]).latents is not None
    assert command(["data", "verify", str(output), "--no-checks"]) == 0  # the toy's numbers are a toy's
