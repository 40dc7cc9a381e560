"""Fast policy paths of models whose error is known at every number of steps, and what a decision costs, against torch's count."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.evaluation import toy_world
from tests.unit.evaluation.line_world import LineWorld
from tests.unit.evaluation.studies.toy_subject import toy_processor, toy_subject
from wam_video.evaluation.studies.paths import WAYS, Paths, costs, play
from wam_video.evaluation.study import Findings
from wam_video.evaluation.study_page import study_sections
from wam_video.evaluation.study_run import Studied
from wam_video.tensors import Batch
from wam_video.testing import fake_batch, tiny_pipeline

LEVEL = {"absent": 1.0, "unknown": 0.5, "joint": 0.25}


class Pipe:
    """Plans the recorded actions with an error of `LEVEL / steps` px in each of them; `broken` names what is wrong."""

    def __init__(self, broken: str = "") -> None:
        real = tiny_pipeline(size=24)
        self.transformer, self.vae, self.scheduler, self.tokenizer = (
            real.transformer, real.vae, real.scheduler, real.tokenizer,
        )  # fmt: skip
        self.processor, self.broken = toy_processor(), broken
        self.asked: list[tuple[str, int]] = []

    def predict(
        self,
        batch: Batch,
        mode: str,
        *,
        policy_path: str,
        num_inference_steps: int,
        generator: Sequence[int],
        **_: object,
    ) -> SimpleNamespace:
        self.asked.append((policy_path, num_inference_steps))
        actions = batch.actions
        if self.broken == "blind":  # the same for every moment
            actions = toy_world.fetch([0]).actions.expand_as(actions)
        if self.broken == "wild":
            actions = actions + 9.0
        return SimpleNamespace(actions=actions + LEVEL[policy_path] / num_inference_steps)


def study(broken: str = "", **changes: object) -> tuple[Findings, dict, dict[str, str]]:
    found = Paths().run(replace(toy_subject(None, **changes), pipe=Pipe(broken)))
    rows = {(r.metric, r.condition): r.estimate.value for r in found.rows}
    return found, rows, {a.check.name: a.status for a in found.answers}


def test_each_way_has_its_error_and_its_cost() -> None:
    found, rows, status = study()
    for way in WAYS:
        assert rows["nrmse", way.name] == pytest.approx(LEVEL[way.path] / way.steps / 2**0.5)
        assert found.timing[f"{way.name}_ms"] >= 0
    assert set(status.values()) == {"yes"}
    assert rows["nrmse", "another_moment"] > rows["nrmse", "absent_1"]
    assert rows["gflop", "absent_8"] == pytest.approx(8 * rows["gflop", "absent_1"])
    assert rows["gflop", "absent_1"] < rows["gflop", "unknown_1"] == rows["gflop", "joint_1"]
    (curve,) = found.curves
    assert [s.label for s in curve.series] == ["absent", "unknown", "joint"]
    assert curve.series[0].y == [rows["nrmse", f"absent_{n}"] for n in (1, 2, 4, 8)]
    assert [name for name, _ in found.left_out] == ["paths: success"]


def test_a_policy_that_sees_nothing_fits_another_moment_as_well() -> None:
    _, _, status = study("blind")
    assert status["paths_beats_another_moment"] == "no"
    _, _, status = study("wild")
    assert status["paths_beats_mean_action"] == "no"


def test_times_stand_apart_and_nothing_else_changes_with_the_batch_size() -> None:
    documents = []
    for size in (16, 7):
        found, _, _ = study(batch_size=size)
        document = Studied(study=Paths(), findings=found).to_dict()
        assert set(document.pop("timing")) == {f"{way.name}_ms" for way in WAYS}
        documents.append(document)
    assert documents[0] == documents[1]


def test_a_body_without_actions_has_no_ways() -> None:
    subject = toy_subject(None)
    spec = replace(subject.group.spec, action_dim=0, action_names=(), action_units=(), action_rate=0.0)
    found = Paths().run(replace(subject, group=replace(subject.group, spec=spec)))
    assert found.left_out == [("paths", "the model plans no actions for this body")]


def test_the_page_shows_quality_over_cost_and_the_times() -> None:
    found, _, _ = study()
    (section,) = study_sections({"toy": [("toy", Studied(study=Paths(), findings=found))]})
    assert "GFLOP a decision" in section
    assert "absent 1 ms" in section


@pytest.mark.parametrize("codec", ["pixel", "wan"])
def test_the_count_of_operations_is_torchs(codec: str) -> None:
    pipe = tiny_pipeline(codec=codec)
    batch = fake_batch(pipe, 1)
    counted = costs(pipe)
    plain, spent = pipe.transformer.forward, []

    def forward(*arguments: object, **options: object) -> object:
        # attention by matrix products, which the counter knows
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            made = plain(*arguments, **options)
        spent.append(counter.get_total_flops())
        return made

    pipe.transformer.forward = forward
    for way in WAYS:
        if way.steps <= 2:
            spent.clear()
            pipe.predict(batch, "policy", policy_path=way.path, num_inference_steps=way.steps, generator=[0])
            assert counted[way] * 1e9 == pytest.approx(sum(spent), rel=0.01), way.name


def test_in_a_simulator_the_same_episodes_are_played_every_way() -> None:
    pipe = tiny_pipeline(size=32, seed=3)
    found = Findings()
    group = replace(toy_world.make_group(4), spec=replace(LineWorld.spec))
    subject = replace(
        toy_subject(None), pipe=pipe, group=group, open_environment=lambda: LineWorld(size=(32, 32)), seed=3
    )
    subject = replace(subject, options=replace(subject.options, episodes=2))
    play(subject, found)
    again = Findings()
    play(subject, again)
    assert found.rows == again.rows
    assert {r.metric for r in found.rows} == {"success", "progress"}
    for row in (r for r in found.rows if r.metric == "success"):
        assert row.estimate.low < row.estimate.high, "two episodes alike are no certainty"
    assert len(found.rows) == 2 * len(WAYS)
    assert all(0 <= r.estimate.value <= 100 and r.estimate.num_episodes == 2 for r in found.rows)
