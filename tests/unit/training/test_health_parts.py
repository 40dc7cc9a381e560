"""The clock of a step, who is slow, sums by dataset and clock, and the operations of a step."""

import time
from types import SimpleNamespace

import pytest
import torch

from tests.unit.training.fakes import FakeFeed, tiny_config, tiny_trainer
from wam_video.flow.loss import LossTerms
from wam_video.models.flops import NetworkShape, whole
from wam_video.training.health_config import HealthConfig
from wam_video.training.pace import Pace, StragglerWatch, percentile
from wam_video.training.plan import training_flops
from wam_video.training.tally import BINS, Tally, not_finite, term_means
from wam_video.training.work import StepWork, peak_flops

CPU = torch.device("cpu")


def test_own_work_is_what_is_not_spent_in_exchanges() -> None:
    pace = Pace(CPU)
    for _ in range(2):
        pace.begin()
        time.sleep(0.02)
        pace.meet(0.015, frames=8)
        time.sleep(0.05)  # the others are late
        pace.met()
        pace.worked(5.0, last=False)
        time.sleep(0.01)
        pace.worked(5.0, last=True)
        time.sleep(0.05)  # gradients are exchanged
        pace.end()
    stretch = pace.take()
    assert len(stretch.own_s) == 2
    assert all(0.03 <= own < step - 0.09 for own, step in zip(stretch.own_s, stretch.step_s, strict=True))
    assert (stretch.frames, stretch.flops, stretch.wait_s) == (16, 20.0, [0.015, 0.015])
    assert pace.take().step_s == []


def test_the_slowest_process_is_named_with_host_and_ratio_once_it_was_slow_often_enough() -> None:
    watch = StragglerWatch(HealthConfig(straggler_intervals=3), ["one", "one", "two", "two"])
    slow, even, shares = [1.0, 1.1, 0.9, 2.0], [1.0, 1.1, 0.9, 1.0], [0.0, 0.0, 0.0, 0.5]
    said = [watch.judge(times, shares)[1] for times in (slow, slow, even, slow, slow)]
    assert said == [None] * 5, "not three in a row"
    ratio, warning = watch.judge(slow, shares)
    assert ratio == pytest.approx(2.0)
    assert warning is not None
    assert "rank 3 on two is slow" in warning
    assert "2.0 times" in warning
    assert "waits 50% of the time" in warning
    assert (
        StragglerWatch(HealthConfig(straggler_ratio=0, straggler_intervals=1), ["a", "b"]).judge([1, 9], [0, 0])[1]
        is None
    )


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 3.0
    assert percentile(range(100), 0.95) == 95
    assert percentile([7.0], 0.95) == 7.0


def test_errors_are_summed_by_dataset_and_by_clock() -> None:
    tally = Tally(["a", "b"], CPU)
    sample = SimpleNamespace(
        t_video=torch.tensor([0.1, 0.3, 1.0, 0.3]), t_action=torch.zeros(4), datasets=("a", "b", "a", "b")
    )
    terms = LossTerms(
        video_sum=torch.tensor([1.0, 2.0, 3.0, 6.0]),
        video_count=torch.tensor([1.0, 1.0, 1.0, 3.0]),
        action_sum=torch.tensor([4.0, 0.0, 0.0, 0.0]),
        action_count=torch.tensor([2.0, 0.0, 0.0, 0.0]),
    )
    sums = tally.sums(sample, terms, None)  # type: ignore[arg-type]
    means = tally.means(sums)
    assert (means["dataset/a/video"], means["dataset/b/video"], means["dataset/a/action"]) == (2.0, 2.0, 2.0)
    assert "dataset/b/action" not in means
    assert (means["clock/video/0.0-0.2"], means["clock/video/0.2-0.4"], means["clock/video/0.8-1.0"]) == (1.0, 2.0, 3.0)
    assert [name for name in means if name.startswith("clock/action")] == ["clock/action/0.0-0.2"]
    assert means["loss_video"] == 2.0
    assert term_means(tally.terms(sums)) == {"video": 2.0, "action": 2.0}
    assert len(Tally(["a"], CPU).names) == len(tally.names) - 4, "a single dataset is what the whole is"
    bad = tally.terms(sums).clone()
    bad[0, 1] = torch.inf
    assert not_finite(tally.terms(sums)) == []
    assert not_finite(bad) == ["loss_action"]
    assert BINS == 5


def test_the_operations_of_a_batch_are_those_of_the_plan(tmp_path: pytest.TempPathFactory) -> None:
    trainer = tiny_trainer(tiny_config(tmp_path))  # type: ignore[arg-type]
    batch = FakeFeed().batch([0, 1, 2])
    sample = trainer.sampler(batch, CPU)
    network = trainer.parts.transformer
    shape = NetworkShape.of(network.config)
    _, v, _, t, h, w = sample.noisy.x_t.video.shape  # type: ignore[union-attr]
    layout = shape.layout(views=v, grid=(t, h, w), actions=batch.actions.shape[1])
    expected = 3 * training_flops(shape, whole(layout, sample.text_embeds.shape[1]))  # type: ignore[union-attr]
    assert StepWork(network).flops(sample) == expected > 0
    assert StepWork(torch.nn.Linear(1, 1)).flops(sample) == 0
    assert StepWork(network).flops(trainer.sampler(batch, CPU, absent_video=True)) < expected


def test_the_peak_of_a_processor_is_not_guessed() -> None:
    assert peak_flops(CPU, None) is None
    assert peak_flops(CPU, 2.0) == 2e12
