import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.unit.evaluation.studies.toy_subject import toy_subject
from tests.unit.evaluation.toy_world import SPEC, fetch, make_group
from wam_video.data.manifest import load_manifest
from wam_video.evaluation.open_loop import Generated
from wam_video.evaluation.studies import smoothness
from wam_video.evaluation.studies.motion import MOTION_SUMS, Limits, motion_sums
from wam_video.evaluation.studies.smoothness import Smoothness, recorded_actions
from wam_video.evaluation.study import Findings
from wam_video.tensors import Batch, Mode
from wam_video.testing import fake_shards

STEPS, N = 12, 24


def wave(seed: int, steps: int = STEPS) -> torch.Tensor:
    """A smooth way there and back, of spread 1."""
    phase = torch.rand(2, generator=torch.Generator().manual_seed(seed)) * 2 * math.pi
    return 2**0.5 * torch.sin(torch.arange(steps)[:, None] * 0.4 + phase)


def windows(indices: Sequence[int]) -> Batch:
    batch = fetch(indices)
    actions = torch.stack([wave(i) for i in indices])
    times = torch.arange(STEPS).float().expand(len(indices), -1) / SPEC.action_rate
    mask = torch.ones_like(actions, dtype=torch.bool)
    return replace(batch, actions=actions, action_mask=mask, action_times=times)


def planner(kind: str):
    def plan(mode: Mode, batch: Batch, seeds: Sequence[int]) -> Generated:
        smooth = torch.stack([wave(seed % 1000) for seed in seeds])
        noise = torch.stack([torch.randn(STEPS, 2, generator=torch.Generator().manual_seed(s)) for s in seeds])
        actions = {"right": smooth, "rough": noise, "other_body": 100 + 50 * smooth, "still": 0 * smooth + 0.3}[kind]
        return Generated(actions=actions, video=None)

    return plan


def study(kind: str, monkeypatch: pytest.MonkeyPatch, **changes) -> tuple[Findings, dict, dict[str, str]]:
    monkeypatch.setattr(smoothness, "recorded_actions", lambda folder, body: [wave(i, 60) for i in range(100, 140)])
    group = replace(
        make_group(N), action_scale=torch.ones(2), previous_actions=torch.stack([wave(i)[0] - 0.1 for i in range(N)])
    )
    data = SimpleNamespace(dataset=SimpleNamespace(batch=windows), facts={"path": "shards"})
    subject = toy_subject(planner(kind), **({"group": group, "data": data} | changes))
    found = Smoothness().run(subject)
    rows = {(r.metric, r.condition): r.estimate.value for r in found.rows}
    return found, rows, {a.check.name: a.status for a in found.answers}


def test_plans_like_the_recording_pass_and_stand_where_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    found, rows, status = study("right", monkeypatch)
    assert len(status) == 8
    assert set(status.values()) == {"yes"}
    assert rows["jerk", "policy"] == pytest.approx(rows["jerk", "recorded"], rel=0.1)
    assert rows["jerk", "white_noise"] > 5 * rows["jerk", "policy"]
    assert rows["ldlj", "white_noise"] < rows["ldlj", "policy"]
    assert rows["step", "recorded"] == pytest.approx(1.0, abs=0.15)
    assert rows["seam", "recorded"] < 1.0 < rows["seam", "policy"], "its waves begin anywhere"
    assert not found.left_out


@pytest.mark.parametrize(
    ("kind", "caught"),
    [
        ("rough", "jerk"),
        ("rough", "velocity_beyond"),
        ("other_body", "outside"),
        ("other_body", "velocity_beyond"),
        ("still", "moves"),
    ],
)
def test_a_broken_planner_is_caught(kind: str, caught: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, status = study(kind, monkeypatch)
    assert status[f"smoothness_policy_{caught}"] == status[f"smoothness_joint_{caught}"] == "no"


def test_a_plan_that_stands_still_has_no_dimensionless_jerk_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found, rows, _ = study("still", monkeypatch)
    assert ("ldlj", "policy") not in rows
    assert ("smoothness: ldlj of policy", "not defined on these windows") in found.left_out
    assert rows["idle", "policy"] == 100.0


def test_figures_depend_neither_on_the_batch_size_nor_on_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    one, many = (study("right", monkeypatch, batch_size=size)[0].rows for size in (1, 16))
    assert [r.to_dict() for r in one] == [r.to_dict() for r in many]


def test_without_recorded_actions_the_study_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothness, "recorded_actions", lambda folder, body: [])
    found = Smoothness().run(toy_subject(planner("right"), data=SimpleNamespace(facts={"path": "shards"})))
    assert found.left_out[0][0] == "smoothness"
    assert not found.rows


