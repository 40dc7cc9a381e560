import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tests.unit.training.fakes import FakeFeed, differing, tiny_config, tiny_trainer, weights
from wam_video.data.stream import DataWorkerError
from wam_video.errors import ConfigError, DataError
from wam_video.flow.density import DensityConfig
from wam_video.flow.loss import LossConfig
from wam_video.tensors import Batch
from wam_video.training import callbacks as hooks
from wam_video.training.build import Parts
from wam_video.training.config import OptimConfig, TextConfig, TrainConfig
from wam_video.training.engines import EngineConfig, Launch, start_engine
from wam_video.training.health import TrainingFailedError
from wam_video.training.metrics import JsonLines
from wam_video.training.saving import SavingFailedError

LOSSES = {
    "density": DensityConfig(edges={"forward": 0.2}, absent_video=0.3),
    "loss": LossConfig(motion_weight=2.0, action_weight=0.5),
}


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    options = LOSSES | {"text": TextConfig(d_model=16, num_layers=1, num_heads=2, max_length=16, train=True)}
    whole = tiny_trainer(tiny_config(tmp_path / "whole", **options))
    whole.run([])
    steps = itertools.count()
    first = tiny_trainer(tiny_config(tmp_path / "cut", **options), should_stop=lambda: next(steps) == 2)
    first.run([hooks.CheckpointCallback(100)])
    assert first.progress.step == 2
    second = tiny_trainer(tiny_config(tmp_path / "cut", **options))
    assert second.progress.step == 2
    second.run([])
    assert not differing(weights(whole), weights(second))
    assert differing(weights(whole), weights(first))


def test_micro_batches_do_not_change_a_step(tmp_path: Path) -> None:
    one = tiny_trainer(tiny_config(tmp_path / "a", batch_size=8, **LOSSES))
    two = tiny_trainer(tiny_config(tmp_path / "b", batch_size=4, grad_accum=2, **LOSSES))
    start = weights(one)
    for trainer in (one, two):
        trainer.run([])
    assert differing(start, weights(one))
    for name, value in one.engine.module.named_parameters():
        torch.testing.assert_close(value, dict(two.engine.module.named_parameters())[name], atol=1e-6, rtol=0)


def test_the_loss_falls_on_a_few_windows(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, steps=60, batch_size=32, log_every=20, optim=OptimConfig(lr=1e-2, warmup_steps=5))
    tracker = JsonLines(tmp_path / "metrics.jsonl", from_step=0)
    tiny_trainer(config).run([hooks.LogCallback(20), hooks.ValidateCallback(30)], [tracker])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss_action"] for line in lines if "loss_action" in line]
    assert losses[-1] < 0.9 * losses[0]
    checks = [line for line in lines if "val_policy" in line]
    assert [line["step"] for line in checks] == [30, 60]
    assert checks[0].keys() > {"val_forward", "val_forward_shuffled", "val_inverse", "val_video", "val_joint_action"}
    assert {"grad_norm", "lr", "samples_per_second", "data_wait_share"} < lines[0].keys()


class BrokenFeed(FakeFeed):
    """Windows whose actions are not finite from a step on."""

    def batches(self, *args: int) -> Iterator[Batch]:
        for step, batch in enumerate(super().batches(*args)):
            bad = torch.full_like(batch.actions, float("nan"))
            yield batch if step < 1 else replace(batch, actions=bad)


def test_bad_steps_are_skipped_named_and_in_the_end_too_many(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = tiny_trainer(tiny_config(tmp_path, max_bad_steps=2), BrokenFeed())
    trainer_weights = []
    logging.getLogger("wam_video").propagate = True

    class Watch:
        def on_step(self, trainer: object, result: object) -> None:
            trainer_weights.append(weights(trainer))

        def on_end(self, trainer: object) -> None: ...

    with (
        caplog.at_level(logging.ERROR, logger="wam_video"),
        pytest.raises(TrainingFailedError, match="2 steps in a row"),
    ):
        trainer.run([Watch()])
    assert not differing(trainer_weights[0], weights(trainer))
    assert "fake-0004@4" in caplog.text
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())


def test_time_is_up(tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_config(tmp_path, steps=10_000, max_minutes=0.5 / 60))
    trainer.run([hooks.CheckpointCallback(100_000)])
    assert 0 < trainer.progress.step < 10_000
    assert not trainer.interrupted
    assert (tmp_path / "checkpoints" / f"step-{trainer.progress.step:07d}" / "COMMIT.json").is_file()


