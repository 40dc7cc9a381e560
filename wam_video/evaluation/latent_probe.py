"""Are latent actions actions? A linear probe reads the true ones out of them, on episodes that it was not fitted on.

Ridge regression with its strength chosen over episodes; R2 is over all dimensions in units of their deviation, with a
bootstrap over episodes. Every figure stands beside what it must beat: the latents of other pairs, and as many principal
components of the change of the pixels. What the first frame alone tells is habit, not a reading of what happened.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from wam_video import __version__
from wam_video.data.manifest import Manifest, SampleEntry, ShardEntry, load_manifest
from wam_video.data.reader import decode_clip, load_npy, read_sample
from wam_video.data.schema import EmbodimentSpec
from wam_video.errors import ConfigError, DataError
from wam_video.evaluation.intervals import BootstrapConfig, estimate
from wam_video.evaluation.studies.probes import Projection, episode_folds, fit_projection, fit_ridge
from wam_video.latent_actions.label import OPTION
from wam_video.latent_actions.pairs import mean_actions
from wam_video.log import progress

NAME = "latent_probe.json"
SIDE = 32
"""Rows and columns of the grey pictures that the controls read."""
CONDITIONS = {
    "latent": "the latent action",
    "latent_and_frame": "the latent action and the first frame",
    "frame": "the first frame alone (habit)",
    "pixel_change": "as many principal components of the pixels' change",
    "shuffled": "latent actions of other pairs",
}
_LEAST_EPISODES = 4
_FRAME_COMPONENTS = 64


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What is read and how it is judged."""

    folds: int = 0
    """Cross-validate over all episodes; 0: fit on the split `train`, judge on `val`."""
    max_pairs: int = 20_000
    """Of each split, evenly over the episodes."""
    delay_s: float = 0.0
    """Seconds by which the body follows its actions: a pair's are those that start so much before it."""
    relative: bool = False
    """Also judge the actions less the state at the pair's beginning: for bodies that are told absolute targets."""
    seed: int = 0
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        if self.folds < 0 or self.folds == 1 or self.max_pairs < 10:
            raise ConfigError(
                f"folds is {self.folds}, max_pairs {self.max_pairs}; allowed: 0, or 2 and more; at least 10"
            )
        if not 0 <= self.delay_s <= 5:
            raise ConfigError(f"delay is {self.delay_s}; allowed: 0 to 5 seconds")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed is {self.seed}; allowed: 0 to {2**31 - 1}")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Labelled pairs whose true actions are known."""

    latents: Float[Tensor, "n d"]
    first: Float[Tensor, "n p"]
    """Pixels of the first frame, grey."""
    change: Float[Tensor, "n p"]
    """What the second frame's differ by."""
    actions: Float[Tensor, "n da"]
    """Mean over the pair's interval."""
    state: Float[Tensor, "n ds"] | None
    """At its beginning."""
    episodes: tuple[str, ...]


def probe(folder: Path, config: ProbeConfig) -> dict[str, Any]:
    """Measure; see `CONDITIONS`.

    Args:
        folder: Shards that `latent_actions.label` wrote from recordings with actions.
        config: Split or folds, limits and seed.

    Returns:
        A JSON-able record: `rows` of R2 by target, condition and dimension, `differences` to the controls with intervals, and
        `flags`. Target `recorded` is the action as recorded, `relative` is it less the state at the pair's beginning.

    Raises:
        DataError: The folder has no latent actions, no true ones that change beside them, or too few episodes.
        ConfigError: Relative actions are asked for, and the state is not as wide as they are.
    """
    manifest = load_manifest(folder)
    if OPTION not in manifest.options:
        raise DataError(
            f"{str(folder)!r} holds no latent actions; give shards that `wam-video latent-actions label` wrote"
        )
    about = manifest.options[OPTION]
    source = EmbodimentSpec.from_dict(about["source"])
    if not source.action_dim:
        raise DataError(f"{str(folder)!r} was made from video without actions; there is nothing to probe for")
    if config.folds:
        seen = _read(folder, _samples(manifest, ("train", "val")), about, source, config)
        fold = episode_folds(seen.episodes, config.folds)
        parts = [
            (torch.nonzero(fold != k).flatten(), torch.nonzero(fold == k).flatten()) for k in fold.unique().tolist()
        ]
    else:
        both = [_read(folder, _samples(manifest, (s,)), about, source, config) for s in ("train", "val")]
        seen, count = _join(both), len(both[0].episodes)
        parts = [(torch.arange(count), torch.arange(count, len(seen.episodes)))]
    judged = {seen.episodes[i] for _, held in parts for i in held.tolist()}
    if len(judged) < _LEAST_EPISODES:
        raise DataError(
            f"{str(folder)!r} has {len(judged)} episode(s) to judge on, {_LEAST_EPISODES} are needed; take --folds 5, or more data"
        )
    rows, differences, flags = [], [], []
    for target, values in _targets(seen, source, config).items():
        found = _measure(seen, values, parts, source, config)
        rows += [{"target": target, **row} for row in found[0]]
        differences += [{"target": target, **row} for row in found[1]]
        flags += [f"{target} actions: {flag}" for flag in found[2]]
    return {
        "schema_version": 1,
        "library_version": __version__,
        "latent_actions": about,
        "data": {"dataset": manifest.dataset, "judged_on": f"{config.folds} folds" if config.folds else "split val"},
        "probe": asdict(config),
        "pairs": len(seen.episodes),
        "episodes": {"all": len(set(seen.episodes)), "judged": len(judged)},
        "conditions": CONDITIONS,
        "rows": rows,
        "differences": differences,
        "flags": flags,
    }


