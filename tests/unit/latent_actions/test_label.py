import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.latent_actions.square import SPEC, write
from wam_video.data.loader import DataConfig, DatasetConfig, WindowDataset
from wam_video.data.manifest import load_manifest
from wam_video.data.normalize import load_stats
from wam_video.data.reader import load_clip, load_npy, read_sample
from wam_video.data.verify import verify
from wam_video.data.windows import WindowConfig
from wam_video.errors import ConfigError, DataError
from wam_video.latent_actions import label as module
from wam_video.latent_actions.label import label, label_frames
from wam_video.latent_actions.networks import LatentActionModel, LatentModelConfig
from wam_video.latent_actions.pairs import Body, inputs, ready


def tiny(interval_s: float = 0.1) -> LatentActionModel:
    torch.manual_seed(3)
    config = LatentModelConfig(method="vae", dim=5, side=16, width=8, interval_s=interval_s)
    return LatentActionModel(config).eval().requires_grad_(False)


def made(squares: Path, output: Path, interval_s: float = 0.1):
    return label(squares, output, tiny(interval_s), "0" * 64, Body.of(load_manifest(squares)))


def test_a_latent_is_of_its_frame_and_the_next_and_nothing_else_is_touched(squares: Path, tmp_path: Path) -> None:
    manifest, old, model = made(squares, tmp_path / "out"), load_manifest(squares), tiny()
    assert [shard.name for shard in manifest.shards] == [shard.name for shard in old.shards]
    for new, before in zip(manifest.shards, old.shards, strict=True):
        assert new.split == before.split
        for sample, was in zip(new.samples, before.samples, strict=True):
            mine, theirs = read_sample(tmp_path / "out", new, sample), read_sample(squares, before, was)
            assert mine["top.mp4"] == theirs["top.mp4"]
            for name in ("actions", "state"):
                assert mine[f"source.{name}.npy"] == theirs[f"{name}.npy"]
            assert "state.npy" not in mine
            clip = load_clip(tmp_path / "out", new, sample)
            assert clip.actions.shape == (sample.num_frames - 1, 5) == (sample.num_actions, 5)
            for i in (0, 7, sample.num_frames - 2):
                pair = inputs(clip.video["top"][i : i + 1], clip.video["top"][i + 1 : i + 2], model.config)
                np.testing.assert_allclose(clip.actions[i], model.label(ready(pair))[0], atol=1e-5)
            assert json.loads(mine["json"])["extra"]["source"]["num_actions"] == was.num_actions
    assert manifest.embodiments["latent_vae5"].action_rate == 10
    stats = load_stats(tmp_path / "out")["latent_vae5"]["actions"]
    assert len(stats["q01"]) == 5 and stats["count"] == manifest.counts["train"]["actions"]
    assert not list(verify(tmp_path / "out"))


def test_longer_intervals_follow_each_other_without_a_gap(squares: Path, tmp_path: Path) -> None:
    manifest = made(squares, tmp_path / "out", 0.3)
    spec = manifest.embodiments["latent_vae5"]
    assert spec.action_rate == pytest.approx(10 / 3)
    shard = manifest.shards[0]
    clip = load_clip(tmp_path / "out", shard, shard.samples[0])
    assert len(clip.actions) == (len(clip.video["top"]) - 1) // 3
    model = tiny(0.3)
    pair = inputs(clip.video["top"][3:4], clip.video["top"][6:7], model.config)
    np.testing.assert_allclose(clip.actions[1], model.label(ready(pair))[0], atol=1e-5)
    assert label_frames(model, clip.video["top"][:2], 3).shape == (0, 5)


def test_killed_between_shards_it_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source", episodes=5, frames=8, shard_bytes=1)
    whole = made(source, tmp_path / "whole")
    calls = []

    def dying(*arguments):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return label_frames(*arguments)

    monkeypatch.setattr(module, "label_frames", dying)
    with pytest.raises(KeyboardInterrupt):
        made(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    calls.clear()
    monkeypatch.setattr(module, "label_frames", lambda *a: calls.append(1) or label_frames(*a))
    again = made(source, tmp_path / "out")
    assert len(calls) == 2, "finished shards are not made again"
    assert [s.sha256 for s in again.shards] == [s.sha256 for s in whole.shards]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


def test_what_was_begun_with_another_model_is_not_gone_on_with(squares: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "rewrite.json").write_text("{}")
    with pytest.raises(DataError, match="begun with another"):
        made(squares, tmp_path / "out")
    shutil.rmtree(tmp_path / "out.partial")
    made(squares, tmp_path / "out")
    with pytest.raises(DataError, match="exists already"):
        made(squares, tmp_path / "out")
    with pytest.raises(DataError, match="latent actions already"):
        made(tmp_path / "out", tmp_path / "twice")


def test_labels_that_would_be_none_or_pass_for_the_robots_own_are_refused(squares: Path, tmp_path: Path) -> None:
    body = Body.of(load_manifest(squares))
    with pytest.raises(ConfigError, match="a body of"):
        label(squares, tmp_path / "out", tiny(), "0" * 64, body, "square")
    with pytest.raises(DataError, match="no two frames"):
        made(squares, tmp_path / "out", 2.4)
    assert not list(tmp_path.iterdir())


def test_a_run_mixes_labelled_latent_labelled_and_plain_video(squares: Path, tmp_path: Path) -> None:
    made(squares, tmp_path / "out")
    window = WindowConfig(
        num_context_frames=2, num_future_frames=1, context_stride_s=0.1, future_stride_s=0.1, action_horizon=2
    )
    config = DataConfig(
        datasets={
            "true": DatasetConfig(path=str(squares), episodes=0.6),
            "latent": DatasetConfig(path=str(tmp_path / "out")),
            "plain": DatasetConfig(path=str(squares), drop_actions=1.0),
        },
        window=window,
    )
    batch = WindowDataset(config).batch(range(48))
    assert {*batch.embodiments} == {"square", "latent_vae5"}
    widths = {(d, int(m)) for d, m in zip(batch.datasets, batch.action_mask[:, 0].sum(1), strict=True)}
    assert widths == {("true", 2), ("latent", 5), ("plain", 0)}
    row = batch.datasets.index("latent")
    name, frame = batch.keys[row].split("/")[1].split("@")
    shard, sample = next(p for p in load_manifest(tmp_path / "out").split("train") if p[1].key == name)
    actions = load_npy(read_sample(tmp_path / "out", shard, sample)["actions.npy"], "actions")
    np.testing.assert_array_equal(batch.actions[row, 0, :5].numpy(), actions[int(frame)])
    assert SPEC.action_dim == 2 and not batch.state_mask[row].any()
