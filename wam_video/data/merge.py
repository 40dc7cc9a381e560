"""What several datasets of one run have in common: bodies, how they were resized, statistics, one size."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

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
    """Return every embodiment's statistics; of one that several folders share, computed over all of them."""
    folders: dict[str, list[ShardSet]] = {}
    places = {Path(s.path).resolve() if s.store.is_local else s.path: s for s in sets}
    for shards in places.values():
        for name in shards.embodiments:
            folders.setdefault(name, []).append(shards)
    stored = {s.path: load_stats(s.store) for s in sets}
    shared = {name: group for name, group in folders.items() if len(group) > 1}
    merged = {name: stored[group[0].path].get(name, {}) for name, group in folders.items() if name not in shared}
    for name, group in shared.items():
        merged[name] = compute_stats([s.store for s in group], embodiments=[name])[name]
    return dict(sorted(merged.items()))


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
