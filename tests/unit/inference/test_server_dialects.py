"""Requests of three kinds of clients become one; what is wrong with them is said in a line."""

from typing import Any

import numpy as np
import pytest

from wam_video.data.schema import EmbodimentSpec
from wam_video.errors import ConfigError, DataError
from wam_video.inference.server.dialects import (
    Answer,
    MappingConfig,
    ObservationMap,
    dialect_of,
    endpoint_of,
    flatten,
    reply,
    session_id_of,
)
from wam_video.inference.server.wire import unpack

FRAME = np.zeros((8, 10, 3), np.uint8)
DROID = ("exterior_1", "exterior_2", "wrist")


def reader(views: tuple[str, ...] = ("front",), state_dim: int = 8, **options: Any) -> ObservationMap:
    spec = EmbodimentSpec(name="arm", action_dim=8, state_dim=state_dim, views=views, fps=5, action_rate=15)
    limits = np.stack([np.full(state_dim, -1.0), np.full(state_dim, 1.0)])
    return ObservationMap(spec, views, MappingConfig(**options), limits)


def droid(first: int) -> dict[str, Any]:
    """What a DROID robot sends: its cameras numbered from 1 (openpi) or 0 (RoboArena)."""
    return {
        f"observation/exterior_image_{first}_left": FRAME + 1,
        f"observation/exterior_image_{first + 1}_left": FRAME + 2,
        "observation/wrist_image_left": FRAME + 3,
        "observation/joint_position": np.zeros(7),
        "observation/cartesian_position": np.zeros(6),
        "observation/gripper_position": np.array(0.5),
        "prompt": "fold",
    }


@pytest.mark.parametrize(("dialect", "first"), [("openpi", 1), ("roboarena", 0), ("dreamzero", 0)])
def test_cameras_are_numbered_as_the_dialect_does(dialect: str, first: int) -> None:
    asked = reader(DROID).read(droid(first), dialect)
    assert [int(view.max()) for view in asked.frames] == [1, 2, 3]
    assert asked.state is not None and asked.state.tolist() == [0] * 7 + [0.5]
    assert asked.prompt == "fold"


def test_libero_and_aloha_are_understood() -> None:
    libero = {"observation/image": FRAME, "observation/wrist_image": FRAME + 1, "observation/state": np.ones(8)}
    assert [int(v.max()) for v in reader(("agentview", "eye_in_hand")).read(libero, "openpi").frames] == [0, 1]
    aloha = {"state": np.ones(8), "images": {"cam_high": np.zeros((3, 8, 10), np.uint8), "cam_low": FRAME}}
    frames = reader(("cam_high",)).read(flatten(aloha), "openpi").frames
    assert [view.shape for view in frames] == [(1, 8, 10, 3)]


def test_several_frames_and_a_state_in_a_row_are_dreamzeros() -> None:
    request = droid(0) | {"observation/joint_position": np.zeros((1, 7))}
    for key in [key for key in request if "image" in key]:
        request[key] = np.stack([FRAME] * 4)
    asked = reader(DROID).read(request, "dreamzero")
    assert [len(view) for view in asked.frames] == [4, 4, 4]


def test_a_map_replaces_the_usual_keys_of_its_view() -> None:
    one = reader(images={"observation/image": "front", "my/cam": "front"}, state=("a", "b"))
    asked = one.read({"my/cam": FRAME + 4, "a": 0.5, "b": [0.0] * 7}, "openpi")
    assert int(asked.frames[0].max()) == 4
    assert asked.state is not None and asked.state[0] == 0.5
    with pytest.raises(DataError, match="exactly one of: my/cam, observation/image"):
        one.read({"images/front": FRAME, "a": 0.5, "b": [0.0] * 7}, "openpi")


