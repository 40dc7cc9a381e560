"""Films of a closed loop: what happened beside what the model expected, and how far the two agree."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from wam_video.evaluation.rollout import Episode

FILM_FPS = 10.0
"""At most; faster worlds are thinned."""
_BAR, _GAP = 6, 8
_SEEN, _EXPECTED, _GROUND = (150, 150, 150), (230, 120, 20), (128, 128, 128)
_MOVED = 0.05
"""A pixel moved if it changed by more than this share of the range."""


def film(episode: Episode, action_rate: float) -> tuple[UInt8[np.ndarray, "f h w 3"], float]:
    """Put the world beside the model's expectation of it, step by step.

    The right picture is what was seen when the last decision was made (grey bar) until the first expected one is due, and
    from then on the newest expected one (orange bar), up to the moment of the next decision.

    Returns:
        The frames and their rate.
    """
    every = max(1, round(action_rate / FILM_FPS))
    frames = []
    for step in range(0, len(episode.film), every):
        asked = max((s for s in episode.asked if s < step), default=0)
        due = [s for s in episode.imagined if asked < s <= step]
        right = episode.imagined[max(due)] if due else episode.seen[asked]
        frames.append(_beside(episode.film[step], right, _EXPECTED if due else _SEEN))
    return np.stack(frames), action_rate / every


def _beside(left: np.ndarray, right: np.ndarray, bar: tuple[int, int, int]) -> np.ndarray:
    h, w, _ = left.shape
    big = np.asarray(Image.fromarray(right).resize((w, h), Image.Resampling.NEAREST))
    page = np.full((h + _BAR, 2 * w + _GAP, 3), _GROUND, np.uint8)
    page[:h, :w], page[:h, w + _GAP :] = left, big
    page[h:, :w], page[h:, w + _GAP :] = _SEEN, bar
    return page[: page.shape[0] // 2 * 2, : page.shape[1] // 2 * 2]


def imagination(episodes: Sequence[Episode], pace: int) -> dict[str, Any] | None:
    """Score the expected pictures against what then happened, on the pixels that moved since the decision.

    Args:
        episodes: Filmed ones.
        pace: Steps from one decision to the next: later pictures belong to actions that were not carried out.

    Returns:
        dB of the expected pictures and of the last seen one shown again, or None if nothing can be compared.
    """
    wrong = np.zeros(2)
    pixels = pictures = 0
    for episode in episodes:
        for step, expected in episode.imagined.items():
            asked = max((s for s in episode.asked if s < step), default=None)
            if asked is None or step - asked > pace or step >= len(episode.seen):
                continue
            real, before = episode.seen[step] / 255.0, episode.seen[asked] / 255.0
            moved = np.abs(real - before).max(-1) > _MOVED
            pictures += 1
            pixels += int(moved.sum())
            wrong += [((real - other)[moved] ** 2).mean(-1).sum() for other in (expected / 255.0, before)]
    if not pixels:
        return None
    psnr = -10 * np.log10(np.maximum(wrong / pixels, 1e-10))
    return {
        "pictures": pictures,
        "psnr_moving": round(float(psnr[0]), 4),
        "psnr_moving_still": round(float(psnr[1]), 4),
        "episodes": len(episodes),
    }
