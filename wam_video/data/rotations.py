"""Rotations from one representation to another, by way of the matrix.

Vectors are columns: `R @ v` turns v. `euler_xyz` are angles about the fixed axes x, then y, then z (roll, pitch, yaw; R = Rz Ry Rx),
`axis_angle` is the axis times the angle in radians, `quat_xyzw` and `quat_wxyz` are unit quaternions, and `rot6d` is the first
two columns of the matrix, one after the other (Zhou et al., 2019). Angles are in radians.
"""

from collections.abc import Callable, Mapping

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from wam_video.errors import ConfigError, one_of

WIDTHS: Mapping[str, int] = {"euler_xyz": 3, "axis_angle": 3, "quat_xyzw": 4, "quat_wxyz": 4, "rot6d": 6, "matrix": 9}
"""Numbers of each representation; `matrix` is row by row."""
_TINY = 1e-8


def convert_rotation(x: Float[Tensor, "*b d"], source: str, target: str) -> Float[Tensor, "*b e"]:
    """Return rotations in another representation.

    What is no rotation becomes the nearest in its representation's own sense: quaternions are brought to length 1, the columns of
    `rot6d` are made orthogonal, the first leading. Of the two quaternions of a rotation, that with w >= 0 is given.

    Args:
        x: Rotations as `source`.
        source: A key of `WIDTHS`.
        target: A key of `WIDTHS`.

    Raises:
        ConfigError: An unknown representation, or `x` is not as wide as `source`.
    """
    for what in (source, target):
        if what not in WIDTHS:
            raise ConfigError(one_of("rotation", what, WIDTHS))
    if x.shape[-1] != WIDTHS[source]:
        raise ConfigError(f"rotation as {source} has {x.shape[-1]} numbers; allowed: {WIDTHS[source]}")
    return x if source == target else _FROM_MATRIX[target](_TO_MATRIX[source](x))


def to_matrix(x: Float[Tensor, "*b d"], source: str) -> Float[Tensor, "*b 3 3"]:
    """Return rotation matrices; see `convert_rotation`."""
    return rearrange(convert_rotation(x, source, "matrix"), "... (i j) -> ... i j", i=3)


def from_matrix(matrix: Float[Tensor, "*b 3 3"], target: str) -> Float[Tensor, "*b d"]:
    """Return rotation matrices in another representation; see `convert_rotation`."""
    return convert_rotation(rearrange(matrix, "... i j -> ... (i j)"), "matrix", target)


def _from_rows(x: Tensor) -> Tensor:
    return rearrange(x, "... (i j) -> ... i j", i=3)


def _from_euler(x: Tensor) -> Tensor:
    (cx, cy, cz), (sx, sy, sz) = x.cos().unbind(-1), x.sin().unbind(-1)
    rows = [
        [cy * cz, sx * sy * cz - cx * sz, cx * sy * cz + sx * sz],
        [cy * sz, sx * sy * sz + cx * cz, cx * sy * sz - sx * cz],
        [-sy, sx * cy, cx * cy],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _from_axis_angle(x: Tensor) -> Tensor:
    angle = x.norm(dim=-1, keepdim=True)
    half = angle / 2
    # sin(a / 2) / a, by its series where the angle is small
    scale = torch.where(angle > 1e-4, half.sin() / angle.clamp_min(1e-4), 0.5 - angle**2 / 48)
    return _from_quat_wxyz(torch.cat([half.cos(), x * scale], -1))


def _from_quat_xyzw(x: Tensor) -> Tensor:
    return _from_quat_wxyz(x.roll(1, -1))


def _from_quat_wxyz(x: Tensor) -> Tensor:
    w, a, b, c = (x / x.norm(dim=-1, keepdim=True).clamp_min(_TINY)).unbind(-1)
    rows = [
        [1 - 2 * (b * b + c * c), 2 * (a * b - w * c), 2 * (a * c + w * b)],
        [2 * (a * b + w * c), 1 - 2 * (a * a + c * c), 2 * (b * c - w * a)],
        [2 * (a * c - w * b), 2 * (b * c + w * a), 1 - 2 * (a * a + b * b)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _from_rot6d(x: Tensor) -> Tensor:
    first, second = x[..., :3], x[..., 3:]
    e1 = first / first.norm(dim=-1, keepdim=True).clamp_min(_TINY)
    rest = second - (e1 * second).sum(-1, keepdim=True) * e1
    e2 = rest / rest.norm(dim=-1, keepdim=True).clamp_min(_TINY)
    return torch.stack([e1, e2, torch.linalg.cross(e1, e2)], -1)


def _to_rows(matrix: Tensor) -> Tensor:
    return rearrange(matrix, "... i j -> ... (i j)")


def _to_euler(matrix: Tensor) -> Tensor:
    """Return angles with pitch in [-90, 90] degrees; where it is at an end, roll is 0 and yaw takes all."""
    pitch = torch.asin((-matrix[..., 2, 0]).clamp(-1, 1))
    upright = matrix[..., 2, 0].abs() < 1 - 1e-7
    roll = torch.atan2(matrix[..., 2, 1], matrix[..., 2, 2])
    yaw = torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])
    locked = torch.atan2(-matrix[..., 0, 1], matrix[..., 1, 1])
    return torch.stack([torch.where(upright, roll, 0.0), pitch, torch.where(upright, yaw, locked)], -1)


def _to_axis_angle(matrix: Tensor) -> Tensor:
    w, vector = (quat := _to_quat_wxyz(matrix))[..., :1], quat[..., 1:]
    size = vector.norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(size, w)
    return vector * torch.where(size > 1e-6, angle / size.clamp_min(1e-6), 2.0)


def _to_quat_xyzw(matrix: Tensor) -> Tensor:
    return _to_quat_wxyz(matrix).roll(-1, -1)


def _to_quat_wxyz(matrix: Tensor) -> Tensor:
    """Return the quaternion, from the largest of its four squares, which is never small (Shepperd, 1978)."""
    m = matrix
    x, y, z = (m[..., i, i] for i in range(3))
    squares = torch.stack([1 + x + y + z, 1 + x - y - z, 1 - x + y - z, 1 - x - y + z], -1)
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    d, e, f = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    w2, x2, y2, z2 = squares.unbind(-1)
    rows = [[w2, a, b, c], [a, x2, d, e], [b, d, y2, f], [c, e, f, z2]]
    products = torch.stack([torch.stack(row, -1) for row in rows], -2)
    best = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    quat = products.gather(-2, best)[..., 0, :]
    quat = quat / quat.norm(dim=-1, keepdim=True)
    return torch.where(quat[..., :1] < 0, -quat, quat)


def _to_rot6d(matrix: Tensor) -> Tensor:
    return torch.cat([matrix[..., 0], matrix[..., 1]], -1)


_TO_MATRIX: Mapping[str, Callable[[Tensor], Tensor]] = {
    "euler_xyz": _from_euler,
    "axis_angle": _from_axis_angle,
    "quat_xyzw": _from_quat_xyzw,
    "quat_wxyz": _from_quat_wxyz,
    "rot6d": _from_rot6d,
    "matrix": _from_rows,
}
_FROM_MATRIX: Mapping[str, Callable[[Tensor], Tensor]] = {
    "euler_xyz": _to_euler,
    "axis_angle": _to_axis_angle,
    "quat_xyzw": _to_quat_xyzw,
    "quat_wxyz": _to_quat_wxyz,
    "rot6d": _to_rot6d,
    "matrix": _to_rows,
}
