"""Recordings, made up and real, and the faults that people make, planted into them one at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wam_video.data.checks.digest import Body, Digests
from wam_video.data.reader import Clip
from wam_video.data.schema import EmbodimentSpec, Episode
from wam_video.data.sources import SkippedEpisode, open_source
from wam_video.data.video import ArrayView, resize

Episodes = list[Episode]

_SIZE, _FRAMES, _FPS = 32, 60, 5.0
_NAMES = ("dx", "dy", "dyaw", "gripper")


def made_up(count: int = 12, frames: int = _FRAMES, seed: int = 0) -> Episodes:
    """A bright block that is moved over a table by delta actions, seen by two cameras; it follows within a step."""
    spec = EmbodimentSpec(
        name="block",
        action_dim=4,
        state_dim=4,
        views=("top", "side"),
        fps=_FPS,
        action_rate=_FPS,
        action_names=_NAMES,
        action_units=("m", "m", "rad", "normalised"),
        state_names=("x", "y", "yaw", "gripper"),
    )
    return [_made_up(spec, number, frames, seed) for number in range(count)]


def _made_up(spec: EmbodimentSpec, number: int, frames: int, seed: int) -> Episode:
    rng = np.random.default_rng((seed, number))
    speed = np.repeat(rng.uniform(0, 2, (frames // 4 + 1, 1)), 4, axis=0)[: frames - 1]  # it hurries and dawdles
    heading = np.cumsum(rng.normal(0, 0.5, frames - 1)) + rng.uniform(0, 6)
    actions = np.zeros((frames - 1, 4), np.float32)
    actions[:, :2] = 0.03 * speed * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    actions[:, 2] = 0.05 * rng.normal(0, 1, frames - 1)
    closes = rng.integers(frames // 3, frames // 2)
    actions[:, 3] = np.arange(frames - 1) < closes  # 1 is open
    late = np.concatenate([actions[:1] * 0, actions[:-1]])
    state = np.zeros((frames, 4), np.float32)
    # reflected at the table's edges
    state[1:, :3] = np.cumsum(0.6 * actions[:, :3] + 0.4 * late[:, :3], axis=0)
    state[:, :2] = np.abs((state[:, :2] + rng.uniform(0.3, 0.7, 2) + 1) % 2 - 1)
    state[:, 3] = np.concatenate([[1], actions[:, 3]])
    times = np.arange(frames) / spec.fps
    views = {view: ArrayView(_pictures(state, camera, rng), times) for camera, view in enumerate(spec.views)}
    texts = ("push the block to the left", "turn the block", "bring the block to the corner")
    return Episode(
        episode_id=f"ep{number:02d}",
        embodiment=spec,
        views=views,
        actions=actions,
        state=state,
        prompts=(texts[number % 3],),
    )


def _pictures(state: np.ndarray, camera: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a lopsided table and the block on it."""
    rows, columns = np.mgrid[0:_SIZE, 0:_SIZE] / _SIZE
    shades = (rows, 1 - columns * rows, columns) if camera == 0 else (columns**2, rows * 0.3, 1 - rows)
    table = 40 + 110 * np.stack(shades, axis=-1)
    table[24:30, 2:9] = (200, 60, 30) if camera == 0 else (30, 180, 90)
    frames = np.repeat(table[None], len(state), axis=0)
    for frame, (x, y, _, opening) in zip(frames, state, strict=True):
        top, left = (
            (1 + 15 * y, 9 + 15 * x) if camera == 0 else (9 + 15 * x, 1 + 15 * y)
        )  # in one corner of the picture
        inside = (np.abs(rows * _SIZE - top - 3) < 3.5) & (np.abs(columns * _SIZE - left - 3) < 3.5)
        frame[inside] = (250, 240, 200 * opening)
    noise = rng.normal(0, 1, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def recorded(folder: Path, size: int = 64) -> Episodes:
    """The episodes of a folder of real recordings, decoded and at one size."""
    episodes = []
    for item in open_source(str(folder), "auto").episodes():
        if isinstance(item, SkippedEpisode):
            continue
        views = {
            name: ArrayView(np.stack([resize(frame, size, size, "pad") for frame in view.frames()]), view.times)
            for name, view in item.views.items()
        }
        episodes.append(replace(item, views=views))
    return episodes


def digested(episodes: Episodes) -> list[Body]:
    """Digest episodes as shards would hold them, but for the coding."""
    digests = Digests()
    for episode in episodes:
        video = {name: np.stack(list(view.frames())) for name, view in episode.views.items()}
        info = {"num_frames": len(next(iter(video.values()))), "clip_start_s": 0.0, "prompts": list(episode.prompts)}
        clip = Clip(video=video, actions=episode.actions, state=episode.state, reward=None, info=info)
        digests.add(episode.embodiment.name, episode.episode_id, clip)
    return digests.bodies({episode.embodiment.name: episode.embodiment for episode in episodes})


def late_actions(steps: int) -> Callable[[Episodes], Episodes]:
    """All actions come so many steps later than they were given; the state stays with the picture."""

    def plant(episodes: Episodes) -> Episodes:
        def shifted(actions: np.ndarray) -> np.ndarray:
            return actions[np.clip(np.arange(len(actions)) - steps, 0, len(actions) - 1)]

        return [replace(e, actions=shifted(e.actions)) for e in episodes if e.actions is not None]

    return plant


def one_view(edit: Callable[[np.ndarray], np.ndarray], number: int = 3) -> Callable[[Episodes], Episodes]:
    """Edit the frames of the first view of one episode."""

    def plant(episodes: Episodes) -> Episodes:
        planted = list(episodes)
        episode = planted[number]
        name, view = next(iter(episode.views.items()))
        frames = np.ascontiguousarray(edit(np.stack(list(view.frames()))))
        planted[number] = replace(episode, views={**episode.views, name: ArrayView(frames, view.times)})
        return planted

    return plant


def numbers(
    quantity: str, channels: Sequence[int], edit: Callable[[np.ndarray], np.ndarray], only: Sequence[int] | None = None
) -> Callable[[Episodes], Episodes]:
    """Edit channels of actions or state, in all episodes or in some."""

    def plant(episodes: Episodes) -> Episodes:
        planted = list(episodes)
        for number in range(len(episodes)) if only is None else only:
            rows = getattr(planted[number], quantity).copy()
            rows[:, list(channels)] = edit(rows[:, list(channels)])
            planted[number] = replace(planted[number], **{quantity: rows.astype(np.float32)})
        return planted

    return plant


def swapped_views(episodes: Episodes) -> Episodes:
    """The first two cameras of one episode are each other's."""
    planted = list(episodes)
    names = list(planted[3].views)
    views = dict(planted[3].views)
    views[names[0]], views[names[1]] = views[names[1]], views[names[0]]
    planted[3] = replace(planted[3], views=views)
    return planted


def repeated_episode(episodes: Episodes) -> Episodes:
    """One episode comes again under another name."""
    return [*episodes, replace(episodes[2], episode_id="again")]


def prompts(texts: tuple[str, ...]) -> Callable[[Episodes], Episodes]:
    """All episodes have these instructions."""
    return lambda episodes: [replace(e, prompts=texts) for e in episodes]


def held(frames: np.ndarray) -> np.ndarray:
    """The picture stands from a third of the episode on, for most of the rest."""
    begin, end = len(frames) // 3, len(frames) - 1
    return np.concatenate([frames[:begin], np.repeat(frames[begin : begin + 1], end - begin, axis=0), frames[end:]])


@dataclass(frozen=True)
class Fault:
    """Something that is wrong, and how it should be named."""

    name: str
    plant: Callable[[Episodes], Episodes]
    check: str
    where: str = ""
    """Part of the finding's place."""


def all_views(edit: Callable[[np.ndarray], np.ndarray]) -> Callable[[Episodes], Episodes]:
    """Edit the frames of the first view of every episode."""

    def plant(episodes: Episodes) -> Episodes:
        for number in range(len(episodes)):
            episodes = one_view(edit, number)(episodes)
        return episodes

    return plant


def clipped(episodes: Episodes) -> Episodes:
    """The first action of all episodes is cut off well within its range."""
    rows = np.concatenate([e.actions for e in episodes if e.actions is not None])[:, 0]
    low, high = np.quantile(rows, [0.2, 0.7])
    return numbers("actions", [0], lambda values: np.clip(values, low, high))(episodes)


def other_gripper(channel: int, only: Sequence[int] | None = None) -> Callable[[Episodes], Episodes]:
    """Open is closed and closed is open, in all episodes or in some."""

    def plant(episodes: Episodes) -> Episodes:
        rows = np.concatenate([e.actions for e in episodes if e.actions is not None])[:, channel]
        return numbers("actions", [channel], lambda values: rows.max() + rows.min() - values, only)(episodes)

    return plant


def every_frame_twice(frames: np.ndarray) -> np.ndarray:
    """Half the pictures, each two times."""
    return frames[np.arange(len(frames)) // 2 * 2]


def spike(values: np.ndarray) -> np.ndarray:
    """One wild value."""
    values = values.copy()
    values[len(values) // 2] = 5000
    return values


def common_faults(rotation: Sequence[int], gripper: int, odd: str, state: bool) -> list[Fault]:
    """Faults that every robot recording can have; `odd` is the name of the episode of number 3."""
    faults = [
        Fault("upside down", one_view(lambda f: f[:, ::-1]), "view-flipped", odd),
        Fault("turned", one_view(lambda f: f[:, ::-1, ::-1]), "view-flipped", odd),
        Fault("dead camera", one_view(lambda f: np.full_like(f, 7)), "dead-camera", odd),
        Fault("frozen frames", one_view(held), "frozen-frames", odd),
        Fault("mirrored", one_view(lambda f: f[:, :, ::-1]), "view-flipped", odd),
        Fault("blue for red", one_view(lambda f: f[..., ::-1]), "colours-swapped", odd),
        Fault("frames twice", all_views(every_frame_twice), "repeated-frames"),
        Fault("swapped gripper", other_gripper(gripper, [3]), "gripper-sign", odd),
        Fault("millimetres", numbers("actions", [0, 1], lambda x: 1000 * x, [3]), "units", odd),
        Fault("degrees in one", numbers("actions", rotation, np.rad2deg, [3]), "units", odd),
        Fault("radians for degrees", numbers("actions", rotation, np.deg2rad, [3]), "units", odd),
        Fault("repeated episode", repeated_episode, "duplicate-episodes", "again"),
        Fault("clipped", clipped, "saturated-channel"),
        Fault("a spike", numbers("actions", [1], spike, [3]), "outliers"),
        Fault("placeholder", prompts(("task_0",)), "text-placeholder"),
    ]
    if state:
        faults += [
            Fault("degrees in all", numbers("actions", rotation, np.rad2deg), "units"),
            Fault("swapped gripper in all", other_gripper(gripper), "gripper-sign"),
            Fault("swapped views", swapped_views, "views-swapped", odd),
        ]
    return faults
