"""A teacher's features in shards: a run reads them in place of running the teacher, and only those of its own teacher."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.data.conftest import toy_episode, write_shards
from tests.unit.models.fake_vit import fake_timm, write_weights
from tests.unit.training.fakes import MODEL, tiny_config, tiny_trainer
from wam_video.cli.main import main as command
from wam_video.data.loader import DataConfig, DatasetConfig, WindowDataset
from wam_video.data.schema import Episode
from wam_video.data.video import ArrayView
from wam_video.data.windows import WindowConfig
from wam_video.errors import DataError
from wam_video.models.teacher import TeacherConfig, load_teacher
from wam_video.models.video_codec import PixelCodec
from wam_video.training.config import CodecConfig, TrainConfig
from wam_video.training.feed import ShardFeed
from wam_video.training.preencode import EncodeConfig, Encoder
from wam_video.training.teacher import FrameTeacher
from wam_video.training.trainer import Trainer

WINDOW = WindowConfig(num_context_frames=1, num_future_frames=4, future_stride_s=0.1, action_horizon=4, max_views=2)
PATCH = (1, 1, 1)


@pytest.fixture(autouse=True)
def _timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm())


def moving(number: int) -> Episode:
    """Return an episode in whose pictures something is to be seen, of two views or of one."""
    made = toy_episode(number, frames=24, views=("front", "wrist"))
    noise = np.random.default_rng(number).integers(0, 80, (24, 24, 32, 3), np.uint8)
    video = ArrayView(noise + np.arange(24, dtype=np.uint8)[:, None, None, None] * 5, np.arange(24) / 10)
    views = dict.fromkeys(list(made.views)[: 1 + number % 2], video)
    return dataclasses.replace(made, views=views)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("pixels") / "shards", [moving(i) for i in range(4)], val_fraction=0.3)


def teacher_config(folder: Path, seed: int = 0, **changes: Any) -> TeacherConfig:
    path = folder / f"vit{seed}.safetensors"
    if not path.is_file():
        write_weights(path, seed)
    return TeacherConfig(**({"kind": "repa", "model": "fake_vit", "checkpoint": str(path), "hidden": 32} | changes))


def encode(pixels: Path, output: Path, teacher: TeacherConfig | None, patch: tuple[int, int, int] = PATCH) -> Path:
    codec = PixelCodec(patch_size=4)
    taught = None if teacher is None else FrameTeacher(load_teacher(teacher), codec, patch, "fake_vit")
    Encoder(str(pixels), output, codec, EncodeConfig(window=WINDOW), teacher=taught).run()
    return output


def run_config(folder: Path, shards: Path, teacher: TeacherConfig) -> TrainConfig:
    data = DataConfig(datasets={"a": DatasetConfig(path=str(shards))}, window=WINDOW)
    codec = CodecConfig(patch_size=4)
    return tiny_config(folder, data=data, codec=codec, teacher=teacher, model=MODEL | {"num_layers": 2}, steps=5)


class Record:
    """Keeps each step's losses and gradient norm."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def on_step(self, run: Any, result: Any) -> None:
        sums, counts = run.tally.terms(result.sums)
        self.rows.append([*(sums / counts.clamp(min=1)).tolist(), result.grad_norm])

    def on_end(self, run: Any) -> None: ...


def train(config: TrainConfig) -> tuple[Trainer, torch.Tensor]:
    trainer = tiny_trainer(config, ShardFeed(config.data, config.seed, with_teacher=True))
    record = Record()
    trainer.run([record])
    return trainer, torch.tensor(record.rows, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["repa", "next_frame"])
