"""Where a run's batches come from: the interface that the trainer needs, and the shards behind it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from wam_video.data.loader import DataConfig, WindowDataset, eval_windows, make_loader
from wam_video.data.processor import WAMProcessor
from wam_video.data.schema import EmbodimentSpec
from wam_video.tensors import Batch


class Feed(Protocol):
    """The data of a run; its order is a pure function of the seed and the global sample index."""

    @property
    def embodiments(self) -> Mapping[str, EmbodimentSpec]:
        """The bodies in the data, in the order of their ids."""
        ...

    def processor(self, normalization: str) -> WAMProcessor:
        """Return the transforms that go with these data."""
        ...

    def batches(self, batch_size: int, start_index: int, rank: int, num_processes: int) -> Iterator[Batch]:
        """Yield one process's micro-batches for ever, from a global sample index on."""
        ...

    def validation(self, max_windows: int, batch_size: int) -> list[Batch]:
        """Return the same held-out windows at every call."""
        ...


class ShardFeed:
    """A `WindowDataset` as a feed; `with_teacher`: with the stored features of a teacher, where there are some."""

    def __init__(self, config: DataConfig, seed: int, *, with_teacher: bool = False) -> None:
        self._config = config
        self._dataset = WindowDataset(config, seed, with_teacher=with_teacher)

    @property
    def embodiments(self) -> Mapping[str, EmbodimentSpec]:
        """The bodies of all datasets."""
        return self._dataset.embodiments

    def processor(self, normalization: str) -> WAMProcessor:
        """Return the processor of these datasets and their statistics."""
        return WAMProcessor.from_dataset(self._dataset, normalization)

    def batches(self, batch_size: int, start_index: int, rank: int, num_processes: int) -> Iterator[Batch]:
        """Yield micro-batches through the loader's workers."""
        return iter(
            make_loader(
                self._dataset,
                batch_size=batch_size,
                start_index=start_index,
                rank=rank,
                world_size=num_processes,
                num_workers=self._config.num_workers,
            )
        )

    def validation(self, max_windows: int, batch_size: int) -> list[Batch]:
        """Return held-out windows, spread evenly over the episodes."""
        return eval_windows(self._dataset, max_windows, batch_size=batch_size)


def find_embodiments(config: DataConfig) -> tuple[Mapping[str, EmbodimentSpec], str]:
    """Return the embodiments of the datasets and where they come from; a stand-in where the shards are not there yet."""
    # an address is asked: that it does not answer is told, and not taken for data that are yet to be made
    if config.datasets and all(
        "://" in dataset.path or (Path(dataset.path) / "manifest.json").is_file()
        for dataset in config.datasets.values()
    ):
        return WindowDataset(config, 0).embodiments, "with the embodiments of the data"
    views = tuple(f"view{i}" for i in range(config.window.max_views))
    body = EmbodimentSpec(name="placeholder", action_dim=7, state_dim=7, views=views, fps=5.0, action_rate=5.0)
    return {body.name: body}, "the data are not there: counted with one embodiment of 7 actions and 7 states"
