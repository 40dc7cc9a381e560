"""Batches of windows from a mixture of datasets: any global sample index, in any process, gives the same window."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import parent_process
from threading import Thread
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from wam_video.data.mixture import Mixture
from wam_video.data.normalize import Stats, compute_stats, load_stats
from wam_video.data.order import WindowOrder
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.shard_set import ClipCache, ShardSet
from wam_video.data.video import DECODERS
from wam_video.data.windows import Window, WindowConfig, cut_window
from wam_video.errors import ConfigError, DataError, one_of
from wam_video.tensors import Batch


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One folder of shards in a mixture."""

    path: str = ""
    weight: float = 1.0
    """Share of the windows, relative to the other datasets' weights and whatever the sizes."""
    split: str = "train"
    drop_actions: float = 0.0
    """Share of the clips whose actions and state are hidden, as if they were plain video."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The windows of a run and where they come from."""

    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    window: WindowConfig = field(default_factory=WindowConfig)
    windows_per_decode: int = 8
    """Neighbours in the order that come from one decoded clip; 1 shuffles best, more decodes less."""
    num_workers: int = 0
    """Processes that decode; 0 decodes in the training process."""
    prefetch: int = 2
    """Batches that each worker prepares ahead."""
    cache_mb: int = 512
    """Decoded clips kept in memory, over all workers of one process."""
    decoder: str = "auto"

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise ConfigError(one_of("data.decoder", self.decoder, DECODERS))
        for what, low in (("windows_per_decode", 1), ("num_workers", 0), ("prefetch", 1), ("cache_mb", 0)):
            if getattr(self, what) < low:
                raise ConfigError(f"data.{what} is {getattr(self, what)}; it must be at least {low}")
        for name, dataset in self.datasets.items():
            if not 0 <= dataset.drop_actions <= 1:
                raise ConfigError(f"data.datasets.{name}.drop_actions is {dataset.drop_actions}; allowed: 0 to 1")


