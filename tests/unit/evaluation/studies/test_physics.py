"""The study of physics on a world in which everything is known, by models that are right, coarse, and broken."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.evaluation import toy_world
from tests.unit.evaluation.studies import push_world
from tests.unit.evaluation.studies.push_world import BlindWorld, PushModel, PushWorld, figures
from tests.unit.evaluation.studies.toy_subject import toy_subject
from wam_video.evaluation.open_loop import Group
from wam_video.evaluation.studies.physics import PhysicsStudy
from wam_video.evaluation.studies.physics.words import MORE_IS_BETTER
from wam_video.evaluation.study import Findings, StudyOptions
from wam_video.models.masks import AttentionConfig


def _study(model: Any, world: Any = PushWorld, **changes: Any) -> Findings:
    group = Group(
        spec=push_world.SPEC, indices=(), episodes=(), action_mean=toy_world.make_group(1).action_mean,
        action_scale=toy_world.make_group(1).action_scale,
    )  # fmt: skip
    pipe = SimpleNamespace(
        transformer=SimpleNamespace(attention=AttentionConfig()),
        processor=SimpleNamespace(window=push_world.WINDOW),
    )
    settings = {
        "pipe": pipe,
        "group": group,
        "open_environment": world,
        "options": StudyOptions(env="push", episodes=2),
    }
    return PhysicsStudy().run(toy_subject(model, 4, None, **(settings | changes)))


@pytest.fixture(scope="module")
def right() -> Findings:
    return _study(PushModel())


@pytest.fixture(scope="module")
def coarse() -> Findings:
    return _study(PushModel(coarse=True))


def _status(found: Findings) -> dict[str, str]:
    return {a.check.name: a.status for a in found.answers}


@pytest.mark.parametrize(
    ("metric", "worse", "more"),
    [
        ("piq_score", "frozen", True), ("piq_spatiotemporal", "frozen", True), ("piq_mse", "frozen", False),
        ("permanence", "melted", True), ("area_change", "melted", False), ("colour_change", "melted", False),
        ("place_error", "frozen", False), ("contact_f1", "frozen", True), ("contact_f1", "glued", True),
        ("static_drift", "shuffled_actions", False),
        ("counterfactual", "frozen", True),
    ],
)  # fmt: skip
def test_each_probe_puts_a_coarse_model_between_the_real_film_and_a_broken_one(
    coarse: Findings, metric: str, worse: str, more: bool
) -> None:
    value = figures(coarse.rows)
    sign = 1 if more else -1
    real, model, broken = (sign * value[metric, c] for c in ("real", "model", worse))
    assert real >= model > broken


def test_a_right_model_answers_every_question_with_yes_and_misses_nothing(right: Findings) -> None:
    found, value = right, figures(right.rows)
    assert found.left_out == []
    for metric, exact in (
        ("permanence", 1.0), ("area_change", 0.0), ("colour_change", 0.0), ("contact_f1", 1.0), ("moved_untouched", 0.0),
        ("static_drift", 0.0), ("counterfactual", 1.0), ("left_behind", 0.0), ("piq_spatial", 1.0), ("piq_score", 100.0),
    ):  # fmt: skip
        assert value[metric, "model"] == pytest.approx(exact, abs=1e-6), metric
    assert value["place_error", "model"] == pytest.approx(0.0, abs=1e-6)
    assert value["penetration", "model"] < 0.5 < value["penetration", "real"] < value["penetration", "glued"] / 2
    unsure = {n for n, status in _status(found).items() if status != "yes"}
    # with other actions this world's things still rest when nothing touches them
    assert unsure <= {f"physics_{n}_shuffled_actions" for n in ("moved_untouched", "left_behind", "counterfactual")}


@pytest.mark.parametrize(
    ("broken", "metrics"),
    [
        ("forgets", ("permanence:melted", "area_change:melted")),
        ("pales", ("colour_change:melted",)),
        ("frozen", ("contact_f1:shuffled_actions", "place_error:frozen", "counterfactual:shuffled_actions")),
        ("glued", ("penetration:glued",)),
        ("wanders", ("moved_untouched:shuffled_actions", "left_behind:shuffled_actions")),
        ("ignores actions", ("counterfactual:shuffled_actions", "static_drift:shuffled_actions")),
    ],
)
def test_a_broken_model_is_told_by_the_probes_of_what_it_breaks(
    right: Findings, broken: str, metrics: tuple[str, ...]
) -> None:
    found = _study(PushModel(broken))
    for name in metrics:
        metric, worse = name.split(":")
        value, better = (figures(f.rows)[metric, "model"] for f in (found, right))
        assert (value < better) if metric in MORE_IS_BETTER else (value > better), name
        if broken != "glued":  # this one loses sight of what it covers, and so enters a little less than the glued film
            assert _status(found)[f"physics_{metric}_{worse}"] == "no", name


def test_the_batch_size_changes_no_figure_and_the_state_is_told_only_where_it_is_known(
    coarse: Findings,
) -> None:
    model = PushModel(coarse=True)
    one = _study(model, batch_size=1)
    assert [r.to_dict() for r in one.rows] == [r.to_dict() for r in coarse.rows]
    assert set(model.sizes) == {1}
    assert not model.told_state


def test_a_world_that_does_not_say_what_is_where_leaves_the_probes_of_things_out_by_name() -> None:
    found = _study(PushModel(), BlindWorld)
    left = dict(found.left_out)
    assert "does not say what is where" in left["physics: contact_f1"]
    assert {"piq_spatial", "static_drift"} <= {r.metric for r in found.rows}
    assert not {"permanence", "penetration", "counterfactual"} & {r.metric for r in found.rows}


def test_without_a_simulator_recorded_windows_give_raw_scores_and_no_normalised_one() -> None:
    found = PhysicsStudy().run(toy_subject(toy_world.ToyModel(), 8))
    value = figures(found.rows)
    assert value["piq_spatiotemporal", "model"] == pytest.approx(1.0)
    assert value["piq_spatiotemporal", "frozen"] < 1
    assert value["piq_spatiotemporal", "shuffled_actions"] < 1
    assert "--env" in dict(found.left_out)["physics: piq_score"]
    assert "--env" in dict(found.left_out)["physics: penetration"]


def test_a_body_without_actions_is_not_measured_at_all() -> None:
    spec = toy_world.SPEC.__class__(name="mute", action_dim=0, state_dim=0, views=("top",), fps=5.0, action_rate=0.0)
    group = toy_world.make_group(4)
    found = PhysicsStudy().run(toy_subject(toy_world.ToyModel(), 4, group=type(group)(**{**vars(group), "spec": spec})))
    assert not found.rows
    assert "forward" in found.left_out[0][1]
