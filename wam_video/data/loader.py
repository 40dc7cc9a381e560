"""Batches of windows from a mixture of datasets: any global sample index, in any process, gives the same window."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import UInt16

from wam_video.data.collate import Widths, collate
from wam_video.data.latents import from_bits
from wam_video.data.merge import check_sizes, merge_embodiments, merge_fit, merge_stats, told_stats
from wam_video.data.mixture import BucketMixture
from wam_video.data.order import WindowOrder, keyed_rng
from wam_video.data.reader import SampleError, because
from wam_video.data.settings import DataConfig, DatasetConfig, buckets
from wam_video.data.shard_set import ClipCache, ShardSet
from wam_video.data.stream import BatchLoader, BatchStream, SkipLog
from wam_video.data.windows import Window, WindowConfig, cut_window
from wam_video.errors import ConfigError, DataError, one_of
from wam_video.log import get_logger
from wam_video.tensors import Batch, SkippedClip

_LOG = get_logger(__name__)

_TRIES = 10
"""Clips that are tried for one window; so many bad ones in a row mean that something larger is wrong."""

Place = tuple[int, int, int]
"""Dataset, clip and anchor frame."""

Stored = UInt16[np.ndarray, "v c t h w"] | None
"""Latents of a window, or features of its frames."""


class WindowDataset:
    """The windows of a mixture of datasets, each at a fixed global index.

    Shuffled (training): index k is draw j of the dataset that the mixture names for k; indices never end, each dataset
    begins its next epoch when it is through, and one of several prompts is drawn by the index. A window whose clip can't be
    used is replaced by another of the same dataset, drawn by the index too. Not shuffled (evaluation): the windows of all
    datasets in their stored order, from 0 to `len - 1`, always with the first prompt, and a bad clip is an error.
    """

    def __init__(self, config: DataConfig, seed: int = 0, *, shuffle: bool = True, with_teacher: bool = False) -> None:
        """Open the datasets; `with_teacher`: read the stored features of a teacher, where there are some.

        Raises:
            DataError: No dataset, a broken one, a split or window that is not there, or embodiments that contradict each other.
        """
        if not config.datasets:
            raise DataError(
                "data.datasets is empty; name at least one folder of shards: data.datasets.NAME.path=FOLDER"
            )
        self.config, self.seed, self.shuffle = config, seed, shuffle
        self._with_teacher = with_teacher
        names = sorted(config.datasets)
        # What is broken in a large video then shows in the windows that need it, which only a shuffled order can replace.
        self._sets = [_open(config, name, config.datasets[name], lazy=shuffle) for name in names]
        self.embodiments = merge_embodiments(self._sets)
        for window in [config.window, *(s.window for s in self._sets)]:
            for name in window.action_horizons:
                if name not in self.embodiments:
                    raise DataError(one_of("embodiment in window.action_horizons", name, self.embodiments))
        self.fit = merge_fit(self._sets)
        seen = [s for s in self._sets if config.datasets[s.name].split == "train"]
        self.stats = told_stats(merge_stats(self._sets), seen, config.actions, self.embodiments)
        check_sizes([s for s in self._sets if config.window_of(s.name).height is None])
        self._widths = Widths(
            actions=max(1, *(s.action_dim for s in self.embodiments.values())),
            state=max(1, *(s.state_dim for s in self.embodiments.values())),
        )
        self._buckets = buckets(
            [s.window for s in self._sets],
            [f"{s.encoding.codec} {self._teacher(s)}" if s.encoding else "" for s in self._sets],
        )
        weights = [config.datasets[s.name].weight for s in self._sets]
        self._mixture = BucketMixture(weights, self._buckets, config.windows_per_bucket, seed)
        self._orders = [
            WindowOrder(
                s.counts,
                seed + (s.salt << 32),
                config.windows_per_decode,
                shards=s.shards,
                open_shards=config.open_shards,
            )
            for s in self._sets
        ]
        self._ends = np.cumsum([len(s) for s in self._sets])
        self._cache = ClipCache(config.cache_mb << 20)

    def __len__(self) -> int:
        """Windows of all datasets, each counted once."""
        return int(self._ends[-1])

    @property
    def window(self) -> WindowConfig:
        """The windows' shape, with the size of the pixels filled in."""
        stored = next((s for s in self._sets if not self.config.datasets[s.name].window), self._sets[0])
        height, width = stored.size
        config = self.config.window
        return config if config.height else replace(config, height=height, width=width)

    @property
    def clips(self) -> dict[str, int]:
        """Clips of each dataset."""
        return {s.name: s.num_clips for s in self._sets}

    @property
    def num_buckets(self) -> int:
        """Different geometries of windows; a batch holds one."""
        return len(set(self._buckets))

    def bucket(self, index: int) -> int:
        """Return which geometry the window at a global index has."""
        return self._buckets[self._locate(index)[0]]

    def is_readable(self, index: int) -> bool:
        """Say whether the clip of a window can be used; one that can't is named in the log."""
        dataset, clip, _ = self._locate(index)
        try:
            self._sets[dataset].load(clip, self._cache, self.config.decoder)
        except SampleError as error:
            _LOG.warning("left out of the held-out windows (%s): %s", error.reason, error)
            return False
        return True

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the windows at these global indices; the same for ever, whatever was asked before.

        Raises:
            DataError: An index is out of range; not shuffled, a sample is broken (the message names shard and key); shuffled, ten
                in a row are.
            ConfigError: The windows are of different geometries.
        """
        skipped: list[tuple[str, str, str, str, bool]] = []
        places, windows, prompts, latents, features = [], [], [], [], []
        pixels: np.ndarray | None = None
        for index in map(int, indices):
            row = None if pixels is None else pixels[len(windows)]
            # one at a time: a batch of clips may not fit
            place, texts, window, (stored, taught) = self._draw(index, skipped, row)
            if not windows:  # the others are written where they end up
                pixels = np.empty((len(indices), *window.video.shape), np.uint8)
                pixels[0] = window.video
            windows.append(window)
            latents.append(stored)
            features.append(taught)
            prompts.append(self._prompt(texts, index))
            places.append(place)
        if len({self._buckets[dataset] for dataset, _, _ in places}) > 1:
            raise ConfigError(
                f"windows {indices} are of different geometries; batches must divide data.windows_per_bucket "
                f"({self.config.windows_per_bucket}) and start at a multiple of their size"
            )
        specs = [self._sets[dataset].spec(clip) for dataset, clip, _ in places]
        encoding = self._sets[places[0][0]].encoding
        configs = [self._sets[dataset].window for dataset, _, _ in places]
        return Batch(
            **collate(windows, configs, specs, self._widths, pixels),
            prompts=tuple(prompts),
            embodiments=tuple(spec.name for spec in specs),
            datasets=tuple(self._sets[d].name for d, _, _ in places),
            keys=tuple(f"{self._sets[d].name}/{self._sets[d].key(clip)}@{frame}" for d, clip, frame in places),
            indices=torch.as_tensor(np.asarray(indices, np.int64)),
            skipped=_merge_skips(skipped),
            latents=from_bits(np.stack(latents)) if encoding else None,
            latents_codec=encoding.codec if encoding else "",
            teacher=None if features[0] is None else from_bits(np.stack(features)),
            teacher_hash=self._teacher(self._sets[places[0][0]]),
        )

    def episodes(self, indices: Sequence[int]) -> list[str]:
        """Return `<dataset>/<episode id>` of the windows at these indices."""
        places = [self._locate(int(index)) for index in indices]
        return [f"{self._sets[d].name}/{self._sets[d].episode(clip)}" for d, clip, _ in places]

    def embodiment_names(self, indices: Sequence[int]) -> list[str]:
        """Return the embodiment's name of the windows at these indices."""
        return [self._sets[d].spec(clip).name for d, clip, _ in map(self._locate, map(int, indices))]

    def held_out(self, split: str = "val") -> "WindowDataset":
        """Return another split of the same folders, in stored order; datasets without it, or that can't be opened so, are left out by name.

        Raises:
            DataError: No dataset has it.
        """
        kept, missing = {}, []
        for name, dataset in self.config.datasets.items():
            other = replace(dataset, split=split, episodes=1.0, drop_actions=0.0)
            try:
                _open(self.config, name, other)
                kept[name] = other
            except DataError as error:
                missing.append(error)
                _LOG.warning("no held-out windows from dataset %s: %s", name, error)
        if not kept:
            raise missing[0]
        skip = [entry for entry in self.config.skip if entry.partition("/")[0] in kept]
        return WindowDataset(replace(self.config, datasets=kept, skip=skip), self.seed, shuffle=False)

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

    def _draw(
        self, index: int, skipped: list[tuple[str, str, str, str, bool]], out: np.ndarray | None
    ) -> tuple[Place, Sequence[str], Window, tuple[Stored, Stored]]:
        """Return the place of an index, its clip's prompts, the window and what is stored of it, or a substitute's."""
        place = self._locate(index)
        for attempt in range(1, _TRIES + 1):
            dataset, clip, frame = place
            shards = self._sets[dataset]
            try:
                decoded = shards.load(clip, self._cache, self.config.decoder)
                features = shards.cut_teacher(decoded, clip, frame) if self._with_teacher else None
                stored = shards.cut_latents(decoded, clip, frame), features
                with because("video"):  # a large video is decoded only here
                    window = cut_window(decoded, frame, shards.window, shards.spec(clip).views, out)
                return place, decoded.info.get("prompts") or [""], window, stored
            except SampleError as error:
                if not self.shuffle:
                    raise
                skipped.append((shards.name, shards.key(clip), error.reason, str(error), attempt == 1))
            rng = keyed_rng(self.seed, shards.salt, index, attempt)
            number, window = shards.place(int(rng.integers(len(shards))))
            place = (dataset, number, int(shards.anchors(number)[window]))
        raise DataError(f"{_TRIES} clips in a row can't be used, the last because: {skipped[-1][3]}")

    def _teacher(self, shards: ShardSet) -> str:
        """Return the hash of the teacher whose features are read with a dataset, empty where none are."""
        taught = self._with_teacher and shards.encoding and shards.encoding.teacher
        return str(taught["hash"]) if taught else ""

    def _locate(self, index: int) -> Place:
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

    def _prompt(self, prompts: Sequence[str], index: int) -> str:
        if not self.shuffle or len(prompts) == 1:
            return str(prompts[0])
        key = np.array([self.seed, index], np.uint64)
        return str(prompts[int(np.random.Generator(np.random.Philox(key=key)).integers(len(prompts)))])


