"""The order of one dataset's windows: every window once an epoch, shuffled, a few from each decoded clip at a time."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int

from wam_video.errors import ConfigError

_CACHED_CLIPS = 4096


def keyed_rng(*key: int) -> np.random.Generator:
    """Return a generator that depends on the numbers alone (Philox, so the same on every machine)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))


class WindowOrder:
    """Draw number to (clip, window of that clip), as a pure function of (window counts, seed, draw).

    In each epoch the windows of every clip are shuffled and dealt into groups of `windows_per_decode`, and the groups of all
    clips are shuffled: neighbours in the stream share a decoded clip, and yet no window comes twice before all have come.
    Where shards are far away, only so many of them are open at a time: the shards are shuffled and dealt into sets, and the
    groups are shuffled within each set.
    """

    def __init__(
        self,
        counts: Sequence[int] | Int[np.ndarray, " n"],
        seed: int,
        windows_per_decode: int = 8,
        *,
        shards: Sequence[int] | Int[np.ndarray, " n"] | None = None,
        open_shards: int = 0,
    ) -> None:
        """Prepare the order.

        Args:
            counts: Windows of each clip.
            seed: Of the shuffles.
            windows_per_decode: Size of the groups; 1 shuffles windows freely.
            shards: Shard of each clip, from 0; needed if `open_shards` is not 0.
            open_shards: Size of the sets of shards; 0 shuffles over all of them at once.

        Raises:
            ConfigError: `windows_per_decode` is below 1, or `open_shards` is below 0.
        """
        if windows_per_decode < 1:
            raise ConfigError(f"windows_per_decode is {windows_per_decode}; it must be at least 1")
        if open_shards < 0:
            raise ConfigError(f"open_shards is {open_shards}; it must be at least 0")
        self._counts = np.asarray(counts, np.int64)
        self._seed, self._size = seed, windows_per_decode
        self._shards = None if shards is None or not open_shards else np.asarray(shards, np.int64)
        self._open = open_shards
        self._first_group = np.concatenate([[0], np.cumsum(-(-self._counts // windows_per_decode))])
        self._epoch = lru_cache(maxsize=2)(self._shuffle_groups)
        self._clip = lru_cache(maxsize=_CACHED_CLIPS)(self._shuffle_clip)

    def __len__(self) -> int:
        """Windows of an epoch."""
        return int(self._counts.sum())

    def __call__(self, draw: int) -> tuple[int, int]:
        """Return `(clip, window)` of a draw; draws beyond an epoch go on with the next."""
        epoch, place = divmod(draw, len(self))
        groups, ends = self._epoch(epoch)
        slot = int(np.searchsorted(ends, place, side="right"))
        group = int(groups[slot])
        clip = int(np.searchsorted(self._first_group, group, side="right")) - 1
        within = (group - int(self._first_group[clip])) * self._size
        within += place - (int(ends[slot - 1]) if slot else 0)
        return clip, int(self._clip(epoch, clip)[within])

    def _shuffle_groups(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the groups in their order and the draws at which each of them ends."""
        sizes = np.full(self._first_group[-1], self._size, np.int64)
        filled = self._counts > 0
        last = self._first_group[1:][filled] - 1
        sizes[last] = (self._counts[filled] - 1) % self._size + 1
        groups = keyed_rng(self._seed, 0, epoch).permutation(len(sizes))
        if self._shards is not None:
            turn = keyed_rng(self._seed, 2, epoch).permutation(int(self._shards.max()) + 1) // self._open
            shard = np.repeat(self._shards, np.diff(self._first_group))
            groups = groups[np.argsort(turn[shard[groups]], kind="stable")]
        return groups, np.cumsum(sizes[groups])

    def _shuffle_clip(self, epoch: int, clip: int) -> np.ndarray:
        return keyed_rng(self._seed, 1, epoch, clip).permutation(int(self._counts[clip]))

    def __getstate__(self) -> dict[str, object]:
        """Leave the caches behind when a worker process gets a copy."""
        return {"args": (self._counts, self._seed, self._size), "shards": self._shards, "open_shards": self._open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["args"], shards=state["shards"], open_shards=state["open_shards"])  # type: ignore[misc]
