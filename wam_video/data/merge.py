"""What several datasets of one run have in common: bodies, how they were resized, statistics, one size."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from wam_video.data.action_kinds import ActionKinds, Kinds
from wam_video.data.actions import action_at
from wam_video.data.manifest import SampleEntry
from wam_video.data.normalize import RECORDED, Stats, compute_stats, describe, load_stats
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.shard_set import ShardSet
from wam_video.errors import ConfigError, DataError, one_of

_MAX_WINDOWS = 100_000


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


def told_stats(stats: Stats, sets: Sequence[ShardSet], actions: Kinds, specs: Mapping[str, EmbodimentSpec]) -> Stats:
    """Return the statistics with those of the actions as the model is told them, over the windows of the datasets.

    Of very many windows, evenly spread ones are counted.

    Raises:
        ConfigError: `data.actions` names what is not there, or asks for what can't be told.
        DataError: A clip has actions and no state, or is damaged.
    """
    told = {name: dict(by) for name, by in stats.items()}
    for name, kinds in actions.items():
        if name not in specs:
            raise ConfigError(one_of("embodiment of data.actions", name, specs))
        change = ActionKinds(specs[name], kinds)
        if not change.changes:
            continue
        places = [(s, i) for s in sets for i in range(s.num_clips) if s.spec(i).name == name and s.counts[i]]
        every = -(-sum(int(s.counts[i]) for s, i in places) // _MAX_WINDOWS) or 1
        rows = [found for s, i in places if len(found := _told(s, i, change, every))]
        if rows:
            told[name] = {**told[name], RECORDED: told[name]["actions"]} if "actions" in told[name] else told[name]
            told[name]["actions"] = describe(np.concatenate(rows))
    return told


def _told(shards: ShardSet, clip: int, change: ActionKinds, every: int) -> Float[np.ndarray, "n da"]:
    """Return the actions of a clip's windows as a model is told them, one row a step."""
    spec, window, numbers = shards.spec(clip), shards.window, shards.numbers(clip)
    if numbers is None:
        return np.zeros((0, spec.action_dim), np.float32)
    actions, state = numbers
    starts = action_at(shards.anchors(clip)[::every], spec.fps, spec.action_rate)[0]
    steps = starts[:, None] + np.arange(window.action_horizons.get(spec.name, window.action_horizon))
    chunks = torch.from_numpy(actions[np.minimum(steps, len(actions) - 1)])
    told = change.tell(chunks, torch.from_numpy(state[np.minimum(starts, len(state) - 1)]))
    return told.numpy()[steps < len(actions)]


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
