"""The evaluator catches broken models: each is flagged by the check that is there for it, and the right one by none."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.evaluation import toy_world
from wam_video.evaluation.intervals import BootstrapConfig
from wam_video.evaluation.open_loop import Generated, OpenLoopConfig, measure
from wam_video.evaluation.opened import EvaluateConfig, Opened, open_model, pipeline_sampler
from wam_video.evaluation.scores import CHECKS, Answer, answer_checks
from wam_video.tensors import Batch, Mode
from wam_video.testing import fake_shards, tiny_pipeline

CAN_NOT_BE_KNOWN = {"joint_beats_mean", "video_beats_copy"}
"""Of the toy world: nothing in its past says what will be done next, so that no model can pass these."""

BROKEN = {
    "inverse_ignores_video": {"inverse_uses_video", "inverse_beats_policy", "inverse_beats_mean", "joint_agrees"},
    "forward_ignores_actions": {"forward_uses_actions", "forward_beats_mean_actions"},
    "frozen": {"forward_moves", "video_moves", "joint_moves", "forward_beats_copy", "forward_uses_actions"},
    "leaks_future": {"policy_sees_no_future", "video_sees_no_future"},
    "other_statistics": {"policy_fits_units", "inverse_fits_units", "joint_fits_units", "inverse_beats_mean"},
    "joint_disagrees": {"joint_agrees"},
}
"""What is wrong -> the checks that must say so."""


def _answers(broken: str) -> dict[str, Answer]:
    group = toy_world.make_group(40)
    measured = measure(toy_world.ToyModel(broken), toy_world.fetch, group, OpenLoopConfig())
    return {a.check.name: a for a in answer_checks(measured, group, tuple(Mode), BootstrapConfig(num_draws=200))}


def test_the_right_model_passes_every_check_that_can_be_passed() -> None:
    answers = _answers("")
    assert set(answers) == {check.name for check in CHECKS}
    assert {name for name, a in answers.items() if a.status != "yes"} <= CAN_NOT_BE_KNOWN


@pytest.mark.parametrize("broken", BROKEN)
def test_each_broken_model_is_flagged_by_name(broken: str) -> None:
    right, answers = _answers(""), _answers(broken)
    assert {name for name in BROKEN[broken] if answers[name].status != "no"} == set()
    for name in BROKEN[broken]:
        assert right[name].status == "yes", name
        assert answers[name].to_dict()["flag"] == answers[name].check.flag


def test_a_policy_that_is_too_good_is_known_by_what_it_sees_and_by_nothing_else() -> None:
    answers = _answers("leaks_future")
    wrong = {name for name, a in answers.items() if a.status == "no"} - CAN_NOT_BE_KNOWN
    assert {"policy_sees_no_future", "video_sees_no_future"} <= wrong
    assert all(
        answers[n].status == "yes" for n in ("policy_beats_mean", "policy_beats_hold", "policy_uses_observation")
    )


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A real network, untrained, on real shards."""
    folder = tmp_path_factory.mktemp("broken")
    pipe = tiny_pipeline()
    shards = fake_shards(folder / "toy", [pipe.processor.spec("arm")], episodes=8)
    pipe.save_pretrained(folder / "model")
    config = EvaluateConfig(models={"tiny": str(folder / "model")}, data=str(shards), num_windows=5, batch_size=3)
    return open_model(config, "tiny")


def _blindness(opened: Opened, leaks: bool) -> dict[str, str]:
    honest = pipeline_sampler(opened.pipe, 1)

    def sample(mode: Mode, batch: Batch, seeds: Sequence[int]) -> Generated:
        if not leaks:
            return honest(mode, batch, seeds)
        if mode is Mode.POLICY:  # acts by what it saw of the future
            return honest(Mode.INVERSE, batch, seeds)
        if mode is Mode.VIDEO:  # imagines by what was done
            return honest(Mode.FORWARD, batch, seeds)
        if mode is Mode.FORWARD:  # draws the recording
            k = batch.num_context_frames
            made, future = honest(mode, batch, seeds), batch.video[:, :, :, k:].float() / 255
            return replace(made, video=0.99 * made.video + 0.01 * torch.einsum("bvcfhw->bvfchw", future))
        return honest(mode, batch, seeds)

    (group,) = opened.data.groups
    measured = measure(sample, opened.data.dataset.batch, group, opened.options)
    assert all(len(same) == len(group) for same in measured.identical.values())
    answers = answer_checks(measured, group, tuple(Mode), BootstrapConfig(num_draws=20))
    return {a.check.name: a.status for a in answers if "_sees_no_" in a.check.name}


def test_a_real_pipeline_sees_nothing_that_it_must_not_see(opened: Opened) -> None:
    statuses = _blindness(opened, leaks=False)
    assert len(statuses) == 5
    assert set(statuses.values()) == {"yes"}


def test_leaks_in_real_code_are_flagged_mode_by_mode(opened: Opened) -> None:
    statuses = _blindness(opened, leaks=True)
    assert {name for name, status in statuses.items() if status == "no"} == {
        "policy_sees_no_future", "video_sees_no_future", "forward_sees_no_future",
    }  # fmt: skip


def test_the_shipped_cards_figures_are_still_read() -> None:
    from wam_video.evaluation.card import figures

    for metrics in (Path(__file__).parents[2] / "model_cards").glob("*/metrics.json"):
        assert "| policy |" in figures(json.loads(metrics.read_text()), metrics.parent.name)