Samples = Sequence[tuple[ShardEntry, SampleEntry]]
Parts = Sequence[tuple[Int[Tensor, " f"], Int[Tensor, " h"]]]


def _samples(manifest: Manifest, splits: Sequence[str]) -> Samples:
    found = [pair for split in splits for pair in manifest.split(split)]
    if not found:
        raise DataError(f"the shards have no split {' or '.join(splits)}; take --folds 5")
    return found


def _read(
    folder: Path, samples: Samples, about: Mapping[str, Any], source: EmbodimentSpec, config: ProbeConfig
) -> Seen:
    """Read evenly chosen labelled pairs whose true actions are known."""
    step = round(about["config"]["interval_s"] * source.fps)
    counts = np.cumsum([0, *(sample.num_actions for _, sample in samples)])
    chosen = np.unique(np.linspace(0, counts[-1] - 1, min(config.max_pairs, int(counts[-1]))).round().astype(np.int64))
    columns: dict[str, list[Tensor]] = {name: [] for name in ("latents", "first", "change", "actions", "state")}
    episodes: list[str] = []
    for number, (shard, sample) in enumerate(progress(samples, total=len(samples), what="clips")):
        rows = chosen[(chosen >= counts[number]) & (chosen < counts[number + 1])] - counts[number]
        members = read_sample(folder, shard, sample)
        if not len(rows) or "source.actions.npy" not in members:
            continue
        true = load_npy(members["source.actions.npy"], "source.actions.npy")
        starts_s = rows * step / source.fps
        mean = mean_actions(true, source.action_rate, starts_s - config.delay_s, step / source.fps)
        known = np.isfinite(mean).all(1)
        rows, mean = rows[known], mean[known]
        clip = decode_clip(members, views=[about["view"]], where=f"sample {sample.key!r}")
        assert clip.actions is not None, "a labelled sample has actions"
        grey = adaptive_avg_pool2d(torch.from_numpy(clip.video[about["view"]]).float().mean(-1), SIDE).flatten(1)
        first, second = grey[rows * step], grey[(rows + 1) * step]
        columns["latents"].append(torch.from_numpy(clip.actions[rows]))
        columns["first"].append(first)
        columns["change"].append(second - first)
        columns["actions"].append(torch.from_numpy(mean))
        if "source.state.npy" in members:
            state = load_npy(members["source.state.npy"], "source.state.npy")
            at = np.round(starts_s[known] * source.action_rate).astype(np.int64)
            columns["state"].append(torch.from_numpy(state[np.minimum(at, len(state) - 1)]))
        episodes += [sample.episode_id] * len(rows)
    if not episodes:
        raise DataError(
            f"{str(folder)!r} keeps no true actions beside the latent ones, or none so much before them (delay {config.delay_s:g} s); "
            "label recordings that have them, or lower --delay"
        )
    joined = {name: torch.cat(parts).double() for name, parts in columns.items() if parts}
    state = joined.pop("state", None)
    state = state if state is not None and len(state) == len(episodes) else None
    return Seen(**joined, state=state, episodes=tuple(episodes))


def _join(both: Sequence[Seen]) -> Seen:
    one, other = both
    state = None if one.state is None or other.state is None else torch.cat([one.state, other.state])
    names = ("latents", "first", "change", "actions")
    return Seen(
        **{name: torch.cat([getattr(one, name), getattr(other, name)]) for name in names},
        state=state,
        episodes=one.episodes + other.episodes,
    )