def test_recorded_actions_are_those_of_training_clips_of_the_body(tmp_path: Path) -> None:
    other = replace(SPEC, name="other")
    folder = fake_shards(tmp_path / "two", [SPEC, other], episodes=8, num_frames=6, size=16)
    found = recorded_actions(str(folder), "toy")
    trained = [sample for _, sample in load_manifest(folder).split("train") if sample.embodiment == "toy"]
    assert len(found) == len(trained) < 8
    assert all(x.shape == (5, 2) for x in found)


def limits(**changes) -> Limits:
    bound = torch.tensor([[-2.0, -2.0], [2.0, 2.0]])
    values = {
        "rate": 10.0, "centre": torch.zeros(2), "scale": torch.tensor([2.0, 0.0]), "action": bound[:, :1],
        "velocity": 5 * bound[:, :1], "acceleration": 50 * bound[:, :1], "step": 0.5,
    }  # fmt: skip
    return Limits(**values | changes)


def sums(actions: list[float], known: int | None = None, previous: float = math.nan) -> dict[str, tuple[float, float]]:
    x = torch.tensor([[[a, 7.0 * a] for a in actions]])
    mask = torch.arange(len(actions))[None] < (len(actions) if known is None else known)
    found = motion_sums(x, mask, torch.tensor([[previous, 0.0]]), limits())
    return {name: tuple(pair.tolist()) for name, pair in zip(MOTION_SUMS, found[0], strict=True)}


def test_motion_sums_in_closed_form() -> None:
    # x = a / 2: 0, 1, 3, 6 -> steps 1 2 3, velocity 10 20 30, acceleration 100 100, jerk 0
    found = sums([0, 2, 6, 12])
    assert found["outside"] == (2, 4)
    assert found["velocity_beyond"] == (2, 3)
    assert found["acceleration_beyond"] == (0, 2)
    assert found["jerk"] == (0, 1)
    assert found["ldlj"] == (0, 0), "no jerk: not defined"
    assert found["step"] == (12, 3)
    assert found["seam"] == (0, 0), "what went before is not known"
    assert sums([4.2, -4.2, 4.5])["outside"] == (1, 3), "within a twentieth of the range it is an error like any other"
    assert sums([1, 2], previous=0.0)["seam"] == (1, 1)
    assert sums([0, 0.04, 2])["idle"] == (1, 2)


def test_log_dimensionless_jerk_is_the_published_formula_and_knows_no_units() -> None:
    x = [0.0, 2, 4, 10]  # standard deviations 0 1 2 5: speeds 10 10 30, jerk 2 * 1000
    expected = -math.log(0.3**3 / 30**2 * 2000**2 / 10)
    assert sums(x)["ldlj"][0] == pytest.approx(expected)
    assert sums([3 * a for a in x])["ldlj"][0] == pytest.approx(expected)


def test_missing_steps_count_for_nothing() -> None:
    assert sums([0, 2, 6, 12, 1000, -1000], known=4) == sums([0, 2, 6, 12])


def test_limits_are_the_central_share_of_what_was_recorded() -> None:
    steps = torch.cat([torch.zeros(5000), torch.ones(1)])
    path = torch.stack([steps.cumsum(0), torch.zeros(5001)], dim=-1)
    extremes = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    found = Limits.of([path], rate=10.0, centre=torch.zeros(2), scale=torch.tensor([1.0, 0.0]), extremes=extremes)
    assert found.velocity.tolist() == [[0.0], [0.0]], "one step in 5000 is beyond 99.9 %"
    assert found.action.tolist() == [[0.0], [1.0]]
    assert found.step == pytest.approx(1 / 5000)
