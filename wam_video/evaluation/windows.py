"""Which recorded windows a model is scored on, and what the controls need to know about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.data.loader import DataConfig, DatasetConfig, WindowDataset
from wam_video.data.manifest import MANIFEST_NAME, Manifest, hash_file, load_manifest
from wam_video.data.normalize import recorded_actions
from wam_video.data.processor import WAMProcessor
from wam_video.data.schema import EmbodimentSpec
from wam_video.errors import ConfigError
from wam_video.evaluation.open_loop import Group

_CONSTANT = 1e-6


@dataclass(frozen=True, kw_only=True)
class EvalData:
    """The windows of one folder of shards, in groups of one embodiment each."""

    dataset: WindowDataset
    groups: tuple[Group, ...]
    facts: Mapping[str, Any]
    """For the record: folder, hash of the manifest, split, counts."""


def open_windows(processor: WAMProcessor, folder: str | Path, split: str, max_windows: int) -> EvalData:
    """Choose windows of the model's shape, evenly over the episodes of a split.

    Args:
        processor: The model's: its window, embodiments and training statistics hold.
        folder: Shards.
        split: `val` or `train`.
        max_windows: At most so many.

    Raises:
        ConfigError: `max_windows` is below 1, or the model does not know a body that the data hold, or not with these widths.
        DataError: The folder or the split can't be read.
    """
    if max_windows < 1:
        raise ConfigError(f"windows is {max_windows}; allowed: 1 or more")
    manifest = load_manifest(folder)
    name = manifest.dataset
    # The model may know more bodies than these data hold.
    horizons = {k: v for k, v in processor.window.action_horizons.items() if k in manifest.embodiments}
    window = replace(processor.window, action_horizons=horizons)
    datasets = {name: DatasetConfig(path=str(folder), split=split)}
    config = DataConfig(datasets=datasets, window=window, use_latents=False)  # scores are of pixels
    dataset = WindowDataset(config, shuffle=False)
    by_body: dict[str, list[int]] = {}
    chosen = dataset.spread(max_windows)
    for index, body in zip(chosen, dataset.embodiment_names(chosen), strict=True):
        by_body.setdefault(body, []).append(index)
    groups = tuple(_group(processor, dataset, dataset.embodiments[body], by_body[body]) for body in sorted(by_body))
    return EvalData(dataset=dataset, groups=groups, facts=_facts(manifest, folder, split, groups))


def _facts(manifest: Manifest, folder: str | Path, split: str, groups: Sequence[Group]) -> dict[str, Any]:
    return {
        "path": str(folder),
        "dataset": manifest.dataset,
        "manifest_sha256": hash_file(Path(folder) / MANIFEST_NAME),
        "split": split,
        "num_windows": sum(len(g) for g in groups),
        "num_episodes": len({e for g in groups for e in g.episodes}),
        "windows_per_embodiment": {g.spec.name: len(g) for g in groups},
    }


def _group(processor: WAMProcessor, dataset: WindowDataset, spec: EmbodimentSpec, indices: list[int]) -> Group:
    known = processor.spec(spec.name)
    for what in ("action_dim", "state_dim"):
        if getattr(known, what) != getattr(spec, what):
            raise ConfigError(
                f"embodiment {spec.name!r} has {what} {getattr(spec, what)} in the data and {getattr(known, what)} in the "
                "model; evaluate on data of the body that the model was trained on"
            )
    stats = recorded_actions(processor.config["stats"].get(spec.name, {}))
    mean = torch.tensor(stats.get("mean", [0.0] * spec.action_dim), dtype=torch.float64)
    scale = torch.tensor(stats.get("std", [0.0] * spec.action_dim), dtype=torch.float64)
    scale = torch.where(scale > _CONSTANT * mean.abs().clamp(min=1.0), scale, 0.0)
    return Group(
        spec=spec,
        indices=tuple(indices),
        episodes=tuple(dataset.episodes(indices)),
        action_mean=mean,
        action_scale=scale,
        previous_actions=previous_actions(dataset, spec, indices, mean) if spec.action_dim else None,
    )


def previous_actions(
    dataset: WindowDataset, spec: EmbodimentSpec, indices: Sequence[int], mean: Float[Tensor, " da"]
) -> Float[Tensor, "n da"]:
    """Return the action that was under way just before time 0 of each window; `mean` where the clip starts there.

    It is read from the window before it in the stored order, if that is of the same clip.
    """
    rows = []
    for index in indices:
        row = mean
        if index > 0:
            pair = dataset.batch([index - 1, index])
            (clip, frame), (clip_now, frame_now) = (key.rsplit("@", 1) for key in pair.keys)
            step = round((int(frame_now) - int(frame)) / spec.fps * spec.action_rate) - 1
            if clip == clip_now and 0 <= step < pair.actions.shape[1] and bool(pair.action_mask[0, step].any()):
                row = pair.actions[0, step, : spec.action_dim].double()
        rows.append(row)
    return torch.stack(rows)
