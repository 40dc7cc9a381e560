"""What is scored: films of one take, by the model, by the world, and by models that are broken on purpose."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from wam_video.data.simulation import Scene
from wam_video.data.video import encode_mp4, open_video
from wam_video.evaluation.studies.physics.colours import find

Film = UInt8[np.ndarray, "f h w 3"]

MODEL, FLOOR, FROZEN, SHUFFLED, MELTED, GLUED, AGAIN = (
    "model", "real", "frozen", "shuffled_actions", "melted", "glued", "second_take",
)  # fmt: skip
_MELT = 0.06
"""Standard deviation of the blur at the end, as a share of the picture's height."""


def coded(frames: UInt8[np.ndarray, "s h w 3"], fps: float, steps: Sequence[int]) -> Film:
    """Return real pictures as a shard stores them (H.264): what an extraction from pictures can't be better than."""
    h, w = (n + n % 2 for n in frames.shape[1:3])
    even = np.pad(frames, ((0, 0), (0, h - frames.shape[1]), (0, w - frames.shape[2]), (0, 0)), mode="edge")
    video = open_video(encode_mp4(even, fps))
    return video.get(list(steps))[:, : frames.shape[1], : frames.shape[2]]


def frozen(film: Film) -> Film:
    """Show the first picture throughout."""
    return np.broadcast_to(film[:1], film.shape)


def melted(film: Film) -> Film:
    """Blur more and more, as long predictions do that average over what could happen."""
    share = np.linspace(0, 1, len(film)) * _MELT * film.shape[1]
    return np.stack([ndimage.gaussian_filter(frame, (s, s, 0)) for frame, s in zip(film, share, strict=True)])


def glued(film: Film, scene: Scene) -> Film:
    """Move the body as it did and leave all else where it was: it passes through what it should push."""
    cover = find(film, scene)[scene.body.name].cover[..., None]
    ground, body = (np.array(colour, np.float64) for colour in (scene.scenery[0], scene.body.colour))
    around = ndimage.maximum_filter(cover[0, ..., 0], 5)[..., None] > 0
    still = np.where(around, ground, film[0])
    made = np.rint(still * (1 - cover) + body * cover).astype(np.uint8)
    return np.concatenate([film[:1], made[1:]])


def broken(film: Film, scene: Scene | None) -> Mapping[str, Film]:
    """Return the broken versions of a real film."""
    made = {FROZEN: frozen(film), MELTED: melted(film)}
    return made if scene is None else {**made, GLUED: glued(film, scene)}
