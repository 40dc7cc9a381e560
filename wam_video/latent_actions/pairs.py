"""Pairs of frames some time apart, out of shards, as the networks read them; and the true actions between them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from wam_video.data.manifest import Manifest, SampleEntry, ShardEntry
from wam_video.data.optical_flow import optical_flow
from wam_video.data.reader import Clip, load_clip
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.video import resize
from wam_video.errors import ConfigError, DataError, one_of
from wam_video.latent_actions.networks import LatentModelConfig
from wam_video.log import progress

_FLOW_SCALE = 0.05
"""Flow of so much of the picture's side becomes tanh(1) (Motus normalises alike)."""
_WHOLE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Body:
    """Whose video is read: one embodiment of a folder of shards, through one camera."""

    spec: EmbodimentSpec
    view: str

    @classmethod
    def of(cls, manifest: Manifest, embodiment: str = "", view: str = "") -> "Body":
        """Choose; empty names stand for the only embodiment and its first camera.

        Raises:
            ConfigError: There is no such embodiment or camera, or several and none is named.
        """
        names = sorted({sample.embodiment for shard in manifest.shards for sample in shard.samples})
        if not embodiment and len(names) != 1:
            raise ConfigError(f"the shards hold {', '.join(names) or 'nothing'}; name one with --embodiment")
        name = embodiment or names[0]
        if name not in names:
            raise ConfigError(one_of("--embodiment", name, names))
        spec = manifest.embodiments[name]
        if view and view not in spec.views:
            raise ConfigError(one_of("--view", view, spec.views))
        return cls(spec=spec, view=view or spec.views[0])

    def samples(self, manifest: Manifest, split: str) -> list[tuple[ShardEntry, SampleEntry]]:
        """Return its samples of one split, in their stored order."""
        return [pair for pair in manifest.split(split) if pair[1].embodiment == self.spec.name]

    def step(self, interval_s: float) -> int:
        """Return how many stored frames an interval is.

        Raises:
            ConfigError: It is no whole number of them.
        """
        frames = interval_s * self.spec.fps
        if round(frames) < 1 or abs(frames - round(frames)) > _WHOLE * round(frames):
            raise ConfigError(
                f"the interval is {interval_s:g} s, {frames:g} frames of {self.spec.name!r}; allowed: multiples of "
                f"{1 / self.spec.fps:g} s (or convert the recordings at another fps)"
            )
        return round(frames)


def read_clip(folder: Path, shard: ShardEntry, sample: SampleEntry, body: Body) -> Clip:
    """Decode one camera of a sample.

    Raises:
        SampleError: It can't be read, or has no such camera.
    """
    clip = load_clip(folder, shard, sample, views=[body.view])
    if body.view not in clip.video:
        raise DataError(
            f"shard {shard.name!r}, sample {sample.key!r} has no camera {body.view!r}; choose another --view"
        )
    return clip


def inputs(
    first: UInt8[np.ndarray, "n h w 3"], second: UInt8[np.ndarray, "n h w 3"], config: LatentModelConfig
) -> Float[Tensor, "n c s s"] | UInt8[Tensor, "n c s s"]:
    """Return pairs as a network keeps them: bounded flow in parts of the picture's side, or two frames (see `ready`).

    Raises:
        MissingDependencyError: OpenCV is not installed, which flow needs.
    """
    side = config.side
    if config.method != "flow":
        frames = np.concatenate([first, second])
        small = np.stack([resize(frame, side, side, "stretch") for frame in frames]) if len(frames) else frames
        one, other = np.split(small.reshape(-1, side, side, 3), 2)
        return torch.from_numpy(rearrange([one, other], "pair n h w c -> n (pair c) h w"))
    flows = [optical_flow(np.stack([a, b]))[0] for a, b in zip(first, second, strict=True)]
    if not flows:
        return torch.zeros(0, 2, side, side)
    height, width = first.shape[1:3]
    relative = torch.from_numpy(np.stack(flows)) / torch.tensor([width, height])
    bounded = torch.tanh(rearrange(relative, "n h w xy -> n xy h w") / _FLOW_SCALE)
    return torch.nn.functional.interpolate(bounded, size=(side, side), mode="area")


def ready(kept: Float[Tensor, "n c s s"] | UInt8[Tensor, "n c s s"]) -> Float[Tensor, "n c s s"]:
    """Return kept pairs as the network reads them: frames in [-1, 1], flow as it is."""
    return kept.float() / 127.5 - 1 if kept.dtype == torch.uint8 else kept


def mean_actions(
    actions: Float[np.ndarray, "ta da"], rate: float, starts_s: Float[np.ndarray, " n"], interval_s: float
) -> Float[np.ndarray, "n da"]:
    """Return the mean of the actions that start within each interval `[start, start + interval)`.

    Where actions are rarer than intervals, the one under way. Rows are NaN where an interval has no action.
    """
    found = np.full((len(starts_s), actions.shape[1]), np.nan, np.float32)
    for row, start in enumerate(starts_s):
        low = int(np.ceil(start * rate - _WHOLE))
        high = int(np.ceil((start + interval_s) * rate - _WHOLE))
        low = min(low, high - 1)
        if low >= 0 and high <= len(actions):
            found[row] = actions[low:high].mean(axis=0)
    return found


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs in memory."""

    kept: Float[Tensor, "n c s s"] | UInt8[Tensor, "n c s s"]
    """See `inputs`."""
    episodes: tuple[str, ...]
    actions: Float[Tensor, "n da"]
    """Mean true actions; NaN where they are unknown."""

    def __len__(self) -> int:
        return len(self.episodes)


def load_pairs(
    folder: Path,
    samples: Sequence[tuple[ShardEntry, SampleEntry]],
    body: Body,
    config: LatentModelConfig,
    most: int,
) -> Pairs:
    """Read at most `most` pairs, evenly over all frames of the samples at which one can begin.

    Raises:
        DataError: There are none, or a sample can't be read.
    """
    step = body.step(config.interval_s)
    counts = np.array([max(0, sample.num_frames - step) for _, sample in samples], np.int64)
    total = int(counts.sum())
    if not total:
        raise DataError(
            f"{folder} holds no two frames of {body.spec.name!r} {config.interval_s:g} s apart; choose a shorter interval"
        )
    chosen = np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(np.int64))
    kept, episodes, actions = [], [], []
    for (shard, sample), starts in progress(_picks(samples, counts, chosen), what="clips"):
        clip = read_clip(folder, shard, sample, body)
        video = clip.video[body.view]
        kept.append(inputs(video[starts], video[starts + step], config))
        episodes += [sample.episode_id] * len(starts)
        true = np.full((len(starts), body.spec.action_dim), np.nan, np.float32)
        if clip.actions is not None:
            spec = body.spec
            true = mean_actions(clip.actions, spec.action_rate, starts / spec.fps, step / spec.fps)
        actions.append(torch.from_numpy(true))
    return Pairs(kept=torch.cat(kept), episodes=tuple(episodes), actions=torch.cat(actions))


def _picks(
    samples: Sequence[tuple[ShardEntry, SampleEntry]], counts: Int[np.ndarray, " s"], chosen: Int[np.ndarray, " n"]
) -> Iterator[tuple[tuple[ShardEntry, SampleEntry], Int[np.ndarray, " k"]]]:
    """Yield each sample of which pairs were chosen, with the frames at which they begin."""
    ends = np.cumsum(counts)
    owner = np.searchsorted(ends, chosen, side="right")
    for number in np.unique(owner):
        yield samples[number], chosen[owner == number] - (ends[number] - counts[number])