def _targets(seen: Seen, source: EmbodimentSpec, config: ProbeConfig) -> dict[str, Float[Tensor, "n da"]]:
    if not config.relative:
        return {"recorded": seen.actions}
    if seen.state is None or seen.state.shape != seen.actions.shape:
        raise ConfigError(
            f"relative actions are asked for; {source.name!r} has {source.action_dim} actions and {source.state_dim} states, "
            "which must be the same quantities"
        )
    return {"recorded": seen.actions, "relative": seen.actions - seen.state}


def _measure(
    seen: Seen, target: Float[Tensor, "n da"], parts: Parts, source: EmbodimentSpec, config: ProbeConfig
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Fit and judge every condition; return figures, differences and flags."""
    order = torch.cat([held for _, held in parts])
    episodes = [seen.episodes[i] for i in order.tolist()]
    wrong, spread = {name: [] for name in CONDITIONS}, []
    for fit, held in parts:
        scale = target[fit].std(0)
        units = torch.where(scale > 1e-9, scale, torch.inf)  # what never changes has no part in the score
        y, truth = target[fit] / units, target[held] / units
        fit_episodes = [seen.episodes[i] for i in fit.tolist()]
        spread.append((truth - y.mean(0)).square())
        for name, (x, x_held) in _inputs(seen, fit, held).items():
            wrong[name].append((fit_ridge(x, y, fit_episodes)(x_held) - truth).square())
    bootstrap = BootstrapConfig(seed=config.seed)
    names = source.action_names or tuple(f"action {i}" for i in range(source.action_dim))
    total = torch.cat(spread)
    if not bool(total.any()):
        raise DataError("the true actions never change in these recordings; there is nothing to probe for")
    errors = {name: torch.cat(rows) for name, rows in wrong.items()}
    rows = []
    for name, error in errors.items():
        sums = torch.stack([error, total], dim=1)
        rows.append({"condition": name, "dimension": None, "r2": _estimate(sums, episodes, _r2, bootstrap)})
        rows += [
            {"condition": name, "dimension": names[d], "r2": _estimate(sums[..., d : d + 1], episodes, _r2, bootstrap)}
            for d in range(target.shape[1])
            if name == "latent" and float(total[:, d].sum()) > 0
        ]
    differences, flags = [], []
    for name, says in (
        ("shuffled", "other pairs' latents tell as much"),
        ("pixel_change", "the pixels' change tells as much"),
    ):
        sums = torch.stack([errors[name] - errors["latent"], total], dim=1)
        gain = _estimate(sums, episodes, _share, bootstrap)
        differences.append({"condition": "latent", "control": name, "r2_more": gain})
        if gain["low"] is None or gain["low"] <= 0:
            flags.append(f"{says} (R2 is {gain['value']:.3f} more, which its interval does not carry)")
    return rows, differences, flags


def _inputs(seen: Seen, fit: Tensor, held: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what each condition's probe reads, of the pairs it is fitted on and of those it is judged on."""
    dims = seen.latents.shape[1]

    def both(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
        projection: Projection = fit_projection(x[fit], most)
        return projection(x[fit]), projection(x[held])

    latent, frame = both(seen.latents, dims), both(seen.first, _FRAME_COMPONENTS)
    return {
        "latent": latent,
        "latent_and_frame": (torch.cat([latent[0], frame[0]], 1), torch.cat([latent[1], frame[1]], 1)),
        "frame": frame,
        "pixel_change": both(seen.change, dims),
        # pairs stand episode by episode, so that half of them on is another episode
        "shuffled": (latent[0].roll(len(fit) // 2, 0), latent[1].roll(len(held) // 2, 0)),
    }


def _r2(sums: Float[Tensor, "*n two d"]) -> Float[Tensor, "*n one"]:
    return 1 - _share(sums)


def _share(sums: Float[Tensor, "*n two d"]) -> Float[Tensor, "*n one"]:
    added = sums.sum(-1)
    return (added[..., 0] / added[..., 1])[..., None]


def _estimate(
    sums: Float[Tensor, "n two d"],
    episodes: Sequence[str],
    score: Callable[[Tensor], Tensor],
    bootstrap: BootstrapConfig,
) -> dict[str, float | int | None]:
    return estimate(sums, episodes, score, bootstrap)[0].to_dict()
