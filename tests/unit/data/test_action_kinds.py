"""Actions as a model is told them: closed forms, exact ways back, statistics of what is told, and what can't be told refused."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.data.conftest import write_shards
from wam_video.data.action_kinds import ActionKinds
from wam_video.data.loader import DataConfig, DatasetConfig, WindowDataset
from wam_video.data.processor import Origin, WAMProcessor
from wam_video.data.rotations import WIDTHS, convert_rotation
from wam_video.data.schema import EmbodimentSpec, Episode
from wam_video.data.video import ArrayView
from wam_video.data.windows import WindowConfig
from wam_video.errors import ConfigError, DataError
from wam_video.evaluation.studies import following
from wam_video.evaluation.windows import open_windows

NAMES = ("x", "turn_0", "turn_1", "turn_2", "grip")
SPEC = EmbodimentSpec(
    name="arm",
    action_dim=5,
    state_dim=5,
    views=("cam",),
    fps=10,
    action_rate=10,
    action_names=NAMES,
    action_units=("m", "rad", "rad", "rad", "open"),
    action_kinds=("absolute",) * 5,
    action_rotations=("", *["axis_angle"] * 3, ""),
    state_names=("grip", "x", "turn_0", "turn_1", "turn_2"),  # in another order
    state_units=("open", "m", "rad", "rad", "rad"),
    state_rotations=("", "", *["axis_angle"] * 3),
)
MOVES = {"*": "relative", "grip": "stored"}


def recording(name: str = "ep0", steps: int = 40, spec: EmbodimentSpec = SPEC) -> Episode:
    rng = np.random.default_rng(len(name) + ord(name[-1]))
    path = np.cumsum(rng.normal(0, 0.05, (steps + 1, 5)), axis=0).astype(np.float32)
    path[:, 0] += 7  # far from zero, as poses are
    state = path[:, [4, 0, 1, 2, 3]] if spec.state_dim else None
    times = np.arange(steps + 1) / 10
    video = np.zeros((steps + 1, 16, 16, 3), np.uint8)
    return Episode(
        episode_id=name, embodiment=spec, views={"cam": ArrayView(video, times)}, actions=path[1:], state=state
    )


def some(batch: int = 3, steps: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, steps, 5, generator=generator), torch.randn(batch, 5, generator=generator)


def test_numbers_by_hand() -> None:
    actions = torch.tensor([[[3.0, 0, 0, 0, 1], [5, 0, 0, 0, 0]]])
    state = torch.tensor([[0.5, 2, 0, 0, 0]])
    relative = ActionKinds(SPEC, MOVES).tell(actions, state)
    assert relative[0, :, 0].tolist() == [1, 3]
    assert relative[0, :, 4].tolist() == [1, 0]
    delta = ActionKinds(SPEC, {"x": "delta", "grip": "relative"}).tell(actions, state)
    assert delta[0, :, 0].tolist() == [1, 2]
    assert delta[0, :, 4].tolist() == [0.5, -0.5]


def test_rotations_are_seen_from_the_states() -> None:
    quarter, third = math.pi / 2, math.pi / 3
    actions = torch.tensor([[[0, 0, 0, quarter + third, 0], [0, 0, 0, quarter, 0]]])
    state = torch.tensor([[0, 0, 0, 0, quarter]])
    told = ActionKinds(SPEC, {"turn": "relative"}).tell(actions, state)
    assert torch.allclose(told[0, :, 1:4], torch.tensor([[0, 0, third], [0, 0, 0]]), atol=1e-6)
    # a turn about the tool's own x, which the state has turned to the world's y
    turned = convert_rotation(torch.tensor([0, 0, quarter]).double(), "axis_angle", "matrix").reshape(3, 3)
    tool = convert_rotation(torch.tensor([third, 0, 0]).double(), "axis_angle", "matrix").reshape(3, 3)
    action = convert_rotation((turned @ tool).reshape(9), "matrix", "axis_angle").float()
    told = ActionKinds(SPEC, {"turn": "relative"}).tell(
        torch.cat([torch.zeros(1), action, torch.zeros(1)])[None, None], state
    )
    assert torch.allclose(told[0, 0, 1:4], torch.tensor([third, 0, 0]), atol=1e-6)


@pytest.mark.parametrize("kinds", [MOVES, {"*": "delta"}, {"x": "delta", "turn": "relative"}, {"turn": "delta"}])
def test_what_is_told_comes_back(kinds: dict[str, str]) -> None:
    actions, state = some()
    change = ActionKinds(SPEC, kinds)
    told = change.tell(actions, state)
    assert not torch.allclose(told, actions, atol=0.1)
    assert torch.allclose(change.recall(told, state), actions, atol=1e-5)


@pytest.mark.parametrize("kind", ["relative", "delta"])
@pytest.mark.parametrize("rotation", ["rot6d", "matrix"])
def test_what_a_model_says_of_a_rotation_becomes_one(rotation: str, kind: str) -> None:
    width = WIDTHS[rotation]
    names = tuple(f"turn_{i}" for i in range(width))
    known = ("absolute",) * width
    spec = replace(
        SPEC,
        action_dim=width,
        action_names=names,
        action_units=(),
        action_kinds=known,
        action_rotations=(rotation,) * width,
    )
    said = torch.randn(2, 6, width, generator=torch.Generator().manual_seed(0))
    acted = ActionKinds(spec, {"turn": kind}).recall(said, some(2)[1])
    matrix = convert_rotation(acted, rotation, "matrix").reshape(2, 6, 3, 3)
    assert torch.allclose(matrix @ matrix.mT, torch.eye(3).expand(2, 6, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(matrix), torch.ones(2, 6), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "kinds", "message"),
    [
        ({}, {"y": "relative"}, "channel of data.actions.arm is 'y'; allowed: .*turn"),
        ({}, {"x": "relativ"}, "Did you mean 'relative'"),
        ({"action_kinds": ()}, {"x": "relative"}, "not known to be absolute"),
        ({"action_kinds": ("delta", *["absolute"] * 4)}, {"x": "relative"}, "the action is delta"),
        ({"state_names": ()}, {"x": "relative"}, "the state has no 'x'"),
        ({"state_units": ("open", "mm", "rad", "rad", "rad")}, {"x": "delta"}, "in m, the state in mm"),
        ({"state_rotations": ()}, {"turn": "delta"}, "only one of action and state is known to be a rotation"),
    ],
)
def test_what_is_not_known_is_not_guessed(changes: dict, kinds: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ActionKinds(replace(SPEC, **changes), kinds)


def opened(folder: Path, actions: dict[str, dict[str, str]], **window: object) -> WindowDataset:
    windows = WindowConfig(num_context_frames=1, num_future_frames=1, action_horizon=8, **window)  # type: ignore[arg-type]
    return WindowDataset(DataConfig(datasets={"d": DatasetConfig(path=str(folder))}, window=windows, actions=actions))


@pytest.fixture(scope="module")
def arm_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("arm") / "shards", [recording(f"ep{i}") for i in range(4)])


def test_a_batch_is_as_recorded_and_the_model_is_told_relative_actions_in_their_own_statistics(
    arm_shards: Path,
) -> None:
    plain, told = opened(arm_shards, {}), opened(arm_shards, {"arm": MOVES})
    batch = told.batch(range(16))
    assert torch.equal(batch.actions, plain.batch(range(16)).actions)  # in the robot's own units
    stats = told.stats["arm"]["actions"]
    assert abs(stats["mean"][0]) < 0.2 < 6 < plain.stats["arm"]["actions"]["mean"][0]
    assert stats["std"][4] == pytest.approx(plain.stats["arm"]["actions"]["std"][4], rel=0.3)
    processor = WAMProcessor.from_dataset(told, "min_max")
    ids = processor.indices(batch.embodiments)
    origin = Origin(state=batch.state, mask=batch.state_mask, rows=torch.ones(16, dtype=torch.bool))
    normal = processor.normalize_actions(batch.actions, ids, origin)
    real = normal[batch.action_mask]
    assert real.abs().max() <= 1 + 1e-5  # the statistics are of what is told: nothing lies outside
    assert real.abs().max() > 0.5
    back = processor.denormalize_actions(normal, ids, origin)
    assert torch.allclose(back[batch.action_mask], batch.actions[batch.action_mask], atol=1e-5)


def test_scores_and_controls_are_in_the_numbers_that_were_recorded(arm_shards: Path) -> None:
    plain, told = (WAMProcessor.from_dataset(opened(arm_shards, actions)) for actions in ({}, {"arm": MOVES}))
    one, other = (open_windows(processor, arm_shards, "train", 4).groups[0] for processor in (plain, told))
    assert torch.equal(one.action_mean, other.action_mean)
    assert torch.equal(one.action_scale, other.action_scale)
    subject: Any = SimpleNamespace(group=other, open_environment=None, pipe=SimpleNamespace(processor=told))
    batch = opened(arm_shards, {}).batch(range(3))
    name, middle = following._still(subject)
    assert name == "zero"
    x = middle(batch)[:, :, 0] - batch.state[:, 1, None]  # the middle of what is told is near where the robot is
    assert x.abs().max() < 0.5


def test_a_saved_processor_tells_the_same(arm_shards: Path, tmp_path: Path) -> None:
    dataset = opened(arm_shards, {"arm": MOVES})
    batch = dataset.batch(range(4))
    processor = WAMProcessor.from_dataset(dataset)
    processor.save_pretrained(tmp_path)
    again = WAMProcessor.from_pretrained(tmp_path)
    origin = Origin(state=batch.state, mask=batch.state_mask, rows=torch.ones(4, dtype=torch.bool))
    ids = processor.indices(batch.embodiments)
    one, other = (p.normalize_actions(batch.actions, ids, origin) for p in (processor, again))
    assert torch.equal(one, other)
    assert not torch.equal(one, WAMProcessor.from_dataset(opened(arm_shards, {})).normalize_actions(batch.actions, ids))


def test_without_the_state_nothing_is_told(arm_shards: Path) -> None:
    dataset = opened(arm_shards, {"arm": MOVES})
    batch = dataset.batch(range(4))
    processor = WAMProcessor.from_dataset(dataset)
    ids = processor.indices(batch.embodiments)
    with pytest.raises(ConfigError, match="relative to the state, which is not given"):
        processor.denormalize_actions(batch.actions, ids)
    mask = batch.state_mask.clone()
    mask[2] = False
    origin = Origin(state=batch.state, mask=mask, rows=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ConfigError, match="not given"):
        processor.normalize_actions(batch.actions, ids, origin)
    hidden = Origin(state=batch.state, mask=mask, rows=torch.tensor([True, True, False, True]))
    assert processor.normalize_actions(batch.actions, ids, hidden).shape == batch.actions.shape


def test_recordings_without_a_state_and_bodies_that_are_not_there_are_named(tmp_path: Path, arm_shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"embodiment of data\.actions is 'leg'"):
        opened(arm_shards, {"leg": MOVES})
    folder = write_shards(tmp_path / "out", [replace(recording(f"ep{i}"), state=None) for i in range(2)])
    with pytest.raises(DataError, match="has no state"):
        opened(folder, {"arm": MOVES})
