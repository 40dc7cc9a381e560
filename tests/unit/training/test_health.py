import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.unit.training.fakes import FakeFeed, differing, tiny_config, tiny_trainer, weights
from wam_video.data.loader import DataConfig
from wam_video.data.settings import DatasetConfig
from wam_video.data.windows import WindowConfig
from wam_video.errors import ConfigError
from wam_video.tensors import Batch
from wam_video.training import callbacks as hooks
from wam_video.training.health import BadSteps, SpikeDetector, lost_process, poison
from wam_video.training.health_config import HealthConfig
from wam_video.training.metrics import JsonLines

SMALL = HealthConfig(spike="skip", spike_window=8, spike_threshold=6)


def test_a_finite_loss_and_its_gradient_keep_their_bits_and_another_poisons_it(
    generator: torch.Generator,
) -> None:
    x = torch.randn(100, generator=generator, requires_grad=True)
    (plain,) = torch.autograd.grad((x**3).sum(), x)
    (same,) = torch.autograd.grad(poison((x**3).sum()), x)
    assert torch.equal(poison((x**3).sum()), (x**3).sum())
    assert torch.equal(plain, same)
    hidden = torch.where(torch.arange(100) == 0, torch.inf, x)  # which the gradient of the others would not show
    (bad,) = torch.autograd.grad(poison(hidden.sum()), x)
    assert bad[1:].isnan().all()


def test_a_jump_is_seen_above_the_noise_and_a_new_level_is_one_jump_after_the_other_until_it_is_usual() -> None:
    rng = np.random.default_rng(0)
    detector = SpikeDetector(HealthConfig(spike_window=40))
    assert not any(detector.judge({"video": float(x)}) for x in rng.lognormal(0, 0.3, 500))
    assert detector.judge({"video": 30.0, "action": 1.0}).keys() == {"video"}
    assert detector.judge({"video": float("nan")}) == {}
    jumps = [bool(detector.judge({"video": 30.0 + x})) for x in rng.normal(0, 1, 60)]
    assert jumps[0]
    assert not jumps[-1]


def test_a_detector_goes_on_from_a_saved_history_as_if_it_had_never_stopped() -> None:
    rng = np.random.default_rng(0)
    losses = [{"video": float(x)} for x in rng.lognormal(0, 1.0, 100)]
    whole, first = SpikeDetector(SMALL), SpikeDetector(SMALL)
    expected = [whole.judge(loss) for loss in losses]
    found = [first.judge(loss) for loss in losses[:37]]
    second = SpikeDetector(SMALL, json.loads(json.dumps(first.history)))
    assert found + [second.judge(loss) for loss in losses[37:]] == expected
    assert any(expected)


class JumpFeed(FakeFeed):
    """Windows whose actions are enormous in one step (from 0)."""

    def batches(self, batch_size: int, start_index: int, rank: int, num_processes: int) -> Iterator[Batch]:
        first = start_index // (batch_size * num_processes)
        for step, batch in enumerate(super().batches(batch_size, start_index, rank, num_processes), first):
            yield replace(batch, actions=batch.actions * 1e4) if step == 6 else batch


def run(folder: Path, steps: int, health: HealthConfig, feed: Any = None) -> Any:
    trainer = tiny_trainer(tiny_config(folder, steps=steps, log_every=1, health=health), feed or JumpFeed())
    tracker = JsonLines(folder / "metrics.jsonl", from_step=trainer.start_step)
    trainer.run([hooks.LogCallback(1), hooks.CheckpointCallback(100)], [tracker])
    return trainer


def test_a_step_whose_loss_jumps_is_skipped_and_a_resumed_run_decides_the_same(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 9, SMALL)
    entry = json.loads((tmp_path / "whole" / "bad_batches.jsonl").read_text())
    assert (entry["step"], entry["rank"]) == (7, 0)
    assert entry["terms"][0].startswith("jump of action")
    assert [sample["index"] for sample in entry["samples"]] == [24, 25, 26, 27]
    run(tmp_path / "cut", 5, SMALL)
    cut = run(tmp_path / "cut", 9, SMALL)
    assert not differing(weights(whole), weights(cut))
    assert cut.progress.losses == whole.progress.losses
    assert (tmp_path / "cut" / "bad_batches.jsonl").read_text() == (
        tmp_path / "whole" / "bad_batches.jsonl"
    ).read_text()
    skipped = [json.loads(line)["skipped_steps"] for line in (tmp_path / "whole" / "metrics.jsonl").open()]
    assert skipped == [0] * 6 + [1] + [0] * 2