def test_a_run_from_stored_features_goes_the_way_of_the_run_that_asks_the_teacher(
    pixels: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teacher_config(tmp_path, kind=kind)
    stored = encode(pixels, tmp_path / "stored", teacher)
    trainer, wanted = train(run_config(tmp_path / "asked", pixels, teacher))
    lesson = trainer.teacher
    batches = [
        WindowDataset(run_config(tmp_path, path, teacher).data, 0, with_teacher=True).batch(range(24))
        for path in (pixels, stored)
    ]
    samples = [trainer.sampler(batch, trainer.engine.device) for batch in batches]
    asked, read = (lesson(batch, sample) for batch, sample in zip(batches, samples, strict=True))
    assert torch.equal(read.mask, asked.mask)
    assert 0 < asked.mask.sum() < asked.mask.numel(), "absent views and ends of clips are among them"
    assert (read.features - asked.features).abs().max() <= 2**-8 * asked.features.abs().max()
    assert read.features.dtype == torch.float32
    assert not torch.equal(read.features, asked.features), "they were rounded, so they were read"

    def never(*_: Any) -> None:
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(FrameTeacher, "features", never)
    _, found = train(run_config(tmp_path / "read", stored, teacher))
    assert wanted.isfinite().all()
    assert (wanted[:, 2] != 0).all()
    # losses, cosines and gradient norms of five steps; bfloat16 is good to 0.4 %
    torch.testing.assert_close(found, wanted, rtol=0.01, atol=1e-3)


def test_features_of_another_teacher_of_none_and_for_other_tokens_are_refused(pixels: Path, tmp_path: Path) -> None:
    own, other = teacher_config(tmp_path), teacher_config(tmp_path, 1)
    for name, folder, told in (
        ("other", encode(pixels, tmp_path / "other", other), "holds features of teacher .* encode the dataset again"),
        ("none", encode(pixels, tmp_path / "none", None), "no pixels, which a teacher needs, nor its features"),
        (
            "tokens",
            encode(pixels, tmp_path / "tokens", own, (1, 2, 2)),
            r"of shape \(8, 5, 2, 2\) .* tokens for \(8, 5, 4, 4\)",
        ),
    ):
        with pytest.raises(DataError, match=told):
            train(run_config(tmp_path / f"run-{name}", folder, own))


def test_what_one_teacher_began_another_does_not_go_on_with(pixels: Path, tmp_path: Path) -> None:
    codec, config = PixelCodec(patch_size=4), EncodeConfig(window=WINDOW, part=0, num_parts=2)
    for seed in (0, 1):
        teacher = FrameTeacher(load_teacher(teacher_config(tmp_path, seed)), codec, PATCH, "fake_vit")
        if seed == 0:
            Encoder(str(pixels), tmp_path / "out", codec, config, teacher=teacher)
        else:
            with pytest.raises(DataError, match="was begun with another source"):
                Encoder(str(pixels), tmp_path / "out", codec, config, teacher=teacher)


def test_features_that_a_run_has_no_use_for_are_not_read(pixels: Path, tmp_path: Path) -> None:
    stored = encode(pixels, tmp_path / "stored", teacher_config(tmp_path))
    data = DataConfig(datasets={"a": DatasetConfig(path=str(stored))}, window=WINDOW)
    batch = WindowDataset(data, 0).batch(range(4))
    assert (batch.teacher, batch.teacher_hash) == (None, "")
    batch = WindowDataset(data, 0, with_teacher=True).batch(range(4))
    assert batch.teacher is not None
    assert batch.teacher.shape == (4, 2, 8, 5, 4, 4)
    assert batch.teacher.dtype == torch.bfloat16


def test_the_command_stores_features_and_refuses_a_run_without_a_teacher(
    pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = teacher_config(tmp_path)
    keys = ["codec.patch_size=4", "data.window.num_context_frames=1", "data.window.num_future_frames=4"]
    keys += ["data.window.future_stride_s=0.1", "data.window.action_horizon=4", "data.window.max_views=2"]
    keys += ["model.patch_size=[1,2,2]"]
    ask = ["data", "encode", str(pixels), "--output", str(tmp_path / "out"), "--teacher", "--config", *keys]
    assert command(ask) == 2
    assert "--teacher is given, but teacher.kind is 'none'" in capsys.readouterr().err
    ask += ["teacher.kind=repa", "teacher.model=fake_vit", f"teacher.checkpoint={teacher.checkpoint}"]
    assert command([*ask, "--device", "gpu"]) == 2
    assert "--device is 'gpu', which can't be used" in capsys.readouterr().err
    assert not (tmp_path / "out.partial").exists()
    assert command(ask) == 0
    data = DataConfig(datasets={"a": DatasetConfig(path=str(tmp_path / "out"))}, window=WINDOW)
    batch = WindowDataset(data, 0, with_teacher=True).batch([0])
    assert batch.teacher is not None
    assert batch.teacher.shape == (1, 2, 8, 5, 2, 2)
    assert command(["data", "verify", str(tmp_path / "out"), "--no-checks"]) == 0
