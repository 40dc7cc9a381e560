"""Long stretches of episodes for `long_rollout`: the longest held-out recordings, simulated ones, and ones where nothing happens."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange

from wam_video.data.collate import Widths, collate
from wam_video.data.loader import WindowDataset
from wam_video.data.reader import Clip
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.simulation import Environment
from wam_video.data.windows import WindowConfig, cut_window
from wam_video.evaluation.long_rollout import Fetch, Grid, Stretch
from wam_video.evaluation.metrics import MOVING_THRESHOLD
from wam_video.tensors import Batch

_RANDOM_HOLD_S = 0.5
"""Random actions change so often: seldom enough to move something."""


def recorded_stretches(dataset: WindowDataset, spec: EmbodimentSpec, grid: Grid, count: int) -> list[Stretch]:
    """Return the longest stretch of each of the episodes with the most windows, as many as asked for.

    Args:
        dataset: In stored order.
        spec: The body.
        grid: The model's.
        count: Stretches at most.
    """
    everything = range(len(dataset))
    by_episode: dict[str, list[int]] = {}
    for index, episode, body in zip(
        everything, dataset.episodes(everything), dataset.embodiment_names(everything), strict=True
    ):
        if body == spec.name:
            by_episode.setdefault(episode, []).append(index)
    longest = sorted(by_episode, key=lambda e: (-len(by_episode[e]), e))[:count]
    return [_longest(dataset, by_episode[e], e, spec, grid) for e in sorted(longest)]


def _longest(dataset: WindowDataset, indices: Sequence[int], episode: str, spec: EmbodimentSpec, grid: Grid) -> Stretch:
    """Follow the longest clip of an episode from its start, as far as every tick has a window."""
    clips: dict[str, dict[int, int]] = {}
    for index in indices:
        clip, frame = dataset.batch([index]).keys[0].rsplit("@", 1)
        clips.setdefault(clip, {})[int(frame)] = index
    frames = max(clips.values(), key=len)
    first, places, tick = min(frames), list[int](), 0
    while (frame := first + round(tick * grid.tick_s * spec.fps)) in frames:
        places.append(frames[frame])
        tick += 1
    return Stretch(episode=episode, fetch=dataset.batch, places=tuple(places))


class SimulatedClip:
    """One simulated episode as windows, like those of a recording."""

    def __init__(self, clip: Clip, spec: EmbodimentSpec, window: WindowConfig, key: str) -> None:
        self._clip, self._spec, self._window, self._key = clip, spec, window, key

    def batch(self, frames: Sequence[int]) -> Batch:
        """Return the windows whose time 0 is at these frames."""
        spec, n = self._spec, len(frames)
        windows = [cut_window(self._clip, frame, self._window, spec.views) for frame in frames]
        widths = Widths(actions=max(1, spec.action_dim), state=max(1, spec.state_dim))
        return Batch(
            **collate(windows, [self._window] * n, [spec] * n, widths),
            prompts=(self._clip.info["prompts"][0],) * n,
            embodiments=(spec.name,) * n,
            datasets=("simulated",) * n,
            keys=tuple(f"{self._key}@{frame}" for frame in frames),
            indices=torch.tensor(list(frames)),
        )


def simulated_stretches(
    open_environment: Callable[[], Environment],
    window: WindowConfig,
    grid: Grid,
    *,
    count: int,
    num_frames: int,
    seed: int,
    still: bool = False,
) -> list[Stretch]:
    """Simulate episodes of a length.

    Args:
        open_environment: Opens the simulator at the size of the model's pictures.
        window: The model's.
        grid: The model's.
        count: Episodes; they take the tasks in turn.
        num_frames: To be drawn of each, after the start.
        seed: Of the starts and of chance.
        still: Hold still; else the expert acts until it succeeds, and chance after it or where there is no expert.
    """
    world = open_environment()
    try:
        frames = round(grid.ticks(num_frames)[-1] * grid.tick_s * world.spec.fps) + 2
        return [_simulate(world, window, grid, (seed, i), frames, still=still) for i in range(count)]
    finally:
        world.close()


def _simulate(
    world: Environment, window: WindowConfig, grid: Grid, seed: tuple[int, int], frames: int, *, still: bool
) -> Stretch:
    spec, rng = world.spec, np.random.default_rng([*seed, 1])
    task = world.tasks[seed[1] % len(world.tasks)]
    world.reset(task, seed)
    expert = None if still else world.expert(rng)
    hold = max(1, round(_RANDOM_HOLD_S * spec.action_rate))
    shots, states, actions = [world.frames()], [world.state()], list[np.ndarray]()
    action = world.hold()
    while len(shots) < frames:
        step = len(actions)
        if expert is not None:
            action = expert()
        elif not still and step % hold == 0:
            action = world.random(rng)
        outcome = world.step(action)
        actions.append(action)
        shots.append(world.frames())
        states.append(world.state())
        expert = None if outcome.success else expert
        if outcome.done:
            break
    info: dict[str, Any] = {
        "num_frames": len(shots),
        "fps": spec.fps,
        "action_rate": spec.action_rate,
        "embodiment": spec.name,
        "prompts": [world.prompt],
    }
    clip = Clip(
        video={view: np.stack([shot[view] for shot in shots]) for view in spec.views},
        actions=np.stack(actions).astype(np.float32),
        state=np.stack(states).astype(np.float32),
        reward=None,
        info=info,
    )
    name = f"{task}-{seed[1]}{'-still' if still else ''}"
    places = [round(t * grid.tick_s * spec.fps) for t in range(len(shots))]
    kept = tuple(p for p in places if p < len(actions))
    return Stretch(episode=name, fetch=SimulatedClip(clip, spec, window, name).batch, places=kept)


def still_stretches(
    moments: Sequence[tuple[str, Fetch, int]], grid: Grid, *, count: int, num_frames: int
) -> list[Stretch]:
    """Return stretches made of one recorded window each in which nothing moves, again and again.

    What the body did there kept everything where it was, so doing it for longer must do so too.

    Args:
        moments: Episode, where its windows come from and the index of one; each episode gives at most one stretch.
        grid: The model's.
        count: Stretches at most.
        num_frames: To be drawn of each, after the start.
    """
    found: dict[str, Stretch] = {}
    for episode, fetch, place in moments:
        if len(found) == count:
            break
        if episode not in found and _is_still(fetch([place])):
            places = (place,) * (grid.ticks(num_frames)[-1] + 1)
            found[episode] = Stretch(episode=episode, fetch=fetch, places=places)
    return list(found.values())


def _is_still(batch: Batch) -> bool:
    video = rearrange(batch.video.float() / 255, "1 v c f h w -> f v c h w")
    whole = bool(batch.frame_mask.any(dim=1).all()) and bool(batch.action_mask.any(dim=-1).all())
    now = video[batch.num_context_frames - 1]
    return whole and float((video - now).abs().max()) <= MOVING_THRESHOLD