def test_a_warning_about_a_jump_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("wam_video").propagate = True
    with caplog.at_level(logging.WARNING, logger="wam_video"):
        warned = run(tmp_path / "warn", 8, replace(SMALL, spike="warn"))
    assert "the loss jumped 1 time(s): action" in caplog.text
    assert "at step 7" in caplog.text
    silent = run(tmp_path / "off", 8, replace(SMALL, spike="off"))
    assert not differing(weights(warned), weights(silent))
    assert warned.progress.losses == {}


def test_lines_of_bad_steps_that_are_done_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "bad_batches.jsonl"
    bad = BadSteps(path, is_main=True, from_step=0)
    assert not path.exists()
    assert bad.add(3, [{"key": "a@1", "index": 7}], ["loss_video"], float("nan")) == "rank 0: loss_video, windows a@1"
    assert "gradient" in bad.add(5, [{"key": "b@1", "index": 9}], [], float("inf"))
    BadSteps(path, is_main=True, from_step=4)
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {
        **{"step": 3, "rank": 0, "samples": [{"key": "a@1", "index": 7}]},
        **{"terms": ["loss_video"], "grad_norm": "nan"},
    }


def test_what_can_not_be_written_of_a_skipped_step_is_told_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("wam_video").propagate = True
    (tmp_path / "bad").mkdir()  # a folder in its place, for root may write anywhere
    told = BadSteps(tmp_path / "bad", is_main=True, from_step=0).add(4, [{"key": "a", "index": 1}], ["video"], 2.0)
    assert told == "rank 0: video, windows a"
    assert "lost step 4" in caplog.text


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1\nmore"),
            "closed by peer",
        ),
        (dist.DistBackendError("NCCL error in: ...\nremote process exited"), "NCCL error"),
        (RuntimeError("Expected all tensors to be on the same device"), None),
        (ValueError("connection closed by peer"), None),
    ],
)
def test_a_lost_process_is_told_from_other_errors(error: Exception, told: str | None) -> None:
    why = lost_process(error)
    assert (why is None) == (told is None)
    assert told is None or (told in str(why) and "\n" not in str(why))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"spike": "stop"}, {"spike_threshold": 0.5}, {"spike_window": 2}, {"straggler_ratio": 0.5}),
        *({"straggler_intervals": 0}, {"hang_seconds": -1}, {"grace_seconds": 0}, {"collective_timeout_s": 0}),
        {"peak_tflops": 0.0},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"health\.{next(iter(wrong))} is .*; allowed: "):
        HealthConfig(**wrong)


class TwoSets(FakeFeed):
    """Even rows are of dataset a, odd ones of b."""

    def __init__(self) -> None:
        super().__init__()
        self._rows = replace(self._rows, datasets=("a", "b") * 16)


def test_a_line_of_metrics_has_losses_by_dataset_and_clock_speed_and_memory(tmp_path: Path) -> None:
    data = DataConfig(
        window=WindowConfig(action_horizon=4), datasets={name: DatasetConfig(path="nowhere") for name in "ab"}
    )
    config = tiny_config(tmp_path, data=data, health=HealthConfig(peak_tflops=1e-3))
    trainer = tiny_trainer(config, TwoSets())
    trainer.run([hooks.LogCallback(4)], [JsonLines(tmp_path / "metrics.jsonl", from_step=0)])
    (line,) = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (line["dataset/a/video"] + line["dataset/b/video"]) / 2 == pytest.approx(line["loss_video"], rel=0.05)
    assert {"dataset/a/action", "clock/video/0.4-0.6", "step_s_p50", "step_s_p95"} < line.keys()
    assert line["frames_per_second"] > line["samples_per_second"] > 0
    assert 0.01 < line["memory_gb"] < 100
    assert line["mfu"] > 0
    assert line["skipped_steps"] == 0
    assert "slowest_ratio" not in line
