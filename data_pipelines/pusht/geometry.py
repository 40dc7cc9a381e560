"""The T of PushT in its own frame, and paths round it for the pusher.

A pose is `(x, y, angle)`: where the block's origin (the middle of the bar's outer edge) lies in the workspace, and how it
is turned. The block's frame has the bar at `x in [-60, 60], y in [0, 30]` and the stem below it, all in pixels of the
512 x 512 workspace.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

WORKSPACE = 512.0
"""Side of the workspace, px."""
PUSHER_RADIUS = 15.0
GOAL_POSE = np.array([256.0, 256.0, np.pi / 4])
CENTRE_OF_GRAVITY = np.array([0.0, 45.0])
"""Of the block, in its own frame; setting an angle turns the block about it."""

CENTRE_OF_AREA = np.array([0.0, (120 * 30 * 15.0 + 30 * 90 * 75.0) / (120 * 30 + 30 * 90)])
"""Of what is drawn, in the block's frame."""

BOXES = np.array([[-60.0, 0.0, 60.0, 30.0], [-15.0, 30.0, 15.0, 120.0]])
"""Bar and stem: x0, y0, x1, y1."""
OUTLINE = np.array(
    [[-60, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30]], dtype=np.float64
)
_OUTWARD = np.array([[-1, -1], [1, -1], [1, 1], [0, 0], [1, 1], [-1, 1], [0, 0], [-1, 1]])
"""Diagonal away from the T at each corner of the outline; zero at the two inner corners."""

PUSHER_BOUNDS = (18.0, WORKSPACE - 18.0)
"""Where the pusher's centre may be sent: it is kinematic, so the walls would not stop it."""
CLEARANCE = PUSHER_RADIUS + 12.0
"""Distance of a detour from the block's surface, px: the pusher cuts corners by some 5 px."""


def rotation(angle: float) -> Float[np.ndarray, "2 2"]:
    """Return the matrix that turns a column vector by `angle` radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


def to_world(points: Float[np.ndarray, "n 2"], pose: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "n 2"]:
    """Map points of the block's frame into the workspace."""
    return points @ rotation(pose[2]).T + pose[:2]


def to_block(points: Float[np.ndarray, "n 2"], pose: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "n 2"]:
    """Map points of the workspace into the block's frame."""
    return (points - pose[:2]) @ rotation(pose[2])


def surface_distance(points: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n"]:
    """Return the distance of points of the block's frame to the T, px; negative inside."""
    x, y = points[..., 0:1], points[..., 1:2]
    outside_x = np.maximum(BOXES[:, 0] - x, x - BOXES[:, 2])
    outside_y = np.maximum(BOXES[:, 1] - y, y - BOXES[:, 3])
    outside = np.hypot(np.maximum(outside_x, 0), np.maximum(outside_y, 0))
    return (outside + np.minimum(np.maximum(outside_x, outside_y), 0)).min(-1)


def in_bounds(points: Float[np.ndarray, "*n 2"]) -> Bool[np.ndarray, "*n"]:
    """Say which points of the workspace the pusher's centre may be sent to."""
    return np.asarray(((points >= PUSHER_BOUNDS[0]) & (points <= PUSHER_BOUNDS[1])).all(axis=-1))


def _lengths(starts: Float[np.ndarray, "n 2"], ends: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "n m"]:
    """Return the lengths of the straight lines that keep clear of the T (block's frame), inf for the others.

    A line that starts nearer (the pusher still touches the block) must gain distance at 0.6 px a px.
    """
    share = np.linspace(0, 1, 33)
    length = np.linalg.norm(starts[:, None] - ends[None], axis=-1)
    lines = starts[:, None, None] * (1 - share[:, None]) + ends[None, :, None] * share[:, None]
    leaving = surface_distance(starts)[:, None, None] - 0.5 + 0.6 * length[..., None] * share
    clear = (surface_distance(lines) >= np.minimum(CLEARANCE - 3.0, leaving)).all(-1)
    return np.where(clear, length, np.inf)


def _hubs() -> Float[np.ndarray, "h 2"]:
    """Return three way points round each convex corner of the T, `CLEARANCE` away."""
    points = []
    for corner, outward in zip(OUTLINE, _OUTWARD, strict=True):
        if outward.any():
            directions = np.array([outward * [1, 0], outward / np.sqrt(2), outward * [0, 1]])
            points.extend(corner + CLEARANCE * directions)
    return np.array(points)


class Detours:
    """Shortest paths of the pusher round the T to fixed targets in the block's frame (a visibility graph).

    Args:
        targets: Points of the block's frame, each at least `CLEARANCE` - 3 px from the T.
    """

    def __init__(self, targets: Float[np.ndarray, "k 2"]) -> None:
        self.hubs = _hubs()
        self.targets = targets
        self._hub_hub = _lengths(self.hubs, self.hubs)
        self._hub_target = _lengths(self.hubs, targets)

    def from_point(
        self, start: Float[np.ndarray, " 2"], pose: Float[np.ndarray, " 3"]
    ) -> tuple[Float[np.ndarray, " k"], list[list[int]], Int[np.ndarray, " k"]]:
        """Find the way from `start` (workspace) to every target.

        Returns:
            lengths [k] in px (inf where there is none), for every hub the chain of hubs that reaches it, and the last hub
            before each target [k] (-1: straight there).
        """
        local = to_block(start[None], pose)
        allowed = in_bounds(to_world(self.hubs, pose))
        direct = _lengths(local, self.targets)[0]
        reach = np.where(allowed, _lengths(local, self.hubs)[0], np.inf)
        chains: list[list[int]] = [[hub] for hub in range(len(self.hubs))]
        todo = list(range(len(self.hubs)))
        while todo:  # Dijkstra over some twenty hubs
            nearest = min(todo, key=lambda hub: reach[hub])
            todo.remove(nearest)
            if not np.isfinite(reach[nearest]):
                break
            through = np.where(allowed, reach[nearest] + self._hub_hub[nearest], np.inf)
            for hub in np.flatnonzero(through < reach - 1e-9):
                reach[hub] = through[hub]
                chains[hub] = [*chains[nearest], int(hub)]
        via = reach[:, None] + self._hub_target
        last = via.argmin(0)
        detour = via.min(0)
        return np.minimum(direct, detour), chains, np.where(direct <= detour, -1, last)
