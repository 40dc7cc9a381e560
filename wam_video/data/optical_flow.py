"""Optical flow between the frames of a video: where the picture moves to, in pixels. The one module of the library with OpenCV.

Farneback's method (SCIA 2003) as OpenCV has it: it needs no weights, works at any size (its faster sibling DIS refuses very
small pictures), finds motions of a tenth of the picture, and gives the same bits every time. scikit-image's two methods
are slower by one to two orders, and nothing else of the library needs that package.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8

from wam_video.errors import MissingDependencyError

_PYRAMID, _LEVELS, _WINDOW, _ITERATIONS, _NEIGHBOURS, _SIGMA = 0.5, 3, 15, 3, 5, 1.2


def load_opencv() -> Any:
    """Import OpenCV.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError("opencv-python-headless", "metrics", "optical flow") from error
    return cv2


def optical_flow(video: UInt8[np.ndarray, "f h w 3"]) -> Float[np.ndarray, "g h w 2"]:
    """Return the flow from each frame to the next (g = f - 1): for each pixel how far it moves to the right and down, in pixels.

    Raises:
        MissingDependencyError: OpenCV is not installed.
    """
    cv2 = load_opencv()
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in video]
    flows = [
        cv2.calcOpticalFlowFarneback(
            first, second, None, _PYRAMID, _LEVELS, _WINDOW, _ITERATIONS, _NEIGHBOURS, _SIGMA, 0
        )
        for first, second in pairwise(grey)
    ]
    return np.stack(flows) if flows else np.zeros((0, *video.shape[1:3], 2), np.float32)


def endpoint_error(
    video: UInt8[np.ndarray, "f h w 3"], flow: Float[np.ndarray, "g h w 2"]
) -> Float[np.ndarray, "g h w"]:
    """Return how far the video's flow ends from a given one, pixel by pixel (EPE; Baker et al. 2011), in pixels.

    Raises:
        MissingDependencyError: OpenCV is not installed.
    """
    difference = optical_flow(video).astype(np.float64) - flow
    return np.sqrt(rearrange(difference**2, "g h w xy -> xy g h w").sum(axis=0))
