"""A right model passes every check that it can; each broken one is caught by the check that is there for it."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from wam_video.evaluation.intervals import BootstrapConfig
from wam_video.evaluation.open_loop import CONTROL, OpenLoopConfig, donors, measure, window_seed
from wam_video.evaluation.scores import answer_checks, score_rows
from wam_video.tensors import Mode

_spec = importlib.util.spec_from_file_location("toy_world", Path(__file__).parent / "toy_world.py")
toy_world = sys.modules.setdefault("toy_world", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(toy_world)

_FEW = BootstrapConfig(num_draws=200)


def _statuses(broken: str, n: int = 40) -> dict[str, str]:
    group = toy_world.make_group(n)
    measured = measure(toy_world.ToyModel(broken), toy_world.fetch, group, OpenLoopConfig())
    return {a.check.name: a.status for a in answer_checks(measured, group, tuple(Mode), _FEW)}


def test_a_model_that_knows_the_world_passes_the_checks_of_what_can_be_known() -> None:
    statuses = _statuses("")
    for name in ("forward_uses_actions", "forward_beats_copy", "forward_moves", "inverse_uses_video",
                 "inverse_beats_policy", "policy_beats_mean", "policy_beats_hold", "policy_uses_observation",
                 "joint_agrees", "joint_moves", "video_moves", "policy_fits_units", "inverse_fits_units",
                 "policy_sees_no_future", "forward_sees_no_future", "video_sees_no_future", "joint_sees_no_future",
                 "inverse_sees_no_actions"):  # fmt: skip
        assert statuses[name] == "yes", name
    assert statuses["joint_beats_mean"] == "no", "this world's actions can't be known from the past"


@pytest.mark.parametrize(
    ("broken", "caught"),
    [
        ("forward_ignores_actions", "forward_uses_actions"),
        ("inverse_ignores_video", "inverse_uses_video"),
        ("inverse_ignores_video", "inverse_beats_policy"),
        ("frozen", "forward_moves"),
        ("frozen", "video_moves"),
        ("frozen", "forward_beats_copy"),
        ("joint_disagrees", "joint_agrees"),
        ("leaks_future", "policy_sees_no_future"),
        ("leaks_future", "video_sees_no_future"),
        ("other_statistics", "policy_fits_units"),
        ("other_statistics", "inverse_fits_units"),
    ],
)
def test_a_broken_model_is_caught(broken: str, caught: str) -> None:
    assert _statuses(broken)[caught] == "no"


def test_one_episode_gives_no_verdict() -> None:
    statuses = _statuses("", n=4)
    assert {status for name, status in statuses.items() if "_sees_no_" not in name} == {"unknown"}
    assert {status for name, status in statuses.items() if "_sees_no_" in name} == {"yes"}, "an equality is no estimate"


def test_figures_of_the_right_model_are_what_they_must_be() -> None:
    group = toy_world.make_group()
    measured = measure(toy_world.ToyModel(), toy_world.fetch, group, OpenLoopConfig())
    rows = {
        (r.mode, r.condition, r.metric, r.dimension, r.time_s): r.estimate for r in score_rows(measured, group, _FEW)
    }
    assert rows["inverse", "model", "r2", None, None].value == pytest.approx(1.0)
    assert rows["inverse", "model", "mae", "down", None].value == 0.0
    assert rows["forward", "model", "psnr", None, 0.4].value == 100.0
    assert rows[CONTROL, "copy_last", "motion_ratio", None, None].value == 0.0
    true = toy_world.fetch(range(40)).actions
    expected = (1 - true[..., 0]).abs().mean().item()
    assert rows[CONTROL, "hold_last", "mae", "right", None].value == pytest.approx(expected)
    assert rows[CONTROL, "hold_last", "mae", "right", None].num_episodes == 10


def test_batch_size_changes_nothing() -> None:
    group = toy_world.make_group(21)
    one = measure(toy_world.ToyModel(), toy_world.fetch, group, OpenLoopConfig(batch_size=1))
    many = measure(toy_world.ToyModel(), toy_world.fetch, group, OpenLoopConfig(batch_size=8))
    assert all(same.shape == (16,) and bool(same.all()) for same in one.identical.values())
    for kind in ("video", "actions", "identical"):
        a, b = getattr(one, kind), getattr(many, kind)
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), key
    assert [s.key for s in one.shown] == [s.key for s in many.shown]


def test_only_the_asked_modes_are_run_and_an_embodiment_without_actions_runs_video_alone() -> None:
    model = toy_world.ToyModel()
    measure(model, toy_world.fetch, toy_world.make_group(), OpenLoopConfig(modes=(Mode.INVERSE,)))
    assert {mode for mode, _ in model.calls} == {Mode.INVERSE}
    from dataclasses import replace

    group = toy_world.make_group()
    spec = replace(group.spec, action_dim=0, action_names=(), action_units=())
    model = toy_world.ToyModel()
    found = measure(model, toy_world.fetch, replace(group, spec=spec, previous_actions=None), OpenLoopConfig())
    assert {mode for mode, _ in model.calls} == {Mode.VIDEO}
    assert not found.actions


def test_donors_are_a_derangement_from_other_episodes() -> None:
    episodes = [f"e{i // 5}" for i in range(20)]
    partner = donors(episodes)
    assert sorted(partner) == list(range(20))
    assert all(episodes[i] != episodes[j] for i, j in enumerate(partner))
    same = donors(["a"] * 3)
    assert sorted(same) == [0, 1, 2]
    assert all(i != j for i, j in enumerate(same))
    assert donors(["a"]) is None


def test_a_windows_seed_depends_on_the_seed_and_the_window_alone() -> None:
    assert window_seed(0, "a@1") == window_seed(0, "a@1")
    assert len({window_seed(0, "a@1"), window_seed(1, "a@1"), window_seed(0, "a@2")}) == 3
    assert 0 <= window_seed(0, "a@1") < 2**63
