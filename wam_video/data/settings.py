"""What a run reads: datasets, windows, order, stores and limits."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from wam_video.data.store import StoreConfig
from wam_video.data.video import DECODERS
from wam_video.data.windows import WindowConfig
from wam_video.errors import ConfigError, one_of


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One folder of shards in a mixture."""

    path: str = ""
    """Folder, or an address that fsspec knows: `s3://`, `gs://`, `hf://datasets/...`, `https://`."""
    weight: float = 1.0
    """Share of the windows, relative to the other datasets' weights and whatever the sizes."""
    split: str = "train"
    episodes: float = 1.0
    """Share of the episodes that are read, by a hash of their names: 0.5 of a dataset is half of it in every run."""
    drop_actions: float = 0.0
    """Share of those episodes whose actions and state are hidden, as if they were plain video; the statistics come from the
    others. They are taken from the far end of the hash: `episodes: 0.5` reads just those that `drop_actions: 0.5` leaves visible."""
    window: dict[str, Any] = field(default_factory=dict)
    """Where this dataset's windows differ from `data.window`, e.g. `{num_future_frames: 8}`: it gets batches of its own."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The windows of a run and where they come from."""

    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    window: WindowConfig = field(default_factory=WindowConfig)
    actions: dict[str, dict[str, str]] = field(default_factory=dict)
    """Embodiment -> channel, rotation or `*` -> `stored`, `relative` (to the state at time 0) or `delta` (from the action before):
    how actions are told to the model; statistics are of what is told, and what the model says is turned back."""
    windows_per_decode: int = 8
    """Neighbours in the order that come from one decoded clip; 1 shuffles best, more decodes less."""
    open_shards: int = 0
    """Shards over which windows are shuffled at a time, so that a cache or a store sees few at once; 0: over all."""
    windows_per_bucket: int = 960
    """Neighbours in the order that are of one geometry, where datasets differ in it; a multiple of the batch size."""
    num_workers: int = 0
    """Processes that decode; 0 decodes in the training process."""
    prefetch: int = 2
    """Batches that each worker prepares ahead."""
    cache_mb: int = 512
    """Decoded clips kept in memory, over all workers of one process."""
    decoder: str = "auto"
    use_latents: bool = True
    """Read the latents of datasets that hold them (`wam-video data encode`); False: their pixels, which must be kept there."""
    store: StoreConfig = field(default_factory=StoreConfig)
    max_bad_share: float = 0.02
    """Share of a dataset's clips that may turn out unusable; each is replaced by another drawn by the index alone."""
    skip: list[str] = field(default_factory=list)
    """`<dataset>/<sample key>` of clips that count as unusable from the start, e.g. because they are slow to read."""

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise ConfigError(one_of("data.decoder", self.decoder, DECODERS))
        lowest = {"windows_per_decode": 1, "open_shards": 0, "windows_per_bucket": 1}
        for what, low in (lowest | {"num_workers": 0, "prefetch": 1, "cache_mb": 0}).items():
            if getattr(self, what) < low:
                raise ConfigError(f"data.{what} is {getattr(self, what)}; it must be at least {low}")
        for name, dataset in self.datasets.items():
            if not 0 < dataset.episodes <= 1:
                raise ConfigError(f"data.datasets.{name}.episodes is {dataset.episodes}; allowed: above 0, up to 1")
            if not 0 <= dataset.drop_actions <= 1:
                raise ConfigError(f"data.datasets.{name}.drop_actions is {dataset.drop_actions}; allowed: 0 to 1")
        if not 0 <= self.max_bad_share <= 1:
            raise ConfigError(f"data.max_bad_share is {self.max_bad_share}; allowed: 0 to 1")
        for entry in self.skip:
            name = entry.partition("/")[0]
            if not re.fullmatch(r"[^/]+/[^/]+", entry) or name not in self.datasets:
                raise ConfigError(
                    f"data.skip holds {entry!r}; allowed: DATASET/SAMPLE_KEY with a dataset of {sorted(self.datasets)}"
                )

    def window_of(self, name: str) -> WindowConfig:
        """Return the windows of one dataset.

        Raises:
            ConfigError: `data.datasets.<name>.window` holds an unknown key or a value that can't be.
        """
        changes = self.datasets[name].window
        allowed = [f.name for f in fields(WindowConfig)]
        for key in changes:
            if key not in allowed:
                raise ConfigError(one_of(f"configuration key under data.datasets.{name}.window.", key, allowed))
        return replace(self.window, **changes)


def buckets(windows: Sequence[WindowConfig], codecs: Sequence[str]) -> list[int]:
    """Return a number for each dataset that is the same where one batch can hold the windows of both, from 0 without gaps.

    Args:
        windows: Of each dataset.
        codecs: Hash of the codec where a dataset holds latents, empty where it holds pixels.
    """
    seen: dict[tuple[int | str | None, ...], int] = {}
    keys = [
        (w.num_context_frames, w.num_future_frames, w.action_horizon, w.num_states, w.max_views, w.height, w.width, c)
        for w, c in zip(windows, codecs, strict=True)
    ]
    return [seen.setdefault(key, len(seen)) for key in keys]
