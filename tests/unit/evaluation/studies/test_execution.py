from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.evaluation.line_world import SPEC, LineWorld
from tests.unit.evaluation.studies.toy_subject import toy_processor, toy_subject
from tests.unit.evaluation.toy_world import make_group
from wam_video.data.simulation import Scene, Thing
from wam_video.evaluation.open_loop import Generated
from wam_video.evaluation.studies.execution import Execution
from wam_video.evaluation.studies.stage import Stage, StageConfig
from wam_video.evaluation.study import Findings, StudyOptions
from wam_video.tensors import Batch, Mode

WINDOW = {
    "num_context_frames": 2, "num_future_frames": 2, "context_stride_s": 0.1, "future_stride_s": 0.1, "action_horizon": 2,
    "height": 32, "width": 32,
}  # fmt: skip


class TwoSides(LineWorld):
    """The point starts on one side or on the other, and the expert is in no hurry."""

    max_steps = 20

    def reset(self, task: str, seed: Sequence[int]) -> None:
        super().reset(task, seed)
        self.at *= 1 if seed[-1] < 4 else -1

    def expert(self, rng: np.random.Generator):
        return lambda: np.clip(-self.at, -0.1, 0.1).astype(np.float32)


class NoExpert(TwoSides):
    def expert(self, rng: np.random.Generator) -> None:
        return None


class Moody(TwoSides):
    """Starts anywhere, whatever the seed."""

    starts = 0

    def reset(self, task: str, seed: Sequence[int]) -> None:
        super().reset(task, seed)
        Moody.starts += 1
        self.at += 0.01 * Moody.starts