class WindowDataset:
    """The windows of a mixture of datasets, each at a fixed global index.

    Shuffled (training): index k is draw j of the dataset that the mixture names for k; indices never end, each dataset
    begins its next epoch when it is through, and one of several prompts is drawn by the index. Not shuffled (evaluation):
    the windows of all datasets in their stored order, from 0 to `len - 1`, always with the first prompt.
    """

    def __init__(self, config: DataConfig, seed: int = 0, *, shuffle: bool = True) -> None:
        """Open the datasets.

        Raises:
            DataError: No dataset, a broken one, a split or window that is not there, or embodiments that contradict each other.
        """
        if not config.datasets:
            raise DataError(
                "data.datasets is empty; name at least one folder of shards: data.datasets.NAME.path=FOLDER"
            )
        self.config, self.seed, self.shuffle = config, seed, shuffle
        self._sets = [
            ShardSet(name, dataset.path, dataset.split, config.window, dataset.drop_actions)
            for name, dataset in sorted(config.datasets.items())
        ]
        self.embodiments = _merge_embodiments(self._sets)
        for name in config.window.action_horizons:
            if name not in self.embodiments:
                raise DataError(one_of("embodiment in window.action_horizons", name, self.embodiments))
        self.fit = _merge_fit(self._sets)
        self.stats = _merge_stats(self._sets)
        self._check_sizes()
        self._width = {
            "actions": max(1, *(s.action_dim for s in self.embodiments.values())),
            "state": max(1, *(s.state_dim for s in self.embodiments.values())),
        }
        self._mixture = Mixture([config.datasets[s.name].weight for s in self._sets], seed)
        self._orders = [WindowOrder(s.counts, seed + (s.salt << 32), config.windows_per_decode) for s in self._sets]
        self._ends = np.cumsum([len(s) for s in self._sets])
        self._cache = ClipCache(config.cache_mb << 20)

    def __len__(self) -> int:
        """Windows of all datasets, each counted once."""
        return int(self._ends[-1])

    @property
    def window(self) -> WindowConfig:
        """The windows' shape, with the size of the pixels filled in."""
        height, width = self._sets[0].size
        config = self.config.window
        return config if config.height else replace(config, height=height, width=width)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the windows at these global indices; the same for ever, whatever was asked before.

        Raises:
            DataError: A sample is broken (the message names shard and key), or an index is out of range.
        """
        config, decoder = self.config.window, self.config.decoder
        places = [self._locate(int(index)) for index in indices]
        specs = [self._sets[d].spec(clip) for d, clip, _ in places]
        windows, prompts = [], []
        for index, spec, (dataset, clip, frame) in zip(indices, specs, places, strict=True):
            decoded = self._sets[dataset].load(
                clip, self._cache, decoder
            )  # one at a time: a batch of clips may not fit
            windows.append(cut_window(decoded, frame, config, spec.views))
            prompts.append(self._prompt(decoded.info.get("prompts") or [""], int(index)))
        actions, action_mask = self._pad_actions(windows)
        state, state_mask = self._pad_state(windows)
        later = self._pad_later_states(windows)
        video = rearrange(torch.from_numpy(np.stack([w.video for w in windows])), "b v f h w c -> b v c f h w")
        times = np.broadcast_to(config.frame_times().astype(np.float32), (len(windows), config.num_frames))
        return Batch(
            video=video,
            frame_mask=torch.from_numpy(np.stack([w.frame_mask for w in windows])),
            frame_times=torch.from_numpy(times.copy()),
            num_context_frames=config.num_context_frames,
            actions=torch.from_numpy(actions),
            action_mask=torch.from_numpy(action_mask),
            action_times=torch.from_numpy(
                np.stack([config.action_times(s.action_rate) for s in specs]).astype(np.float32)
            ),
            state=torch.from_numpy(state),
            state_mask=torch.from_numpy(state_mask),
            later_state=later and later[0],
            later_state_mask=later and later[1],
            prompts=tuple(prompts),
            embodiments=tuple(spec.name for spec in specs),
            datasets=tuple(self._sets[d].name for d, _, _ in places),
            keys=tuple(f"{self._sets[d].name}/{self._sets[d].key(clip)}@{frame}" for d, clip, frame in places),
            indices=torch.as_tensor(np.asarray(indices, np.int64)),
        )

    def episodes(self, indices: Sequence[int]) -> list[str]:
        """Return `<dataset>/<episode id>` of the windows at these indices."""
        places = [self._locate(int(index)) for index in indices]
        return [f"{self._sets[d].name}/{self._sets[d].episode(clip)}" for d, clip, _ in places]

    def embodiment_names(self, indices: Sequence[int]) -> list[str]:
        """Return the embodiment's name of the windows at these indices."""
        return [self._sets[d].spec(clip).name for d, clip, _ in map(self._locate, map(int, indices))]

    def held_out(self, split: str = "val") -> "WindowDataset":
        """Return another split of the same folders, in stored order; datasets without it are left out.

        Raises:
            DataError: No dataset has it.
        """
        kept, missing = {}, []
        for name, dataset in self.config.datasets.items():
            other = replace(dataset, split=split, drop_actions=0.0)
            try:
                ShardSet(name, other.path, split, self.config.window)
                kept[name] = other
            except DataError as error:
                missing.append(error)
        if not kept:
            raise missing[0]
        return WindowDataset(replace(self.config, datasets=kept), self.seed, shuffle=False)

    def spread(self, max_windows: int) -> list[int]:
        """Return indices of an unshuffled dataset, evenly over its episodes and, within each, over time.

        Raises:
            ConfigError: The dataset is shuffled, or `max_windows` is below 0.
        """
        if self.shuffle or max_windows < 0:
            raise ConfigError(f"spread({max_windows}) needs shuffle=False and a count of at least 0")
        by_episode: dict[str, list[int]] = {}
        for index, episode in enumerate(self.episodes(range(len(self)))):
            by_episode.setdefault(episode, []).append(index)
        groups = list(by_episode.values())
        if max_windows < len(groups):
            chosen = np.linspace(0, len(groups) - 1, max_windows).round().astype(int)
            return [groups[i][len(groups[i]) // 2] for i in chosen]
        taken, left = [0] * len(groups), min(max_windows, len(self))
        while left:
            open_groups = [i for i, group in enumerate(groups) if taken[i] < len(group)][:left]
            for i in open_groups:
                taken[i] += 1
            left -= len(open_groups)
        return [
            g[int(p)] for g, n in zip(groups, taken, strict=True) for p in (np.arange(n) + 0.5) * len(g) / max(n, 1)
        ]

    def share_cache(self, workers: int) -> None:
        """Give this process its part of the cache among so many workers."""
        self._cache = ClipCache((self.config.cache_mb << 20) // max(1, workers))

    def _locate(self, index: int) -> tuple[int, int, int]:
        """Return dataset, clip and anchor frame of a global index."""
        if index < 0 or (not self.shuffle and index >= len(self)):
            raise DataError(f"window index is {index}; allowed: 0 to {len(self) - 1}")
        if self.shuffle:
            dataset, draw = self._mixture(index)
            clip, window = self._orders[dataset](draw)
        else:
            dataset = int(np.searchsorted(self._ends, index, side="right"))
            within = index - (int(self._ends[dataset - 1]) if dataset else 0)
            clip, window = self._sets[dataset].place(within)
        return dataset, clip, int(self._sets[dataset].anchors(clip)[window])

    def _pad_actions(self, windows: Sequence[Window]) -> tuple[np.ndarray, np.ndarray]:
        actions = np.zeros((len(windows), self.config.window.action_horizon, self._width["actions"]), np.float32)
        mask = np.zeros(actions.shape, np.bool_)
        for row, window in enumerate(windows):
            dims = window.actions.shape[1]
            actions[row, :, :dims], mask[row, :, :dims] = window.actions, window.action_mask
        return actions, mask

    def _pad_state(self, windows: Sequence[Window]) -> tuple[np.ndarray, np.ndarray]:
        state = np.zeros((len(windows), self._width["state"]), np.float32)
        mask = np.zeros(state.shape, np.bool_)
        for row, window in enumerate(windows):
            if window.state is not None:
                state[row, : len(window.state)], mask[row, : len(window.state)] = window.state, True
        return state, mask

    def _pad_later_states(self, windows: Sequence[Window]) -> tuple[torch.Tensor, torch.Tensor] | None:
        count = self.config.window.num_states - 1
        if count == 0:
            return None
        state = np.zeros((len(windows), count, self._width["state"]), np.float32)
        mask = np.zeros(state.shape, np.bool_)
        for row, window in enumerate(windows):
            if window.later_states is not None:
                found, dims = window.later_states.shape
                state[row, :found, :dims], mask[row, :found, :dims] = window.later_states, True
        return torch.from_numpy(state), torch.from_numpy(mask)

    def _prompt(self, prompts: Sequence[str], index: int) -> str:
        if not self.shuffle or len(prompts) == 1:
            return str(prompts[0])
        key = np.array([self.seed, index], np.uint64)
        return str(prompts[int(np.random.Generator(np.random.Philox(key=key)).integers(len(prompts)))])

    def _check_sizes(self) -> None:
        sizes = {s.name: s.size for s in self._sets}
        if self.config.window.height is None and len(set(sizes.values())) > 1:
            told = ", ".join(f"{name} {height}x{width}" for name, (height, width) in sizes.items())
            raise DataError(f"datasets are stored at different sizes ({told}); set window.height and window.width")


def _merge_embodiments(sets: Sequence[ShardSet]) -> dict[str, EmbodimentSpec]:
    """Return the embodiments of all datasets; one name must mean one body."""
    merged: dict[str, EmbodimentSpec] = {}
    for shards in sets:
        for name, spec in shards.embodiments.items():
            known = merged.setdefault(name, spec)
            if replace(known, fps=spec.fps, description=spec.description) != spec:
                raise DataError(f"embodiment {name!r} differs between datasets: {known} and {spec}; rename one of them")
    return dict(sorted(merged.items()))


def _merge_fit(sets: Sequence[ShardSet]) -> dict[str, str]:
    """Return how each embodiment's recordings were brought to the stored size."""
    merged: dict[str, tuple[str, str]] = {}
    for shards in sets:
        for name in shards.embodiments:
            fit, dataset = merged.setdefault(name, (shards.fit, shards.name))
            if fit != shards.fit:
                raise DataError(
                    f"embodiment {name!r} is stored with fit {fit!r} in {dataset!r} and {shards.fit!r} in {shards.name!r}; a model "
                    "could not know how to resize its recordings: convert one of them again, or rename the embodiment"
                )
    return {name: fit for name, (fit, _) in sorted(merged.items())}


def _merge_stats(sets: Sequence[ShardSet]) -> Stats:
    """Return every embodiment's statistics; of one that several folders share, computed over all of them."""
    folders: dict[str, list[ShardSet]] = {}
    for shards in {s.path.resolve(): s for s in sets}.values():
        for name in shards.embodiments:
            folders.setdefault(name, []).append(shards)
    stored = {s.path: load_stats(s.path) for s in sets}
    shared = {name: group for name, group in folders.items() if len(group) > 1}
    merged = {name: stored[group[0].path].get(name, {}) for name, group in folders.items() if name not in shared}
    for name, group in shared.items():
        merged[name] = compute_stats([s.path for s in group], embodiments=[name])[name]
    return dict(sorted(merged.items()))


class _BatchStream(IterableDataset):
    """The batches of one rank from a sample index on; worker w of n yields every n-th of them."""

    def __init__(self, dataset: WindowDataset, batch_size: int, start_index: int, rank: int, world_size: int) -> None:
        self._dataset, self._batch_size, self._start = dataset, batch_size, start_index
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        step, number = (worker.num_workers, worker.id) if worker else (1, 0)
        if worker:
            torch.set_num_threads(1)
            self._dataset.share_cache(worker.num_workers)
            Thread(target=_exit_with_parent, daemon=True).start()
        while True:
            first = self._start + (number * self._world_size + self._rank) * self._batch_size
            yield self._dataset.batch(range(first, first + self._batch_size))
            number += step


def _exit_with_parent() -> None:
    """End this worker when the process that it works for is gone, even killed.

    torch's own watchdog looks at the parent id, which here is the fork server's, and each worker keeps that server alive.
    """
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def make_loader(
    dataset: WindowDataset,
    batch_size: int,
    start_index: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int | None = None,
) -> DataLoader:
    """Return an endless iterable of one rank's batches.

    Global batch s holds the indices `start_index + [s * n, (s + 1) * n)`, `n = batch_size * world_size`, and rank r its r-th
    run of `batch_size`: neighbours stay on one rank, which then decodes their clip once. Neither the ranks nor the workers
    change which windows a global batch holds. To resume after S steps, start at `start_index + S * n`.

    Args:
        dataset: Shuffled.
        batch_size: Windows of each batch on this rank.
        start_index: Global sample index of the first window of global batch 0.
        rank: This process.
        world_size: Processes.
        num_workers: Decoding processes; the dataset's configuration by default.

    Raises:
        ConfigError: A number is out of range.
    """
    if batch_size < 1 or start_index < 0 or not 0 <= rank < world_size:
        raise ConfigError(
            f"batch_size is {batch_size}, start_index {start_index}, rank {rank} of {world_size}; allowed: at least 1, at least 0, "
            "and a rank below the number of processes"
        )
    workers = dataset.config.num_workers if num_workers is None else num_workers
    stream = _BatchStream(dataset, batch_size, start_index, rank, world_size)
    options: dict[str, Any] = {}
    if workers:  # a plain fork would copy the locks of decoder and CUDA threads, held or not
        options = {
            "multiprocessing_context": "forkserver",
            "prefetch_factor": dataset.config.prefetch,
            "persistent_workers": True,
        }
    return DataLoader(stream, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available(), **options)


def eval_windows(dataset: WindowDataset, max_windows: int, split: str = "val", batch_size: int = 32) -> list[Batch]:
    """Return the same held-out windows at every call, evenly spread over the episodes, with the first prompt.

    Raises:
        DataError: No dataset of the mixture has that split.
    """
    if max_windows == 0:
        return []
    held_out = dataset.held_out(split)
    indices = held_out.spread(max_windows)
    return [held_out.batch(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]
