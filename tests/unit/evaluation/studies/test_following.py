from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.unit.evaluation.studies.toy_subject import toy_subject
from tests.unit.evaluation.toy_world import FUTURE, ToyModel, make_group
from wam_video.evaluation.open_loop import Generated
from wam_video.evaluation.studies.following import Following
from wam_video.evaluation.study import Findings
from wam_video.tensors import Batch, Mode


def follow(model: object, **changes) -> tuple[Findings, dict, dict[str, str]]:
    found = Following().run(toy_subject(model, **changes))
    rows = {(r.metric, r.condition, r.time_s): r.estimate.value for r in found.rows}
    return found, rows, {a.check.name: a.status for a in found.answers}


class Backwards(ToyModel):
    """Does the opposite of what it is told."""

    def __call__(self, mode: Mode, batch: Batch, seeds: Sequence[int]) -> Generated:
        return super().__call__(mode, replace(batch, actions=-batch.actions), seeds)


def test_a_model_that_follows_is_right_with_the_true_actions_alone() -> None:
    found, rows, status = follow(ToyModel())
    assert set(status) == {
        f"following_{x}" for x in ("beats_shuffled", "beats_zero", "beats_flipped", "answers_actions")
    }
    assert set(status.values()) == {"yes"}
    assert rows["psnr_moving", "model", None] == 100.0
    assert rows["delta_psnr", "flipped", None] == pytest.approx(100 - rows["psnr_moving", "flipped", None])
    assert rows["change", "other_noise", None] == 0.0
    assert rows["sensitivity", "nudged", None] > 1.0
    assert len([key for key in rows if key[:2] == ("psnr_moving", "copy_last") and key[2]]) == FUTURE
    assert not found.left_out
    assert found.films[0].frames.dtype == torch.uint8


def test_one_that_ignores_the_actions_gains_nothing_from_the_true_ones_and_answers_to_noise() -> None:
    _, rows, status = follow(ToyModel("forward_ignores_actions"))
    assert set(status.values()) == {"no"}
    assert rows["delta_psnr", "shuffled", None] == 0.0
    assert rows["sensitivity", "nudged", None] == 0.0


def test_one_that_does_the_opposite_loses_to_the_mirrored_actions() -> None:
    _, rows, status = follow(Backwards())
    assert rows["delta_psnr", "flipped", None] < -50
    assert status["following_beats_flipped"] == "no"


def test_a_frozen_frame_is_no_better_with_any_actions() -> None:
    _, rows, status = follow(ToyModel("frozen"))
    assert status["following_beats_shuffled"] == status["following_beats_zero"] == "no"
    assert rows["psnr_moving", "model", None] == rows["psnr_moving", "copy_last", None]


class Still:
    """A simulator that knows how to hold still: by a fixed action, by going to where it is, or in a way of its own."""

    tasks = ("one",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def reset(self, task: str, seed: Sequence[int]) -> None:
        self.at = np.array(seed * 2, np.float32)

    def state(self) -> np.ndarray:
        return self.at

    def hold(self) -> np.ndarray:
        return {"fixed": np.array([0.0, 1.0], np.float32), "place": self.at, "own": -1 - self.at}[self.kind]

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("kind", "condition"), [("fixed", "hold"), ("place", "hold"), ("own", "zero")])
def test_holding_still_is_the_simulators_where_it_can_be_told_from_a_window(kind: str, condition: str) -> None:
    given: list[Batch] = []

    def model(mode: Mode, batch: Batch, seeds: Sequence[int]) -> Generated:
        given.append(batch)
        return ToyModel()(mode, batch, seeds)

    found, _, _ = follow(model, open_environment=lambda: Still(kind), n=4)
    assert condition in {r.condition for r in found.rows}
    still = given[2]
    expected = {"fixed": torch.tensor([0.0, 1.0]), "place": still.state[:, None], "own": torch.zeros(2)}[kind]
    torch.testing.assert_close(still.actions, expected.expand_as(still.actions))


def test_figures_depend_neither_on_the_batch_size_nor_on_the_run() -> None:
    one, many = (Following().run(toy_subject(ToyModel(), batch_size=size)).rows for size in (1, 16))
    assert [r.to_dict() for r in one] == [r.to_dict() for r in many]


def test_what_can_not_be_measured_is_left_out_by_name() -> None:
    found, _, status = follow(ToyModel(), n=1)
    assert ("following: shuffled", "there is a single window, and none to take other actions from") in found.left_out
    assert set(status.values()) == {"unknown"}
    group = make_group(4)
    spec = replace(group.spec, action_dim=0, action_names=(), action_units=())
    found, _, _ = follow(ToyModel(), group=replace(group, spec=spec))
    assert not found.rows
    assert found.left_out[0][0] == "following"


def test_a_dimension_that_never_moves_is_not_nudged_and_missing_steps_stay_missing() -> None:
    given: list[Batch] = []

    def model(mode: Mode, batch: Batch, seeds: Sequence[int]) -> Generated:
        given.append(batch)
        return ToyModel()(mode, batch, seeds)

    group = replace(make_group(4), action_scale=torch.tensor([1.0, 0.0]))
    subject = toy_subject(model, group=group)
    fetch = subject.data.dataset.batch

    def short(indices: Sequence[int]) -> Batch:
        batch = fetch(indices)
        mask = batch.action_mask & (torch.arange(FUTURE) < FUTURE - 1)[:, None]
        return replace(batch, action_mask=mask, actions=batch.actions * mask)

    subject = replace(subject, data=SimpleNamespace(dataset=SimpleNamespace(batch=short)))
    Following().run(subject)
    true, nudged = given[0], given[4]
    shift = (nudged.actions - true.actions)[:, :-1]
    assert torch.allclose(shift[..., 0].abs(), torch.tensor(0.25))
    assert not shift[..., 1].any()
    assert not nudged.actions[:, -1].any()