def _open(config: DataConfig, name: str, dataset: DatasetConfig, *, lazy: bool = False) -> ShardSet:
    window = config.window_of(name)
    if window.max_views > config.window.max_views:
        raise ConfigError(
            f"data.datasets.{name}.window.max_views is {window.max_views}; allowed: up to data.window.max_views "
            f"({config.window.max_views}), for which the network is made"
        )
    shards = ShardSet(
        name,
        dataset.path,
        dataset.split,
        window,
        shares=(dataset.episodes, dataset.drop_actions),
        store=config.store,
        skip=config.skip,
        use_latents=config.use_latents,
    )
    shards.decodes_lazily = lazy
    return shards


def _merge_skips(skipped: Sequence[tuple[str, str, str, str, bool]]) -> tuple[SkippedClip, ...]:
    """Return each clip once, with the number of windows that were to be cut from it."""
    wanted: dict[tuple[str, str, str, str], int] = {}
    for *clip, first in skipped:
        key = (clip[0], clip[1], clip[2], clip[3])
        wanted[key] = wanted.get(key, 0) + first
    return tuple(
        SkippedClip(dataset=name, key=key, reason=reason, message=message, wanted=count)
        for (name, key, reason, message), count in wanted.items()
    )


def make_loader(
    dataset: WindowDataset,
    batch_size: int,
    start_index: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int | None = None,
) -> BatchLoader:
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
        ConfigError: A number is out of range; or datasets differ in geometry and the batches would straddle two.
    """
    if batch_size < 1 or start_index < 0 or not 0 <= rank < world_size:
        raise ConfigError(
            f"batch_size is {batch_size}, start_index {start_index}, rank {rank} of {world_size}; allowed: at least 1, at least 0, "
            "and a rank below the number of processes"
        )
    run = dataset.config.windows_per_bucket
    if dataset.num_buckets > 1 and (run % batch_size or start_index % batch_size):
        raise ConfigError(
            f"batch_size is {batch_size}, start_index {start_index}; where datasets differ in geometry, data.windows_per_bucket "
            f"({run}) and the start must be multiples of the batch size"
        )
    workers = dataset.config.num_workers if num_workers is None else num_workers
    stream = BatchStream(dataset, batch_size, start_index, rank, world_size)
    skips = SkipLog(dataset.clips, dataset.config.max_bad_share)
    return BatchLoader(stream, skips, workers, dataset.config.prefetch)


def eval_windows(dataset: WindowDataset, max_windows: int, split: str = "val", batch_size: int = 32) -> list[Batch]:
    """Return the same held-out windows at every call, evenly spread over the episodes, with the first prompt.

    Raises:
        DataError: No dataset of the mixture has that split.
    """
    if max_windows == 0:
        return []
    held_out = dataset.held_out(split)
    by_geometry: dict[int, list[int]] = {}
    for index in filter(held_out.is_readable, held_out.spread(max_windows)):
        by_geometry.setdefault(held_out.bucket(index), []).append(index)
    return [
        held_out.batch(indices[i : i + batch_size])
        for indices in by_geometry.values()
        for i in range(0, len(indices), batch_size)
    ]