GOOD: dict[str, Any] = {"images/front": FRAME, "state": np.zeros(8)}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"images/front": None}, "images/front is NoneType"),
        ({"images/front": FRAME.astype(float)}, "float64"),
        ({"images/front": FRAME[..., :2]}, "shape (8, 10, 2)"),
        ({"images/front": np.zeros((65, 4, 4, 3), np.uint8)}, "1 to 64 frames"),
        ({"images/front": np.zeros((0, 4, 4, 3), np.uint8)}, "1 to 64 frames"),
        ({"images/front": np.zeros((1, 4097, 3), np.uint8)}, "pixels"),
        ({"front": FRAME}, "2 times"),
        ({"state": np.zeros(7)}, "state is 7 wide"),
        ({"state": np.full(8, np.nan)}, "finite"),
        ({"state": np.full(8, 1e300)}, "finite"),
        ({"state": np.array([0, 0, 90.0, 0, 0, 0, 0, 0])}, "state number 2 is 90; the training data has -1 to 1"),
        ({"state": "text"}, "finite"),
        ({"state": [[1, 2], [3]]}, "lists of different lengths"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"images/frnt": FRAME, "stat": 1}, "Did you mean 'state'"),
        ({"executed": -1}, "executed"),
        ({"executed": np.zeros((2, 3))}, "executed is of shape (2, 3)"),
        ({"executed": [[1], [2, 3]]}, "lists of different lengths"),
        ({"committed": np.zeros(3)}, "committed is of shape (3,)"),
        ({"committed": 5000}, "from 0 to 4096"),
    ],
)
def test_a_wrong_request_is_one_line(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        reader().read(GOOD | changed, "openpi")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cameras_bring_as_many_frames_each() -> None:
    request = {"images/a": FRAME, "images/b": np.stack([FRAME] * 2), "state": np.zeros(8)}
    with pytest.raises(DataError, match="a 1, b 2"):
        reader(("a", "b")).read(request, "openpi")


def test_a_view_is_missing() -> None:
    with pytest.raises(DataError, match="view 'front' 0 times; send exactly one of: front, images/cam_high"):
        reader().read({"state": np.zeros(8)}, "openpi")


def test_what_was_carried_out_may_be_told() -> None:
    assert reader().read(GOOD | {"executed": 3}, "openpi").executed == 3
    asked = reader().read(GOOD | {"executed": np.zeros((5, 8))}, "openpi")
    assert asked.executed == 5
    assert asked.executed_actions is not None
    assert reader().read(GOOD, "openpi").executed is None
    asked = reader().read(GOOD | {"committed": np.ones((2, 8))}, "openpi")
    assert asked.committed == 2 and asked.committed_actions is not None
    assert reader().read(GOOD | {"executed": np.array(3), "committed": 1}, "openpi").committed == 1


def test_metadata_are_those_of_the_dialect() -> None:
    one = reader(DROID)
    assert set(one.metadata("roboarena", {}, (8, 10))) == {
        "image_resolution",
        "needs_wrist_camera",
        "n_external_cameras",
        "needs_stereo_camera",
        "needs_session_id",
        "action_space",
    }
    assert one.metadata("roboarena", {}, (8, 10))["n_external_cameras"] == 2
    assert one.metadata("dreamzero", {}, None)["needs_session_id"]
    assert "my/cam" in reader(images={"my/cam": "front"}).metadata("openpi", {"a": 1}, None)["images"]["front"]


def test_a_reply_has_one_array_or_is_one() -> None:
    answer = Answer(actions=np.ones((3, 8), np.float32), out_of_range=(1,))
    bare = unpack(reply("dreamzero", answer, {}))
    assert isinstance(bare, np.ndarray) and bare.shape == (3, 8)
    told = unpack(reply("roboarena", answer, {"infer_ms": 1.0}))
    assert [key for key, value in told.items() if isinstance(value, np.ndarray)] == ["actions"]
    assert told["out_of_range"] == [1]


def test_endpoints_ids_and_paths() -> None:
    assert endpoint_of({}) == "infer"
    assert session_id_of({"session_id": ["a"]}) == "a"
    assert dialect_of("/", "roboarena") == "roboarena"
    assert dialect_of("/dreamzero", "openpi") == "dreamzero"
    for wrong in (
        lambda: endpoint_of({"endpoint": "kill"}),
        lambda: endpoint_of({"endpoint": np.zeros(3)}),
        lambda: session_id_of({"session_id": "a\n"}),
        lambda: dialect_of("/x", "openpi"),
    ):
        with pytest.raises(DataError):
            wrong()


def test_a_map_names_views_that_there_are() -> None:
    with pytest.raises(ConfigError, match="allowed: front"):
        reader(images={"a": "frnt"})
    with pytest.raises(ConfigError, match="--action-space"):
        reader(action_space="joints")
