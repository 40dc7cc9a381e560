"""A robot's file: what each field does to numbers, names and views, and what is refused rather than guessed."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wam_video.data.body import ChannelConfig, body_from_dict, body_to_dict, load_body, with_body
from wam_video.data.rotations import convert_rotation
from wam_video.data.schema import EmbodimentSpec, Episode
from wam_video.data.video import ArrayView
from wam_video.errors import ConfigError, DataError

BODIES = sorted(Path(__file__).parents[3].glob("data_pipelines/embodiments/*.yaml"))
NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "grip")

ARM = """
name: arm
description: an arm
views: {front: cam_0, wrist: cam_1}
fps: 5
actions:
  - {name: z, take: [dz], unit: m, recorded_unit: mm, kind: delta, frame: base}
  - {name: x, take: ["0"], unit: m, recorded_unit: mm, kind: delta, frame: base}
  - {name: turn, take: [droll, dpitch, dyaw], recorded_rotation: euler_xyz, recorded_unit: deg, rotation: rot6d, kind: delta}
  - {name: gripper, take: [grip], gripper: {open: 0.0, closed: 0.04}, kind: absolute}
state:
  - {name: height, take: ["2"], recorded_scale: 50}
"""


def recording(**changes: object) -> Episode:
    spec = EmbodimentSpec(
        name="raw",
        action_dim=7,
        state_dim=3,
        views=("cam_1", "cam_0", "cam_2"),
        fps=5,
        action_rate=5,
        action_names=NAMES,
        **changes,  # type: ignore[arg-type]
    )
    rng = np.random.default_rng(0)
    actions = rng.normal(0, 30, (9, 7)).astype(np.float32)
    actions[:, 6] = [0, 0, 0.01, 0.02, 0.03, 0.04, 0.04, 0.04, 0]
    views = {view: ArrayView(np.zeros((10, 8, 8, 3), np.uint8), np.arange(10) / 5) for view in spec.views}
    state = rng.normal(0, 1, (10, 3)).astype(np.float32)
    return Episode(episode_id="e", embodiment=spec, views=views, actions=actions, state=state)


def body(tmp_path: Path, text: str = ARM):
    path = tmp_path / "arm.yaml"
    path.write_text(text)
    return load_body(path)


def test_units_order_rotations_gripper_scale_and_views(tmp_path: Path) -> None:
    raw = recording()
    arm = body(tmp_path)
    done = with_body(raw, arm)
    spec = done.embodiment
    turn = [f"turn_{i}" for i in range(6)]
    assert spec.action_names == ("z", "x", *turn, "gripper")
    assert spec.action_units == ("m", "m", *["normalised"] * 6, "open")
    assert spec.action_kinds == (*["delta"] * 8, "absolute")
    assert spec.action_frames[:2] == ("base", "base")
    assert spec.action_rotations == ("", "", *["rot6d"] * 6, "")
    assert (spec.name, spec.views, list(done.views)) == ("arm", ("front", "wrist"), ["front", "wrist"])
    assert done.views["front"] is raw.views["cam_0"]
    assert done.actions is not None
    assert raw.actions is not None
    assert np.allclose(done.actions[:, 0], raw.actions[:, 2] / 1000, rtol=1e-6)
    assert np.allclose(done.actions[:, 1], raw.actions[:, 0] / 1000, rtol=1e-6)
    angles = np.deg2rad(raw.actions[:, 3:6].astype(np.float64))
    # the second column of Rz Ry Rx by hand
    roll, pitch, yaw = angles.T
    assert np.allclose(done.actions[:, 2], np.cos(pitch) * np.cos(yaw), atol=1e-6)
    assert np.allclose(done.actions[:, 7], np.sin(roll) * np.cos(pitch), atol=1e-6)
    assert np.allclose(done.actions[:, 8], [1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 1], atol=1e-6)
    assert done.state is not None
    assert raw.state is not None
    assert np.allclose(done.state[:, 0], raw.state[:, 2] / 50, rtol=1e-6)
    assert done.actions.dtype == np.float32
    assert "channels_left_out:actions:1" in done.notes
    assert "channels_left_out:state:2" in done.notes
    assert body_from_dict(body_to_dict(arm)) == arm  # a task on another machine gets it as JSON


def test_rotations_come_back_from_what_is_stored(tmp_path: Path) -> None:
    import torch

    raw = recording()
    assert raw.actions is not None
    raw = replace(raw, actions=np.clip(raw.actions, -80, 80))
    done = with_body(raw, body(tmp_path))
    assert done.actions is not None
    back = convert_rotation(torch.from_numpy(done.actions[:, 2:8]).double(), "rot6d", "euler_xyz").numpy()
    assert np.allclose(np.rad2deg(back), raw.actions[:, 3:6], atol=1e-3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fps: 5", "fps: 10", "has fps 10, the recording 5"),
        ("front: cam_0", "front: cam_7", "cam_7.*allowed: cam_0, cam_1, cam_2"),
        ("take: [dz]", "take: [dw]", "channel 'z'.*'dw'"),
        ('take: ["0"]', 'take: ["7"]', "0 to 6"),
        ("recorded_unit: mm", "recorded_unit: deg", "can't become m"),
        ("recorded_unit: deg, rotation", "rotation", "say which with recorded_unit: rad or deg"),
        ("recorded_rotation: euler_xyz", "recorded_rotation: quat_xyzw", "takes 3 numbers; allowed: 4"),
        ("recorded_rotation: euler_xyz, ", "", "no recorded_rotation"),
        ("closed: 0.04", "closed: 0.0", "two different ends"),
        ("kind: delta, frame", "kind: relative, frame", "kind is 'relative'; allowed: absolute, delta"),
        ("name: x", "name: z", "'z' twice"),
        ("unit: m,", "units: m,", "unit"),
        ("{front: cam_0, wrist: cam_1}", "[cam_0]", "views is a list; it must be a mapping"),
        ("closed: 0.04", "closed: .inf", "must be finite"),
        ("0.04}, kind: absolute", "0.04}, kind: delta", "which a delta has not"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in ARM
    with pytest.raises(ConfigError, match=message):
        with_body(recording(), body(tmp_path, ARM.replace(old, new, 1)))


def test_a_unit_that_the_source_denies_is_refused(tmp_path: Path) -> None:
    said = recording(action_units=("m", "m", "m", "rad", "rad", "rad", "normalised"))
    with pytest.raises(ConfigError, match="recorded_unit 'mm', the source says 'm'"):
        with_body(said, body(tmp_path))


def test_a_unit_of_one_angle_that_the_source_denies_is_refused(tmp_path: Path) -> None:
    said = recording(action_units=("mm", "m", "mm", "deg", "rad", "deg", "unknown"))
    with pytest.raises(ConfigError, match="recorded_unit 'deg', the source says 'rad'"):
        with_body(said, body(tmp_path))


def test_rows_of_another_width_are_the_recordings_fault_alone(tmp_path: Path) -> None:
    raw = recording()
    with pytest.raises(DataError, match=r"actions has shape \(9, 5\); expected 7"):
        with_body(replace(raw, actions=raw.actions[:, :5]), body(tmp_path))  # type: ignore[index]


def test_what_the_source_says_need_not_be_said_again(tmp_path: Path) -> None:
    said = recording(action_units=("mm", "m", "m", "deg", "deg", "deg", "normalised"))
    text = "{name: arm, actions: [{name: x, take: [dx], unit: m}, {name: t, take: [droll, dpitch, dyaw], "
    done = with_body(said, body(tmp_path, text + "recorded_rotation: euler_xyz}]}"))
    assert done.actions is not None
    assert said.actions is not None
    assert np.allclose(done.actions[:, 0], said.actions[:, 0] / 1000)
    assert np.allclose(done.actions[:, 1:], said.actions[:, 3:6] * math.pi / 180, rtol=1e-5)
    assert done.embodiment.action_units == ("m", "rad", "rad", "rad")


def test_a_scale_says_what_normalised_numbers_are(tmp_path: Path) -> None:
    said = recording(action_units=("normalised",) * 7)
    text = "{name: arm, actions: [{name: x, take: [dx], unit: mm, recorded_unit: m, recorded_scale: -50, kind: delta}]}"
    done = with_body(said, body(tmp_path, text))
    assert done.actions is not None
    assert said.actions is not None
    assert np.allclose(done.actions[:, 0], said.actions[:, 0] / -50 * 1000, rtol=1e-5)
    assert done.embodiment.action_units == ("mm",)


def test_recordings_without_actions_are_only_renamed(tmp_path: Path) -> None:
    film = replace(recording(), actions=None, state=None)
    done = with_body(film, body(tmp_path))
    assert done.actions is None
    assert done.embodiment == with_body(recording(), body(tmp_path)).embodiment  # one body with those that have some


@pytest.mark.parametrize("path", BODIES, ids=lambda path: path.stem)
def test_every_robot_of_ours_can_be_read(path: Path) -> None:
    assert load_body(path).name
    assert path.read_text().startswith("# ")


def test_a_channel_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="no name"):
        ChannelConfig(take=["0"])
