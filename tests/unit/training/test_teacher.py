import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.unit.models.fake_vit import fake_timm, write_weights
from tests.unit.training.fakes import MODEL, FakeFeed, differing, tiny_config, tiny_trainer, weights
from wam_video.cli.train import _export
from wam_video.errors import CheckpointError, ConfigError
from wam_video.flow.density import DensityConfig
from wam_video.inference.pipeline import WAMPipeline
from wam_video.models.teacher import TeacherConfig
from wam_video.tensors import Batch
from wam_video.training import callbacks as hooks
from wam_video.training.build import build_on_meta
from wam_video.training.config import OptimConfig, TrainConfig
from wam_video.training.metrics import JsonLines
from wam_video.training.teacher import Teacher
from wam_video.training.trainer import Trainer

TWO_BLOCKS = MODEL | {"num_layers": 2}


@pytest.fixture(autouse=True)
def _timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm())


def taught_config(folder: Path, *, teacher: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder.parent / "vit.safetensors"
    if not path.is_file():
        write_weights(path)
    options = {"kind": "repa", "model": "fake_vit", "checkpoint": str(path), "hidden": 32, "layer": 0}
    return tiny_config(
        folder, teacher=TeacherConfig(**(options | (teacher or {}))), **({"model": TWO_BLOCKS} | changes)
    )


def backward(trainer: Trainer, batch: Batch) -> torch.Tensor:
    """Accumulate the gradient of the alignment alone; return the sum of the cosines."""
    sample = trainer.sampler(batch, trainer.engine.device)
    lesson = trainer.teacher(batch, sample)
    _, _, predicted = trainer.engine.module(sample, taught=True)
    cosine = lesson.terms(predicted).cosine_sum
    cosine.backward()
    return cosine.detach()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_reaches_trunk_and_projector_and_nothing_above(tmp_path: Path, checkpointing: bool) -> None:
    trainer = tiny_trainer(taught_config(tmp_path / "a", gradient_checkpointing=checkpointing))
    backward(trainer, FakeFeed().batch([0, 1, 2, 3]))
    module = trainer.engine.module
    moved = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"head.projector.0.weight", "head.projector.4.bias", "transformer.patch_embedding.weight"} <= moved
    assert "transformer.blocks.0.ffn.net.2.weight" in moved
    assert not any(name.startswith(("transformer.blocks.1", "transformer.proj_out")) for name in moved)
    assert not any(p.requires_grad or p.grad is not None for p in trainer.teacher._frames.encoder._model.parameters())
    assert not module.transformer.blocks[0]._forward_hooks


def test_gradient_checkpointing_changes_no_bit_of_a_run(tmp_path: Path) -> None:
    runs = [
        tiny_trainer(taught_config(tmp_path / str(flag), gradient_checkpointing=flag, steps=2, grad_accum=2))
        for flag in (False, True)
    ]
    for run in runs:
        run.run([])
    assert not differing(weights(runs[0]), weights(runs[1]))


@pytest.mark.parametrize("kind", ["repa", "next_frame"])
def test_frame_i_is_taught_its_own_features_or_those_of_the_next(tmp_path: Path, kind: str) -> None:
    trainer = tiny_trainer(taught_config(tmp_path / "a", teacher={"kind": kind}))
    batch = FakeFeed().batch([0, 1, 2])
    for absent, frames in ((False, 4), (True, 2)):
        sample = trainer.sampler(batch, trainer.engine.device, absent_video=absent)
        lesson = trainer.teacher(batch, sample)
        shift = int(kind == "next_frame")
        taught = min(frames, 4 - shift)
        assert lesson.features.shape == (3, 1, taught, 2, 2, 8) and lesson.mask.shape == (3, 1, taught)
        for row, frame in itertools.product(range(3), range(taught)):
            own = trainer.teacher._frames.encoder(batch.video[row, 0, :, frame + shift][None], (2, 2))[0]
            if lesson.mask[row, 0, frame]:
                torch.testing.assert_close(lesson.features[row, 0, frame], own)
        assert lesson.count == lesson.mask.sum() * 4 > 0


