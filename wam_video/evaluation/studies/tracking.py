"""Where a video shows body and things, beside where the simulator has them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wam_video.data.simulation import Scene
from wam_video.evaluation.studies.physics.colours import find


def place_sums(
    film: UInt8[np.ndarray, "f h w 3"], steps: Sequence[int], now: Scene, scenes: Mapping[int, Scene | None]
) -> Float[Tensor, "2 2"]:
    """Return the added distances of the body and of the things from where they are, and how many were added.

    Distances are in shares of the picture's longer side. A thing that is not seen counts at the place where it was last seen.

    Args:
        film: The real picture of now, and then the video.
        steps: Of its pictures after the first.
        now: What there is to be found.
        scenes: Where it is, by step; steps that it lacks don't count.
    """
    sums = torch.zeros(2, 2, dtype=torch.float64)
    tracks = find(film, now)
    size = np.array([film.shape[2], film.shape[1]], np.float64)
    for row, step in enumerate(steps, 1):
        scene = scenes.get(step)
        if scene is None:
            continue
        for kind, things in enumerate(((scene.body,), scene.things)):
            for thing in things:
                away = tracks[thing.name].centre[row] - np.array(thing.place) * size
                if np.isfinite(away).all():
                    sums[kind] += torch.tensor([float(np.linalg.norm(away)) / size.max(), 1.0])
    return sums