def test_another_learning_rate_or_other_data_do_not_continue_a_run(tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_config(tmp_path, steps=3))
    trainer.run([hooks.CheckpointCallback(10)])
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        tiny_trainer(tiny_config(tmp_path, optim=OptimConfig(lr=3e-3, warmup_steps=2)))
    feed = FakeFeed()
    feed.processor("").register_to_config(stats_hash="other")
    with pytest.raises(DataError, match="have changed"):
        tiny_trainer(tiny_config(tmp_path), feed)
    assert tiny_trainer(tiny_config(tmp_path, steps=5, log_every=1)).progress.step == 3


def test_the_export_has_the_averaged_weights_and_replaces_the_last_one(tmp_path: Path) -> None:
    exported = []

    def exporter(folder: Path, parts: Parts, config: TrainConfig) -> None:
        folder.mkdir()
        exported.append(parts.transformer.proj_out.weight.detach().clone())

    trainer = tiny_trainer(tiny_config(tmp_path))
    trainer.run([hooks.ExportCallback(exporter, tmp_path / "model", 2)])
    assert len(exported) == 3
    assert torch.equal(exported[-1], trainer.ema.state_dict()["transformer.proj_out.weight"])
    assert not torch.equal(exported[-1], trainer.parts.transformer.proj_out.weight)
    assert {p.name for p in tmp_path.iterdir()} == {"model", "checkpoints"}


def test_fine_tuning_takes_known_bodies_over_and_starts_new_ones_fresh(tmp_path: Path) -> None:
    source = tiny_trainer(tiny_config(tmp_path / "a"))
    source.run([])
    source.parts.transformer.save_pretrained(tmp_path / "model" / "transformer")
    feed = FakeFeed()
    feed.embodiments = {"new": replace(feed.embodiments["arm"], name="new"), "hand": feed.embodiments["hand"]}
    target = tiny_trainer(tiny_config(tmp_path / "b", init_from=str(tmp_path / "model")), feed)
    old, new = source.parts.transformer.state_dict(), target.parts.transformer.state_dict()
    assert torch.equal(old["proj_out.weight"], new["proj_out.weight"])
    assert torch.equal(old["action_embedder.weight"][1], new["action_embedder.weight"][1])
    assert not torch.equal(old["action_embedder.weight"][0], new["action_embedder.weight"][0])


def test_windows_that_do_not_fill_the_patches_are_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.window\.height is 16 pixels; allowed: multiples of 24"):
        tiny_trainer(replace(config, model=config.model | {"patch_size": [1, 3, 3]}))


@pytest.mark.parametrize(
    ("config", "launch", "told"),
    [
        (EngineConfig(engine="deepspeed"), Launch(), "carried by 'single' but should be by 'deepspeed'"),
        (EngineConfig(num_processes=2), Launch(), "1 processes take part but should be 2"),
        (EngineConfig(), Launch(num_processes=2), "carried by 'single' but should be by 'ddp'"),
    ],
)
def test_an_engine_that_is_not_what_was_wanted_is_refused(config: EngineConfig, launch: Launch, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        start_engine(config, launch)


class DryFeed(FakeFeed):
    """Windows for two steps, and then none."""

    def batches(self, *args: int) -> Iterator[Batch]:
        for step, batch in enumerate(super().batches(*args)):
            if step == 2:
                raise DataWorkerError("a process that decodes data is gone")
            yield batch


def test_a_run_without_more_data_saves_where_it_is_and_goes_on_from_there(tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_config(tmp_path), DryFeed())
    with pytest.raises(DataWorkerError, match="is gone"):
        trainer.run([hooks.CheckpointCallback(100)])
    again = tiny_trainer(tiny_config(tmp_path))
    assert again.progress.step == 2
    again.run([])
    whole = tiny_trainer(tiny_config(tmp_path / "whole"))
    whole.run([])
    assert not differing(weights(whole), weights(again))


def test_a_model_that_the_disk_does_not_take_is_an_alarm_on_the_way_and_a_failure_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = {"now": True}

    def export(folder: Path, parts: Parts, config: TrainConfig) -> None:
        folder.mkdir(parents=True)
        (folder / "half").touch()
        if full["now"]:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)\nmore")

    def run() -> None:
        callbacks = [hooks.CheckpointCallback(2), hooks.ExportCallback(export, tmp_path / "model", 2)]
        tiny_trainer(tiny_config(tmp_path)).run(callbacks)

    logging.getLogger("wam_video").propagate = True
    with pytest.raises(SavingFailedError, match=r"was not exported to .* start the same command again"):
        run()
    told = [record.message for record in caplog.records if "ALARM" in record.message]
    assert [text.split(" was not")[0] for text in told] == ["ALARM: step 2", "ALARM: step 4", "ALARM: step 4"]
    assert "No space left on device" in told[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]
    full["now"] = False
    run()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["half"]
