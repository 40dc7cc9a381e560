"""What several datasets of one run have in common: bodies, how they were resized, statistics, one size."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wam_video.data.manifest import SampleEntry
from wam_video.data.normalize import Stats, compute_stats, load_stats
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.shard_set import ShardSet
from wam_video.errors import DataError


def merge_embodiments(sets: Sequence[ShardSet]) -> dict[str, EmbodimentSpec]:
    """Return the embodiments of all datasets.

    Raises:
        DataError: One name stands for two bodies.
    """
    merged: dict[str, EmbodimentSpec] = {}
    for shards in sets:
        for name, spec in shards.embodiments.items():
            known = merged.setdefault(name, spec)
            if replace(known, fps=spec.fps, description=spec.description) != spec:
                raise DataError(f"embodiment {name!r} differs between datasets: {known} and {spec}; rename one of them")
    return dict(sorted(merged.items()))


def merge_fit(sets: Sequence[ShardSet]) -> dict[str, str]:
    """Return how each embodiment's recordings were brought to the stored size.

    Raises:
        DataError: It was done in two ways.
    """
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


def merge_stats(sets: Sequence[ShardSet]) -> Stats:
    """Return every embodiment's statistics; of one that several folders share, computed over all of them.

    What a run hides (`drop_actions`, `episodes`) does not count, unless nothing is left to count.
    """
    places: dict[Path | str, list[ShardSet]] = {}
    for shards in sets:
        places.setdefault(Path(shards.path).resolve() if shards.store.is_local else shards.path, []).append(shards)
    folders: dict[str, list[list[ShardSet]]] = {}
    for readers in places.values():
        for name in readers[0].embodiments:
            folders.setdefault(name, []).append(readers)
    stored = {s.path: load_stats(s.store) for s in sets}
    merged: Stats = {}
    for name, group in folders.items():
        whole = all(any(s.shows_all_actions for s in readers) for readers in group)
        found = {} if whole and len(group) == 1 else _count(name, group, whole=whole)
        if not found and len(group) > 1:
            found = _count(name, group, whole=True)
        merged[name] = found or stored[group[0][0].path].get(name, {})
    return dict(sorted(merged.items()))


def _count(name: str, group: Sequence[Sequence[ShardSet]], *, whole: bool) -> dict[str, Any]:
    """Compute one embodiment's statistics over folders, each of which one or several datasets read."""
    counts = [_seen_by([] if whole else readers) for readers in group]
    return compute_stats([readers[0].store for readers in group], embodiments=[name], counts=counts)[name]


def _seen_by(readers: Sequence[ShardSet]) -> Callable[[SampleEntry], bool]:
    return lambda sample: not readers or any(s.shows_actions(sample) for s in readers)


def check_sizes(sets: Sequence[ShardSet]) -> None:
    """Refuse datasets that were stored at different sizes, where no size is asked for.

    Raises:
        DataError: The message names them.
    """
    sizes = {s.name: s.size for s in sets}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {height}x{width}" for name, (height, width) in sizes.items())
        raise DataError(
            f"datasets are stored at different sizes ({told}); set window.height and window.width, for all in data.window or "
            "for each in data.datasets.NAME.window"
        )
