"""Shards in which a square moves by whole pixels a frame, and the actions say by how many."""

from pathlib import Path

import numpy as np

from wam_video.data.encode import WriterConfig
from wam_video.data.schema import EmbodimentSpec, Episode
from wam_video.data.video import ArrayView
from wam_video.data.writer import ShardWriter

SIDE = 32
SPEC = EmbodimentSpec(
    name="square",
    action_dim=2,
    state_dim=2,
    views=("top",),
    fps=10.0,
    action_rate=10.0,
    action_names=("right", "down"),
    state_names=("x", "y"),
)


def episode(number: int, frames: int = 24, speed: int = 2) -> Episode:
    """Return a recording: every four frames the square chooses another velocity, and turns at the border."""
    rng = np.random.default_rng(number)
    place, velocity = rng.integers(8, SIDE - 14, 2), np.zeros(2, np.int64)
    places, moves = [place], []
    for step in range(frames - 1):
        if step % 4 == 0:
            velocity = rng.integers(-speed, speed + 1, 2)
        velocity = np.where((place + velocity < 2) | (place + velocity > SIDE - 10), -velocity, velocity)
        place = place + velocity
        places.append(place)
        moves.append(velocity)
    video = np.full((frames, SIDE, SIDE, 3), 40, np.uint8)
    for frame, (x, y) in zip(video, places, strict=True):
        frame[y : y + 8, x : x + 8] = (230, 200, 90)
        frame[y + 2 : y + 5, x + 2 : x + 5] = (90, 30, 200)
    return Episode(
        episode_id=f"square-{number:03d}",
        embodiment=SPEC,
        views={"top": ArrayView(video, np.arange(frames) / SPEC.fps)},
        actions=np.asarray(moves, np.float32),
        state=np.asarray(places, np.float32),
        prompts=("move",),
    )


def write(folder: Path, episodes: int = 10, frames: int = 24, shard_bytes: int = 1 << 28) -> Path:
    """Write shards and return their folder."""
    config = WriterConfig(dataset="square", height=SIDE, width=SIDE, val_fraction=0.3, shard_bytes=shard_bytes)
    with ShardWriter(folder, config) as writer:
        for number in range(episodes):
            writer.write(episode(number, frames))
    return folder
