"""Draws PushT as gym-pusht does, but from poses, at any size and anti-aliased, in some 0.1 ms a frame."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.pusht import geometry as geo
from data_pipelines.pusht.simulator import load_simulator

_WALL, _GOAL = (211, 211, 211), (144, 238, 144)
_BLOCK, _BLOCK_EDGE = (143, 163, 184), (119, 136, 153)
_PUSHER, _PUSHER_EDGE = (78, 126, 255), (65, 105, 225)
COLOURS = {"block": _BLOCK, "pusher": _PUSHER}
"""Of what moves."""
SCENERY = ((255, 255, 255), _WALL, _GOAL)
"""Of what never does: the table, its wall, the goal."""
_OVERSAMPLE = 4
_SHIFT = 6
"""Fractional bits of OpenCV's coordinates: positions below a pixel show in the image."""


def _fixed(points: Float[np.ndarray, "n 2"], scale: float) -> np.ndarray:
    return np.round((points * scale - 0.5) * (1 << _SHIFT)).astype(np.int32)


def _fill_boxes(canvas: np.ndarray, pose: Float[np.ndarray, " 3"], colour: tuple[int, int, int], grow: float) -> None:
    scale = canvas.shape[0] / geo.WORKSPACE
    for x0, y0, x1, y1 in geo.BOXES + np.array([-grow, -grow, grow, grow]):
        points = geo.to_world(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), pose)
        load_simulator().cv2.fillConvexPoly(canvas, _fixed(points, scale), colour, shift=_SHIFT)


@lru_cache(maxsize=4)
def _background(size: int) -> UInt8[np.ndarray, "h w 3"]:
    canvas = np.full((size, size, 3), 255, dtype=np.uint8)
    scale = size / geo.WORKSPACE
    wall = _fixed(np.array([[5.0, 5.0], [506.0, 5.0], [506.0, 506.0], [5.0, 506.0]]), scale)
    cv2 = load_simulator().cv2
    cv2.polylines(canvas, [wall], True, _WALL, thickness=max(1, round(4 * scale)), shift=_SHIFT)
    _fill_boxes(canvas, geo.GOAL_POSE, _GOAL, 0.0)
    return canvas


def render(pusher: Float[np.ndarray, " 2"], block: Float[np.ndarray, " 3"], size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Draw one frame.

    Args:
        pusher: Its centre, px of the workspace.
        block: Its pose.
        size: Side of the square image, px.
    """
    cv2 = load_simulator().cv2
    canvas = _background(size * _OVERSAMPLE).copy()
    scale = canvas.shape[0] / geo.WORKSPACE
    _fill_boxes(canvas, block, _BLOCK_EDGE, 2.0)
    _fill_boxes(canvas, block, _BLOCK, -2.0)
    centre = tuple(int(v) for v in _fixed(pusher[None], scale)[0])
    for radius, colour in ((geo.PUSHER_RADIUS, _PUSHER_EDGE), (geo.PUSHER_RADIUS - 4.0, _PUSHER)):
        cv2.circle(canvas, centre, round(radius * scale * (1 << _SHIFT)), colour, -1, shift=_SHIFT)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