def test_frames_and_views_that_were_not_recorded_carry_no_loss(tmp_path: Path) -> None:
    for kind, hidden in (("repa", [0]), ("next_frame", [0, 1])):
        trainer = tiny_trainer(taught_config(tmp_path / kind, teacher={"kind": kind}))
        batch = FakeFeed().batch([0, 1, 2])
        mask = torch.ones_like(batch.frame_mask)
        mask[0, :, 1], mask[2] = False, False  # one frame of a window; a view of another
        batch = replace(batch, frame_mask=mask)
        lesson = trainer.teacher(batch, trainer.sampler(batch, trainer.engine.device))
        expected = torch.ones_like(lesson.mask)
        expected[0, :, [1] if kind == "repa" else hidden], expected[2] = False, False
        assert torch.equal(lesson.mask, expected)
        noise = replace(batch, video=torch.where(mask[:, :, None, :, None, None], batch.video, 255 - batch.video))
        assert torch.equal(
            trainer.teacher(noise, trainer.sampler(batch, trainer.engine.device)).features, lesson.features
        )


def test_the_network_starts_as_it_would_without_a_teacher_and_validates_alike(tmp_path: Path) -> None:
    plain = tiny_trainer(tiny_config(tmp_path / "plain", model=TWO_BLOCKS))
    taught = tiny_trainer(taught_config(tmp_path / "taught"))
    assert plain.teacher is None and plain.engine.module.head is None
    names = differing(weights(plain), weights(taught))
    assert names and all("head.projector" in name for name in names)
    sample = plain.sampler(FakeFeed().batch([0, 1]), plain.engine.device)
    for a, b, c in zip(
        plain.engine.module(sample),
        taught.engine.module(sample),
        taught.engine.module(sample, taught=True),
        strict=False,
    ):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_the_exported_folder_has_no_head_and_the_network_in_it_gives_the_same_bits(tmp_path: Path) -> None:
    config = taught_config(tmp_path / "run", steps=2)
    trainer = tiny_trainer(config)
    trainer.run([hooks.ExportCallback(_export, tmp_path / "model", 0)])
    plain = tiny_trainer(tiny_config(tmp_path / "plain", model=TWO_BLOCKS, steps=2))
    plain.run([hooks.ExportCallback(_export, tmp_path / "plain_model", 0)])
    assert keys(tmp_path / "model") == keys(tmp_path / "plain_model")
    files = [
        {p.relative_to(tmp_path / n).as_posix() for p in (tmp_path / n).rglob("*")} for n in ("model", "plain_model")
    ]
    assert files[0] == files[1]
    loaded = WAMPipeline.from_pretrained(tmp_path / "model").transformer
    sample = trainer.sampler(FakeFeed().batch([0, 1]), trainer.engine.device)
    with trainer.ema.applied(), torch.no_grad():
        video, actions, _ = trainer.engine.module.eval()(sample, taught=True)
        trainer.engine.module.transformer = loaded
        alone = trainer.engine.module(sample)
    assert torch.equal(alone[0], video) and torch.equal(alone[1], actions)


def keys(folder: Path) -> set[str]:
    with safe_open(next((folder / "transformer").glob("*.safetensors")), "pt") as file:
        return set(file.keys())


def test_in_causal_chunks_the_next_frame_is_predicted_and_not_seen(tmp_path: Path) -> None:
    model = TWO_BLOCKS | {"attention": {"pattern": "causal", "chunk_frames": 1}}
    trainer = tiny_trainer(taught_config(tmp_path / "run", teacher={"kind": "next_frame", "layer": 1}, model=model))
    sample = trainer.sampler(FakeFeed().batch([0, 1]), trainer.engine.device)
    assert sample.history is not None, "else this is no test of the clean copies' place in the sequence"
    said = trainer.engine.module(sample, taught=True)[2]
    frame = 2  # the first of the future
    x_t = sample.noisy.x_t
    moved = x_t.video.clone()
    moved[:, :, :, frame] += 1
    there = trainer.engine.module(
        replace(sample, noisy=replace(sample.noisy, x_t=replace(x_t, video=moved))), taught=True
    )[2]
    assert torch.equal(said[:, :, :frame], there[:, :, :frame])
    assert (said[:, :, frame] - there[:, :, frame]).norm(dim=-1).min() > 1e-3
    trainer.run([])
    assert trainer.progress.bad_steps == 0


