"""What a picture says of a task, and how actions move a body: small regressions on watched episodes, no network.

How far a task has come is read by kernel ridge regression (Saunders et al. 1998) off pictures averaged over a coarse grid, one
fit a task. Kernel, features and strength are chosen by cross-validation over episodes, and so is the progress from which an
episode counts as a success: all choices are made on episodes that the fit in question did not see.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float32

from wam_video.errors import DataError
from wam_video.evaluation.moments import Frames
from wam_video.evaluation.witness import Track

GRID = 16
"""Cells along each side of a picture."""
_FOLDS = 5
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
_MAX_PICTURES = 1000
"""Of a task, evenly thinned: the fit solves a system of as many equations."""


def features(first: Frames, frames: Sequence[Frames]) -> Float[np.ndarray, "n d"]:
    """Return the coarse pictures and how they differ from the episode's first, all views, in [-1, 1]."""
    now = _coarse(frames)
    return np.concatenate([now, now - _coarse([first])], axis=1)


def _coarse(frames: Sequence[Frames]) -> Float[np.ndarray, "n d"]:
    views = [np.stack([frame[view] for frame in frames]) for view in frames[0]]
    pooled = []
    for pictures in views:
        x = rearrange(torch.from_numpy(pictures).double() / 255, "n h w c -> n c h w")
        pooled.append(rearrange(torch.nn.functional.adaptive_avg_pool2d(x, GRID), "n c h w -> n (c h w)").numpy())
    return np.concatenate(pooled, axis=1)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """How alike two pictures are."""

    kind: str
    """`linear` or `rbf`."""
    changes: bool
    """Whether the difference from the episode's first picture counts too."""

    def __call__(self, a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"], scale: float) -> np.ndarray:
        """Return the kernel between rows of features; `scale` is `self.scale` of the fit's pictures."""
        a, b = self._part(a), self._part(b)
        products = a @ b.T
        if self.kind == "linear":
            return products / scale
        distances = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * products
        return np.exp(-np.maximum(distances, 0.0) / scale)

    def scale(self, x: Float[np.ndarray, "n d"]) -> float:
        """Return the mean squared length of a picture's features, or the mean squared distance of two."""
        x = self._part(x)
        if self.kind == "linear":
            return float((x**2).sum(1).mean()) or 1.0
        return float(2 * ((x - x.mean(0)) ** 2).sum(1).mean()) or 1.0

    def _part(self, x: np.ndarray) -> np.ndarray:
        return x if self.changes else x[:, : x.shape[1] // 2]


KERNELS = tuple(Kernel(kind=kind, changes=changes) for kind in ("linear", "rbf") for changes in (False, True))


@dataclass(frozen=True, kw_only=True)
class TaskFit:
    """The regression of one task."""

    kernel: Kernel
    strength: float
    x: Float[np.ndarray, "n d"]
    scale: float
    weights: Float[np.ndarray, " n"]
    mean: float
    threshold: float | None
    """Progress that counts as success; None: the episodes held no success, or nothing else."""
    facts: Mapping[str, Any]

    def __call__(self, x: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        """Return the progress in pictures."""
        return self.kernel(x, self.x, self.scale) @ self.weights + self.mean


class PictureJudge:
    """Reads progress and success off pictures (`imagined_world.Judge`).

    Args:
        tracks: Watched episodes of all tasks; the judge knows nothing else.

    Raises:
        DataError: A task has fewer than two episodes.
    """

    def __init__(self, tracks: Sequence[Track]) -> None:
        tasks = list(dict.fromkeys(track.task for track in tracks))
        self.fits = {task: _fit_task(task, [t for t in tracks if t.task == task]) for task in tasks}

    def progress(self, task: str, first: Frames, frames: Sequence[Frames]) -> list[float]:
        """Return how far the task has come in each picture."""
        return [float(p) for p in self.fits[task](features(first, frames))]

    def success(self, task: str, progress: float) -> bool:
        """Return whether that is far enough; never where success can't be told from pictures."""
        threshold = self.fits[task].threshold
        return threshold is not None and progress >= threshold

    @property
    def judged(self) -> tuple[str, ...]:
        """Tasks in which success can be told."""
        return tuple(task for task, fit in self.fits.items() if fit.threshold is not None)

    def watch(self, track: Track) -> tuple[bool, float]:
        """Return what the judge makes of a watched episode: success, and the farthest it came."""
        # as in an imagined world, and in what was learned from: the start shows nothing that was done
        later = [track.pictures[step] for step in sorted(track.pictures)[1:]]
        best = max(self.progress(track.task, track.pictures[0], later))
        return self.success(track.task, best), min(1.0, max(0.0, best))


def _fit_task(task: str, tracks: Sequence[Track]) -> TaskFit:
    if len(tracks) < 2:
        raise DataError(f"task {task!r} has {len(tracks)} episodes to learn to judge from; give 2 or more")
    x, y, episode = _pictures(tracks)
    fold = _folds(tracks)[episode]
    best: tuple[float, Kernel, float, np.ndarray] | None = None
    for kernel in KERNELS:
        for strength, unseen in _cross_validate(kernel, x, y, fold).items():
            error = float(np.mean((unseen - y) ** 2))
            if best is None or error < best[0]:
                best = (error, kernel, strength, unseen)
    if best is None:
        raise DataError(f"task {task!r}: no progress could be fitted; give more episodes")
    _, kernel, strength, unseen = best
    ends = np.array([unseen[episode == e].max() for e in range(len(tracks))])
    won = np.array([track.succeeded for track in tracks])
    threshold = choose_threshold(ends, won)
    facts = {
        "episodes": len(tracks),
        "successes": int(won.sum()),
        "pictures": len(y),
        "kernel": kernel.kind,
        "reads_changes": kernel.changes,
        "strength": strength,
        "threshold": None if threshold is None else round(threshold, 6),
        "progress_mae": round(float(np.abs(unseen - y).mean()), 6),
        "progress_mae_of_the_mean": round(float(np.abs(y - y.mean()).mean()), 6),
        "success_agreement": None if threshold is None else round(float(((ends >= threshold) == won).mean()), 6),
    }
    scale = kernel.scale(x)
    weights = _solve(kernel(x, x, scale), y - y.mean(), strength)
    return TaskFit(
        kernel=kernel, strength=strength, x=x, scale=scale, weights=weights, mean=float(y.mean()), threshold=threshold, facts=facts
    )  # fmt: skip


def _folds(tracks: Sequence[Track]) -> np.ndarray:
    """Deal the episodes out, those that succeeded first: each fold gets its share of them. No more folds than episodes."""
    order = sorted(range(len(tracks)), key=lambda i: (not tracks[i].succeeded, i))
    fold = np.empty(len(tracks), int)
    fold[order] = np.arange(len(tracks)) % min(_FOLDS, len(tracks))
    return fold


def _pictures(tracks: Sequence[Track]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, progress and episode of pictures; starts are left out, as nothing is known of their progress."""
    every = -(-sum(len(track.pictures) - 1 for track in tracks) // _MAX_PICTURES)
    parts = []
    for e, track in enumerate(tracks):
        steps = sorted(track.pictures)[1:]
        steps = steps[::-1][:: max(every, 1)][::-1]  # the last one always: it shows the success
        if steps:
            y = np.array([track.progress(step) for step in steps])
            parts.append((features(track.pictures[0], [track.pictures[s] for s in steps]), y, np.full(len(steps), e)))
    x, y, episode = (np.concatenate(column) for column in zip(*parts, strict=True))
    return x, y, episode


def _solve(kernel: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    return np.linalg.solve(kernel + strength * len(y) * np.eye(len(y)), y)


def _cross_validate(kernel: Kernel, x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> dict[float, np.ndarray]:
    """Return for each strength the progress of every picture by a fit that saw nothing of its fold."""
    unseen = {strength: np.empty(len(y)) for strength in _STRENGTHS}
    for f in np.unique(fold):
        rest, held = fold != f, fold == f
        scale, mean = kernel.scale(x[rest]), y[rest].mean()
        inner, outer = kernel(x[rest], x[rest], scale), kernel(x[held], x[rest], scale)
        for strength in _STRENGTHS:
            unseen[strength][held] = outer @ _solve(inner, y[rest] - mean, strength) + mean
    return unseen


def choose_threshold(ends: Float[np.ndarray, " e"], won: Bool[np.ndarray, " e"]) -> float | None:
    """Return the progress that tells successes best: the highest mean of the shares of successes and of failures told right.

    Args:
        ends: The farthest that the judge saw each episode come.
        won: Whether it succeeded.

    Returns:
        Of several equally good ones the middle of the widest gap; None where all episodes ended alike.
    """
    if won.all() or not won.any():
        return None
    edges = np.unique(ends)
    if len(edges) < 2:
        return None
    middles, gaps = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    scores = [((ends[won] >= t).mean() + (ends[~won] < t).mean()) for t in middles]
    best = max(range(len(middles)), key=lambda i: (round(scores[i], 9), gaps[i]))
    return float(middles[best])


class LinearMotion:
    """A linear model of the body (`imagined_world.Motion`): the next state from the last two and the action.

    Args:
        tracks: Watched episodes.
    """

    def __init__(self, tracks: Sequence[Track]) -> None:
        rows = [(row, after - before) for t in tracks for row, before, after in _transitions(t)]
        x, y = (np.stack(column) for column in zip(*rows, strict=True))
        self.mean, self.spread = x.mean(0), x.std(0) + 1e-9
        z = np.c_[(x - self.mean) / self.spread, np.ones(len(x))]
        self.weights = np.linalg.solve(z.T @ z + 1e-6 * len(z) * np.eye(z.shape[1]), z.T @ y)
        states = np.concatenate([np.stack(track.states) for track in tracks])
        self.low, self.high, self.scale = states.min(0), states.max(0), states.std(0)

    def __call__(
        self, states: Sequence[Float32[np.ndarray, " ds"]], action: Float32[np.ndarray, " da"]
    ) -> Float32[np.ndarray, " ds"]:
        """Return the state after an action, within the range of what was seen."""
        z = (_row(states[-1], states[max(len(states) - 2, 0)], action) - self.mean) / self.spread
        return np.clip(states[-1] + np.append(z, 1.0) @ self.weights, self.low, self.high).astype(np.float32)

    def error(self, tracks: Sequence[Track]) -> list[float]:
        """Return how far the state is off where only an episode's start and actions are known.

        Root mean square over all steps of whole episodes, in standard deviations, dimension by dimension.
        """
        wrong = []
        for track in tracks:
            states = [track.states[0]]
            for action in track.actions:
                states.append(self(states, action))
            wrong.append((np.stack(states) - np.stack(track.states)) ** 2)
        return [float(x) for x in np.sqrt(np.concatenate(wrong).mean(0)) / np.maximum(self.scale, 1e-9)]


def _row(state: np.ndarray, before: np.ndarray, action: np.ndarray) -> np.ndarray:
    return np.concatenate([state, state - before, action]).astype(np.float64)


def _transitions(track: Track) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return [
        (_row(track.states[i], track.states[max(i - 1, 0)], action), track.states[i], track.states[i + 1])
        for i, action in enumerate(track.actions)
    ]
