"""Rotations: closed forms, round trips between all representations, and scipy's numbers."""

import math
from itertools import product

import pytest
import torch
from scipy.spatial.transform import Rotation

from wam_video.data.rotations import WIDTHS, convert_rotation, from_matrix, to_matrix
from wam_video.errors import ConfigError

QUARTER = math.pi / 2
ABOUT_Z = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)


def some(count: int = 200) -> Rotation:
    return Rotation.random(count, random_state=0)


def as_scipy(name: str, rotation: Rotation) -> torch.Tensor:
    matrix = rotation.as_matrix()
    found = {
        "euler_xyz": lambda: rotation.as_euler("xyz"),
        "axis_angle": rotation.as_rotvec,
        "quat_xyzw": lambda: rotation.as_quat(canonical=True),
        "quat_wxyz": lambda: rotation.as_quat(canonical=True)[:, [3, 0, 1, 2]],
        "rot6d": lambda: matrix[:, :, :2].transpose(0, 2, 1).reshape(-1, 6),
        "matrix": lambda: matrix.reshape(-1, 9),
    }
    return torch.from_numpy(found[name]().copy())


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("euler_xyz", [0, 0, QUARTER]),
        ("axis_angle", [0, 0, QUARTER]),
        ("quat_xyzw", [0, 0, math.sqrt(0.5), math.sqrt(0.5)]),
        ("quat_wxyz", [math.sqrt(0.5), 0, 0, math.sqrt(0.5)]),
        ("rot6d", [0, 1, 0, -1, 0, 0]),
        ("matrix", [0, -1, 0, 1, 0, 0, 0, 0, 1]),
    ],
)
def test_a_quarter_turn_about_z(name: str, numbers: list[float]) -> None:
    x = torch.tensor(numbers, dtype=torch.float64)
    assert torch.allclose(to_matrix(x, name), ABOUT_Z, atol=1e-12)
    assert torch.allclose(from_matrix(ABOUT_Z, name), x, atol=1e-12)


@pytest.mark.parametrize(("source", "target"), product(WIDTHS, WIDTHS))
def test_every_representation_becomes_every_other_as_in_scipy_and_comes_back(source: str, target: str) -> None:
    x, y = as_scipy(source, some()), as_scipy(target, some())
    there = convert_rotation(x, source, target)
    assert torch.allclose(there, y, atol=1e-7)
    assert torch.allclose(convert_rotation(there, target, source), x, atol=1e-7)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-5, 3e-4, math.pi - 1e-6, math.pi])
def test_angles_at_the_ends_keep_their_digits(angle: float) -> None:
    x = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64) * angle
    back = convert_rotation(convert_rotation(x, "axis_angle", "matrix"), "matrix", "axis_angle")
    assert torch.allclose(back, x, atol=1e-9) or torch.allclose(-back, x, atol=1e-9)  # half a turn has two axes
    assert torch.isfinite(convert_rotation(x.float(), "axis_angle", "rot6d")).all()


def test_where_yaw_and_roll_are_one_the_rotation_is_kept() -> None:
    x = torch.tensor([[0.3, QUARTER, 0.5], [0.3, -QUARTER, 0.5]], dtype=torch.float64)
    back = convert_rotation(convert_rotation(x, "euler_xyz", "matrix"), "matrix", "euler_xyz")
    assert torch.equal(back[:, 0], torch.zeros(2, dtype=torch.float64))
    assert torch.allclose(to_matrix(back, "euler_xyz"), to_matrix(x, "euler_xyz"), atol=1e-7)


def test_what_is_no_rotation_becomes_one() -> None:
    noisy = as_scipy("rot6d", some(5)) * 1.3 + 0.05
    matrix = to_matrix(noisy, "rot6d")
    eye = torch.eye(3, dtype=torch.float64).expand(5, 3, 3)
    assert torch.allclose(matrix @ matrix.transpose(-1, -2), eye, atol=1e-12)
    assert torch.allclose(torch.linalg.det(matrix), torch.ones(5, dtype=torch.float64))
    assert torch.allclose(convert_rotation(torch.tensor([0.0, 0, 0, 4]), "quat_xyzw", "axis_angle"), torch.zeros(3))


def test_unknown_names_and_widths_are_told() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'rot6d'"):
        convert_rotation(torch.zeros(6), "rot6", "matrix")
    with pytest.raises(ConfigError, match="has 3 numbers; allowed: 4"):
        convert_rotation(torch.zeros(2, 3), "quat_xyzw", "matrix")
