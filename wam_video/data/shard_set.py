"""One split of one folder of shards, opened for reading: its windows counted, its clips decoded through a cache."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from wam_video.data.manifest import SampleEntry, load_manifest, verify_manifest
from wam_video.data.reader import Clip, load_clip
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.video import resize
from wam_video.data.windows import WindowConfig, anchors
from wam_video.errors import DataError, one_of


class ClipCache:
    """The most recently used decoded clips, as many as fit."""

    def __init__(self, max_bytes: int) -> None:
        """Hold at most `max_bytes`, but always the last clip, since its windows come together."""
        self._max, self._used = max_bytes, 0
        self._clips: OrderedDict[Hashable, Clip] = OrderedDict()

    def __reduce__(self) -> tuple[type["ClipCache"], tuple[int]]:
        """Leave the clips behind when a worker process gets a copy."""
        return ClipCache, (self._max,)

    def get(self, key: Hashable, load: Callable[[], Clip]) -> Clip:
        """Return the clip of that key, decoding it if it is not held."""
        if key in self._clips:
            self._clips.move_to_end(key)
            return self._clips[key]
        clip = load()
        self._clips[key] = clip
        self._used += clip.nbytes
        while self._used > self._max and len(self._clips) > 1:
            self._used -= self._clips.popitem(last=False)[1].nbytes
        return clip


class ShardSet:
    """The samples of one split and the windows that each of them holds."""

    def __init__(self, name: str, path: str, split: str, window: WindowConfig, drop_actions: float = 0.0) -> None:
        """Read the manifest and check it against the files' sizes.

        Args:
            name: What the configuration calls the dataset.
            path: Folder of shards.
            split: `train` or `val`.
            window: What windows look like.
            drop_actions: Share of the clips, by a hash of their keys, whose actions and state are hidden.

        Raises:
            DataError: The folder is no dataset, a shard is missing or cut short, or the split holds no window.
        """
        self.name, self.path, self.split, self._window = name, Path(path), split, window
        manifest = load_manifest(path)
        verify_manifest(path, manifest, hashes=False)
        self.embodiments = dict(manifest.embodiments)
        self.fit = str(manifest.options.get("fit", "pad"))
        self.size: tuple[int, int] = (int(manifest.options.get("height", 0)), int(manifest.options.get("width", 0)))
        if split not in manifest.splits:
            held = manifest.splits
            what = (
                one_of(f"dataset {name!r} ({path}): split", split, held)
                if held
                else f"dataset {name!r} ({path}) is empty"
            )
            raise DataError(f"{what} Convert it again, with other options if need be")
        self._samples = manifest.split(split)
        for _, sample in self._samples:
            if sample.embodiment not in self.embodiments:
                raise DataError(
                    one_of(f"dataset {name!r}: embodiment of {sample.key!r}", sample.embodiment, self.embodiments)
                )
        for spec in self.embodiments.values():
            window.check_rate(spec)
        self._hidden = np.array([_hash01(sample.key) < drop_actions for _, sample in self._samples])
        self.counts = np.array([len(self.anchors(i)) for i in range(len(self._samples))], np.int64)
        self._ends = np.cumsum(self.counts)
        if not self.counts.sum():
            raise DataError(
                f"dataset {name!r} ({path}), split {split!r}, holds no window: its {len(self._samples)} clips are too short "
                f"for future_stride_s {window.future_stride_s}; choose a shorter one"
            )

    def __len__(self) -> int:
        """Windows in all."""
        return int(self.counts.sum())

    @property
    def salt(self) -> int:
        """A number that differs between datasets of one run, for their orders."""
        return int.from_bytes(hashlib.sha256(f"{self.name}/{self.split}".encode()).digest()[:4], "big")

    def anchors(self, clip: int) -> Int[np.ndarray, " n"]:
        """Return the stored frames of a clip at which its windows have their time 0."""
        _, sample = self._samples[clip]
        num_actions = 0 if self._hidden[clip] else sample.num_actions
        return anchors(sample.num_frames, num_actions, self.embodiments[sample.embodiment], self._window)

    def place(self, index: int) -> tuple[int, int]:
        """Return (clip, window of that clip) of an index in stored order."""
        clip = int(np.searchsorted(self._ends, index, side="right"))
        return clip, index - (int(self._ends[clip - 1]) if clip else 0)

    def key(self, clip: int) -> str:
        """Return the sample's key."""
        return self._samples[clip][1].key

    def episode(self, clip: int) -> str:
        """Return the episode that a clip is cut from."""
        return self._samples[clip][1].episode_id

    def spec(self, clip: int) -> EmbodimentSpec:
        """Return the embodiment of a clip."""
        return self.embodiments[self._samples[clip][1].embodiment]

    def load(self, clip: int, cache: ClipCache, decoder: str) -> Clip:
        """Return a decoded clip at the window's size, from the cache where it is held.

        Raises:
            DataError: The sample is broken; the message names shard and key.
        """
        return cache.get((self.name, self.split, clip), lambda: self._decode(clip, decoder))

    def _decode(self, clip: int, decoder: str) -> Clip:
        shard, sample = self._samples[clip]
        views = self.embodiments[sample.embodiment].views[: self._window.max_views]
        decoded = load_clip(self.path, shard, sample, views=views, decoder=decoder)
        self._check(shard.name, sample, decoded)
        if self._hidden[clip]:
            decoded = replace(decoded, actions=None, state=None, reward=None)
        height, width = self._window.height or self.size[0], self._window.width or self.size[1]
        video = {
            view: frames
            if frames.shape[1:3] == (height, width)
            else np.stack([resize(frame, height, width, self.fit) for frame in frames])
            for view, frames in decoded.video.items()
        }
        return replace(decoded, video=video)

    def _check(self, shard: str, sample: SampleEntry, clip: Clip) -> None:
        """Refuse a sample that contradicts the manifest, from which its windows were counted."""
        at, spec = f"shard {str(self.path / shard)!r}, sample {sample.key!r}", self.embodiments[sample.embodiment]
        if not clip.video:
            wanted = ", ".join(spec.views[: self._window.max_views])
            raise DataError(f"{at}: it has none of the views {wanted}; raise window.max_views")
        for name, found, stated in (
            ("num_frames", clip.info.get("num_frames"), sample.num_frames),
            ("num_actions", clip.info.get("num_actions"), sample.num_actions),
            ("embodiment", clip.info.get("embodiment"), spec.name),
            ("fps", clip.info.get("fps"), spec.fps),
            ("action_rate", clip.info.get("action_rate"), spec.action_rate),
            ("width of actions", spec.action_dim if clip.actions is None else clip.actions.shape[1], spec.action_dim),
            ("width of state", spec.state_dim if clip.state is None else clip.state.shape[1], spec.state_dim),
        ):
            if found != stated:
                raise DataError(f"{at}: {name} is {found!r}, the manifest says {stated!r}; convert the dataset again")


def _hash01(key: str) -> float:
    return int.from_bytes(hashlib.sha256(f"drop:{key}".encode()).digest()[:8], "big") / 2**64