class Planner:
    """Knows the world; `broken` names what it gets wrong."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken

    def __call__(self, mode: Mode, batch: Batch, seeds: Sequence[int]) -> Generated:
        at, plan = batch.state.clone(), []
        for _ in range(2):
            plan.append((-at).clamp(-0.1, 0.1))
            at = at + plan[-1]
        actions = torch.stack(plan, dim=1)
        if self.broken == "idle":
            actions = torch.zeros_like(actions)
        if self.broken == "blind":
            actions = torch.full_like(actions, -0.1) * torch.tensor([1.0, 0.0])
        if mode is Mode.POLICY:
            return Generated(actions=actions, video=None)
        moves = batch.actions if mode is Mode.FORWARD else actions
        if self.broken == "frozen" or (self.broken == "joint_disagrees" and mode is Mode.JOINT):
            moves = 0 * moves if self.broken == "frozen" else -moves
        ahead = batch.state[:, None] + moves.cumsum(1)
        video = self.draw(ahead[..., 0])[:, None]
        return Generated(actions=None if mode is Mode.FORWARD else actions, video=video)

    def draw(self, at: torch.Tensor) -> torch.Tensor:
        width = (at.abs() * 32).floor()[..., None, None, None]
        return (torch.arange(32) < width).float().expand(-1, -1, 3, 32, -1) * 200 / 255


RED = (230, 30, 20)


class Located(TwoSides):
    """Shows a red square where the point is, and says so."""

    def frames(self, size: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        painted = Painter().draw(torch.tensor([self.at[0]]))[0]
        return {"front": (painted * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()}

    def objects(self) -> Scene:
        body = Thing(name="point", colour=RED, place=(0.5 + 0.4 * float(self.at[0]), 0.5))
        return Scene(view="front", body=body, things=(), scenery=((0, 0, 0),))

    def contacts(self) -> frozenset[str]:
        return frozenset()

    def way_back(self, states: np.ndarray) -> np.ndarray:
        return states[:0]


class Painter(Planner):
    def draw(self, at: torch.Tensor) -> torch.Tensor:
        x = 32 * (0.5 + 0.4 * at)[..., None, None, None]
        column = ((torch.arange(32) + 0.5 - x).abs() <= 3).float()
        row = ((torch.arange(32) - 15.5).abs() <= 3).float()[:, None]
        return column * row * (torch.tensor(RED) / 255)[:, None, None]


_NOT_LOCATED = ("execution: body and thing error", "the simulator does not tell where things are")


def execute(broken: str = "", world: type = TwoSides, **changes) -> tuple[Findings, dict, dict[str, str]]:
    values = {
        "group": replace(make_group(4), spec=SPEC),
        "open_environment": world,
        "options": StudyOptions(env="line", episodes=8),
    }
    planner = Painter if world is Located else Planner
    subject = toy_subject(planner(broken), processor=toy_processor(SPEC, WINDOW), **(values | changes))
    found = Execution().run(subject)
    rows = {(r.metric, r.condition): r.estimate.value for r in found.rows if r.time_s is None}
    return found, rows, {a.check.name: a.status for a in found.answers}


def test_what_a_right_model_plans_happens_as_imagined_and_gets_somewhere() -> None:
    found, rows, status = execute()
    assert len(status) == 8
    assert set(status.values()) == {"yes"}
    assert rows["psnr_moving", "policy"] == rows["psnr_moving", "joint"] == 100.0
    assert rows["progress", "policy"] == pytest.approx(rows["progress", "expert"]) == pytest.approx(20.0, abs=2)
    assert rows["progress", "hold"] == 0.0
    assert rows["success", "policy"] == rows["success", "expert"] == 100.0
    assert rows["success", "hold"] == 0.0
    (rate,) = [r.estimate for r in found.rows if (r.metric, r.condition) == ("success", "policy")]
    assert rate.num_episodes == 8
    assert 60 < rate.low < 80 < rate.high == pytest.approx(100), "eight of eight is not certainty"
    assert rows["state_error", "policy"] < 1e-6 < rows["state_error", "policy_other"]
    assert {r.time_s for r in found.rows} == {None, 0.1, 0.2}
    assert found.left_out == [_NOT_LOCATED]
    assert len(found.films) == 2


def test_where_the_simulator_tells_the_imagined_body_is_looked_for() -> None:
    found, rows, status = execute(world=Located)
    assert status["execution_policy_knows_where"] == status["execution_joint_knows_where"] == "yes"
    assert rows["body_error", "policy"] == rows["body_error", "executed"] < 1.0, "less than a third of a pixel"
    assert rows["body_error", "policy_other"] > 4.0, "two steps apart and more"
    assert rows["body_error", "policy_copy"] == pytest.approx(100 * 0.4 * 0.15, abs=1), "a step and a half behind"
    assert _NOT_LOCATED not in found.left_out
    assert ("execution: thing_error of policy", "not defined on these windows") in found.left_out
    for broken in ("frozen", "joint_disagrees"):
        assert execute(broken, world=Located)[2]["execution_joint_knows_where"] == "no"


@pytest.mark.parametrize(
    ("broken", "caught"),
    [
        ("frozen", "policy_adheres"),
        ("frozen", "joint_beats_copy"),
        ("joint_disagrees", "joint_adheres"),
        ("idle", "policy_gets_farther"),
        ("blind", "policy_gets_farther"),
        ("blind", "joint_fits"),
    ],
)
def test_a_broken_model_is_caught(broken: str, caught: str) -> None:
    assert execute(broken)[2][f"execution_{caught}"] == "no"


def test_a_joint_mode_that_disagrees_with_itself_does_not_blame_the_policy() -> None:
    _, _, status = execute("joint_disagrees")
    assert status["execution_policy_adheres"] == "yes"


def test_figures_depend_neither_on_the_batch_size_nor_on_the_run() -> None:
    one, many = (execute(batch_size=size)[0].rows for size in (1, 16))
    assert [r.to_dict() for r in one] == [r.to_dict() for r in many]


def test_what_can_not_be_measured_is_left_out_by_name() -> None:
    for changes, reason in (
        ({"open_environment": None}, "needs --env"),
        ({"world": Moody}, "lead somewhere else"),
        ({"group": replace(make_group(4), spec=replace(SPEC, action_rate=5.0))}, "action_rate"),
    ):
        found, _, _ = execute(**changes)
        (name, told), *_ = found.left_out
        assert name == "execution"
        assert reason in told
        assert not found.rows


class Hasty(TwoSides):
    """Some starts are at the goal already, all but for a step."""

    def reset(self, task: str, seed: Sequence[int]) -> None:
        super().reset(task, seed)
        if seed[-1] in (2, 6):
            self.at = np.array([0.1, 0.0])


def test_an_episode_that_is_over_too_soon_is_left_out_by_its_number() -> None:
    found, _, _ = execute(world=Hasty)
    assert ("execution: episodes 2, 6", "over before 2 actions could be planned") in found.left_out
    assert {r.estimate.num_episodes for r in found.rows} == {6}


def test_without_an_expert_there_is_a_moment_near_the_start_and_no_reference() -> None:
    found, rows, status = execute(world=NoExpert)
    assert ("execution: expert and state error", "the simulator has no scripted expert") in found.left_out
    assert "execution: success" in {name for name, _ in found.left_out}
    assert ("progress", "expert") not in rows
    assert status["execution_policy_adheres"] == "yes"


def test_situations_are_spread_from_the_beginning_to_one_plan_before_the_goal() -> None:
    world = TwoSides()
    stage = Stage(world, StageConfig(seed=3, horizon=2, back=(1, 0)))
    found = stage.situations(5)
    assert found[0].lead.shape == (1, 2)
    assert [s.is_last for s in found] == [False] * (len(found) - 1) + [True]
    last = found[-1]
    done = stage.perform(last, lambda step: last.rest[step], film=(2,))
    assert done.success
    assert set(done.frames) == {2}
    assert last.progress == pytest.approx(1 + last.moment.state[0], abs=1e-6), "it comes from the left"
    shown = {back: int((frames["front"][0, :, 0] > 0).sum()) for back, frames in last.moment.pictures.items()}
    assert shown[1] > shown[0], "the picture before now shows the point farther away"
    assert stage.situations(5)[-1].moment.key == last.moment.key