@pytest.mark.parametrize("kind", ["repa", "next_frame"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, kind: str) -> None:
    options = {"density": DensityConfig(absent_video=0.3), "teacher": {"kind": kind}}
    whole = tiny_trainer(taught_config(tmp_path / "whole", **options))
    whole.run([])
    steps = itertools.count()
    first = tiny_trainer(taught_config(tmp_path / "cut", **options), should_stop=lambda: next(steps) == 2)
    first.run([hooks.CheckpointCallback(100)])
    second = tiny_trainer(taught_config(tmp_path / "cut", **options))
    assert second.progress.step == 2
    second.run([])
    assert "head.projector.0.weight" in weights(second)
    assert not differing(weights(whole), weights(second))


def test_micro_batches_do_not_change_a_step(tmp_path: Path) -> None:
    one = tiny_trainer(taught_config(tmp_path / "a", batch_size=8, steps=2))
    two = tiny_trainer(taught_config(tmp_path / "b", batch_size=4, grad_accum=2, steps=2))
    for trainer in (one, two):
        trainer.run([])
    for name, value in one.engine.module.named_parameters():
        torch.testing.assert_close(value, dict(two.engine.module.named_parameters())[name], atol=1e-6, rtol=0)


def test_a_continued_run_must_have_the_same_teacher(tmp_path: Path) -> None:
    config = taught_config(tmp_path / "run", steps=1)
    tiny_trainer(config).run([hooks.CheckpointCallback(1)])
    write_weights(tmp_path / "vit.safetensors", seed=7)
    with pytest.raises(CheckpointError, match="other weights"):
        tiny_trainer(config)
    with pytest.raises(ConfigError, match=r"teacher\.\w+ is"):
        tiny_trainer(taught_config(tmp_path / "run", steps=1, teacher={"layer": 1}))


def test_a_wrong_layer_is_told_before_and_at_the_start(tmp_path: Path) -> None:
    config = taught_config(tmp_path / "a", teacher={"layer": 2})
    for start in (lambda: build_on_meta(config, FakeFeed().embodiments), lambda: tiny_trainer(config)):
        with pytest.raises(ConfigError, match=r"teacher.layer is 2; allowed: 0 to 1"):
            start()


class ColourFeed(FakeFeed):
    """Windows whose patches have colours of their own, each frame the negative of the one before."""

    def __init__(self) -> None:
        super().__init__()
        shape = self._rows.video.shape  # b v c f h w
        colours = torch.randint(0, 256, (shape[0], shape[1], 3, 1, 2, 2), dtype=torch.uint8)
        video = colours.repeat_interleave(shape[4] // 2, 4).repeat_interleave(shape[5] // 2, 5).expand(shape).clone()
        video[:, :, :, 1::2] = 255 - video[:, :, :, 1::2]
        self._rows = replace(self._rows, video=video, frame_mask=torch.ones_like(self._rows.frame_mask))


@pytest.mark.parametrize("kind", ["repa", "next_frame"])
def test_what_the_teacher_says_is_learned_and_not_just_any_features(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, last = {}, {}
    for control in (False, True):
        config = taught_config(
            tmp_path / f"{kind}-{control}",
            teacher={"kind": kind, "weight": 2.0},
            **{"steps": 60, "batch_size": 16, "optim": OptimConfig(lr=1e-2, warmup_steps=5)},
        )
        with monkeypatch.context() as patch:
            if control:
                patch.setattr(Teacher, "__call__", shuffled(Teacher.__call__))
            run = tiny_trainer(config, ColourFeed())
            run.run([hooks.LogCallback(10)], [JsonLines(Path(config.output_dir) / "metrics.jsonl", from_step=0)])
        lines = [json.loads(line) for line in (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()]
        assert all(line["loss_teacher"] == pytest.approx(-line["teacher_cosine"]) for line in lines)
        first[control], last[control] = lines[0], lines[-1]
    assert last[False]["teacher_cosine"] > first[False]["teacher_cosine"] + 0.1
    assert last[False]["teacher_cosine"] > last[False]["teacher_cosine_shuffled"] + 0.1
    # the features have a direction in common, which a shuffled teacher teaches too: what counts is what is missing to 1
    assert 1 - last[False]["teacher_cosine"] < 0.5 * (1 - last[True]["teacher_cosine"])


def shuffled(teach: Any) -> Any:
    """Return a teacher who says of each window what another one shows, a different one at each step."""
    turns = itertools.count(1)

    def wrong(self: Teacher, batch: Batch, sample: Any) -> Any:
        lesson = teach(self, batch, sample)
        by = 1 + next(turns) % (len(batch) - 1)
        return replace(lesson, features=lesson.features.roll(by, dims=0))

    return wrong
