"""Where a flat thing would be if nothing stood on it: its first silhouette, moved and turned onto what is seen of it."""

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from wam_video.evaluation.studies.physics.colours import Track

_ROUNDS = 8
_TURNS = (-0.5, 0.0, 0.5)
"""Starts of the search beside the last angle, radians."""
_PROBE = np.array([0.3, 0.3, 0.03])
"""Steps for the slopes: px, px, radians. Pictures are rough below."""
_STRIDE = np.array([2.0, 2.0, 0.3])
"""Longest step of a round."""
_NEAR = 5
"""Side of the square by which the body is widened to tell whether it is at the thing, px; what lies under it is not compared."""


def buried(body: Track, thing: Track, real: Track) -> Float[np.ndarray, " f"]:
    """Return px of the body that lie inside the thing, picture by picture.

    Args:
        body: In a film.
        thing: In the same film.
        real: The thing in the real film, whose first picture shows it whole.
    """
    template, result = real.cover[0], np.zeros(len(body.area))
    centre = real.centre[0][::-1]
    angle = 0.0
    for i in range(1, len(result)):
        cover = body.cover[i]
        around = ndimage.maximum_filter(cover, _NEAR) > 0
        if not (around & (thing.cover[i] > 0)).any():
            continue
        pose = _fit(template, centre, thing.cover[i], around, np.array([*thing.centre[i][::-1], angle]))
        angle = pose[2]
        result[i] = np.maximum(cover + place(template, centre, pose) - 1, 0.0).sum()
    return result


def place(
    template: Float[np.ndarray, "h w"], centre: Float[np.ndarray, " 2"], pose: Float[np.ndarray, " 3"]
) -> Float[np.ndarray, "h w"]:
    """Return a silhouette moved so that `centre` comes to (y, x) of the pose, and turned by its angle about that point."""
    sine, cosine = np.sin(pose[2]), np.cos(pose[2])
    back = np.array([[cosine, -sine], [sine, cosine]])
    return ndimage.affine_transform(template, back, offset=(centre - back @ pose[:2]).tolist(), order=1)


def _fit(
    template: np.ndarray, centre: np.ndarray, seen: np.ndarray, hidden: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Return the pose at which the silhouette differs least from what is seen (Gauss-Newton from several angles)."""
    best, least = start, np.inf
    for turn in _TURNS:
        pose = start + np.array([0.0, 0.0, turn])
        for _ in range(_ROUNDS):
            off = (place(template, centre, pose) - seen)[~hidden]
            loss = float(off @ off)
            if loss < least:
                best, least = pose, loss
            slopes = [(place(template, centre, pose + h) - seen)[~hidden] - off for h in np.diag(_PROBE)]
            step = np.linalg.lstsq(np.stack(slopes, -1), -off, rcond=None)[0] * _PROBE
            pose = pose + np.clip(step, -_STRIDE, _STRIDE)
            if (np.abs(step) < 0.1 * _PROBE).all():
                break
    return best
