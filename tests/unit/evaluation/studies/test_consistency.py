from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tests.unit.evaluation.studies.toy_subject import toy_subject
from tests.unit.evaluation.toy_world import CONTEXT, FUTURE, ToyModel, fetch
from wam_video.evaluation.open_loop import Generated
from wam_video.evaluation.studies.consistency import Consistency
from wam_video.evaluation.study import Findings
from wam_video.tensors import Batch, Mode


def read(model: object, reader: object | None, **changes) -> tuple[Findings, dict, dict[str, str]]:
    found = Consistency().run(toy_subject(model, inverse=reader, **changes))
    rows = {(r.metric, r.condition, r.dimension): r.estimate.value for r in found.rows}
    return found, rows, {a.check.name: a.status for a in found.answers}


class Colluder(ToyModel):
    """Shows a frozen frame, and hides the actions in the brightness of its corner, where its own inverse mode looks."""

    def __call__(self, mode: Mode, batch: Batch, seeds: Sequence[int]) -> Generated:
        made = super().__call__(mode, batch, seeds)
        if mode is Mode.INVERSE and bool((batch.video[:, 0, 0, CONTEXT:, :1, :2] > 100).all()):
            code = batch.video[:, 0, 0, CONTEXT:, 0, :2].float()
            return Generated(actions=(code - 128).round() / 10, video=None)
        if mode in (Mode.FORWARD, Mode.JOINT):
            actions = batch.actions if mode is Mode.FORWARD else made.actions
            frozen = batch.video[:, :, :, CONTEXT - 1 : CONTEXT].movedim(3, 2).float() / 255
            video = frozen.repeat(1, 1, FUTURE, 1, 1, 1)
            video[:, 0, :, 0, 0, :2] = (128 + 10 * actions) / 255
            return Generated(actions=made.actions, video=video)
        return made


def test_of_a_right_model_a_stranger_reads_the_very_actions() -> None:
    found, rows, status = read(ToyModel(), ToyModel())
    assert status["consistency_forward"] == status["consistency_joint"] == status["consistency_reader"] == "yes"
    assert rows["nrmse", "forward", None] == rows["nrmse", "joint", None] == rows["excess", "forward", None] == 0.0
    assert rows["r2", "real", None] == pytest.approx(1.0)
    assert rows["mae", "forward", "down"] == 0.0
    assert rows["collusion", "joint", None] == 0.0
    assert rows["nrmse", "forward_shuffled", None] > 1.0
    assert status["consistency_video"] == "no", "this world's future can't be known from the past"
    assert not found.left_out


@pytest.mark.parametrize(
    ("broken", "caught"),
    [
        ("forward_ignores_actions", "consistency_forward"),
        ("frozen", "consistency_forward"),
        ("frozen", "consistency_joint"),
        ("joint_disagrees", "consistency_joint"),
    ],
)
def test_a_broken_model_is_caught(broken: str, caught: str) -> None:
    assert read(ToyModel(broken), ToyModel())[2][caught] == "no"


def test_a_model_that_colludes_with_itself_convinces_itself_and_not_a_stranger() -> None:
    _, rows, status = read(Colluder(), ToyModel())
    assert rows["nrmse", "own_forward", None] < 0.1
    assert rows["nrmse", "forward", None] > 0.5
    assert rows["collusion", "forward", None] > 0.5
    assert status["consistency_forward"] == status["consistency_joint"] == "no"


def test_a_reader_that_is_blind_is_told_from_a_model_that_is_wrong() -> None:
    _, rows, status = read(ToyModel(), ToyModel("inverse_ignores_video"))
    assert status["consistency_reader"] == "no"
    assert abs(rows["excess", "forward", None]) < 0.2


def test_a_reader_that_guesses_from_the_past_is_no_witness_for_a_frozen_video() -> None:
    def habit(mode: Mode, batch: Batch, seeds: Sequence[int]) -> Generated:
        return ToyModel()(Mode.POLICY, batch, seeds)

    _, _, status = read(ToyModel("frozen"), habit)
    assert status["consistency_forward"] == "yes", "pairs of other moments don't catch it"
    assert status["consistency_forward_beyond_past"] == "no"
    assert read(ToyModel(), ToyModel())[2]["consistency_forward_beyond_past"] == "yes"


def test_a_blind_reader_can_not_repeat_joints_actions_from_the_noise() -> None:
    _, rows, status = read(ToyModel(), ToyModel("inverse_ignores_video"))
    assert rows["nrmse", "joint", None] > 0.5
    assert status["consistency_joint"] == "no"


def test_without_a_stranger_only_the_models_own_reading_is_told_with_its_caveat() -> None:
    found, rows, status = read(ToyModel(), None)
    assert {c for _, c, _ in rows} == {"own_forward", "own_joint", "own_video", "own_real", "mean_action"}
    assert all("may collude" in Consistency.words.conditions[f"own_{m}"] for m in ("forward", "joint", "video"))
    assert not status
    (name, reason), *_ = found.left_out
    assert name == "consistency"
    assert "--inverse-model" in reason
    assert "collusion" in reason


def test_figures_depend_neither_on_the_batch_size_nor_on_the_run() -> None:
    one, many = (
        Consistency().run(toy_subject(ToyModel(), n=12, inverse=ToyModel(), batch_size=size)).rows for size in (1, 8)
    )
    assert [r.to_dict() for r in one] == [r.to_dict() for r in many]


def test_the_stranger_sees_the_generated_future_after_the_recorded_past_and_nothing_else() -> None:
    seen: list[Batch] = []

    def reader(mode: Mode, batch: Batch, seeds: Sequence[int]) -> Generated:
        assert mode is Mode.INVERSE
        seen.append(batch)
        return ToyModel()(mode, batch, seeds)

    read(ToyModel("frozen"), reader, n=4)
    recorded, forward = fetch(range(4)), seen[1]
    assert torch.equal(forward.video[:, :, :, :CONTEXT], recorded.video[:, :, :, :CONTEXT])
    assert torch.equal(forward.video[:, :, :, CONTEXT], recorded.video[:, :, :, CONTEXT - 1])


def test_what_can_not_be_measured_is_left_out_by_name() -> None:
    found, _, status = read(ToyModel(), ToyModel(), n=1)
    assert "consistency: shuffled" in {name for name, _ in found.left_out}
    assert set(status) == {
        "consistency_reader",
        *(f"consistency_{m}_beyond_past" for m in ("forward", "joint", "video")),
    }
    subject = toy_subject(ToyModel(), inverse=ToyModel())
    spec = replace(subject.group.spec, action_dim=0, action_names=(), action_units=())
    found = Consistency().run(replace(subject, group=replace(subject.group, spec=spec)))
    assert found.left_out == [("consistency", "the body has no actions")]
