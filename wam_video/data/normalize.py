"""Statistics of actions and state, and the affine maps to and from the model's units."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float

from wam_video.data.manifest import SampleEntry, load_manifest
from wam_video.data.reader import read_sample, sample_arrays, sample_info
from wam_video.data.store import Store, as_store
from wam_video.errors import ConfigError, DataError, one_of

STATS_NAME = "stats.json"
KINDS = ("quantile", "mean_std", "min_max")
RECORDED = "recorded_actions"
FIELDS = ("mean", "std", "min", "max", "q01", "q99")

Stats = dict[str, dict[str, dict[str, Any]]]
"""Embodiment -> `actions` | `state` -> field of `FIELDS` -> one number a dimension, and `count`.

Where a model is told actions otherwise than they are recorded, `actions` are those of what is told, and `RECORDED` of the others."""

Array = TypeVar("Array", np.ndarray, torch.Tensor)

_CONSTANT = 1e-6


def compute_stats(
    folders: Path | str | Store | Sequence[Path | str | Store],
    split: str = "train",
    embodiments: Sequence[str] | None = None,
    counts: Sequence[Callable[[SampleEntry], bool]] | None = None,
) -> Stats:
    """Compute per embodiment the statistics of one split of one or several folders of shards taken together.

    Args:
        folders: Where the shards lie.
        split: Statistics for training come from `train` alone.
        embodiments: Only these; all by default.
        counts: For each folder, which of its samples; all by default.

    Raises:
        DataError: As `reader.read_sample` does.
    """
    rows: dict[str, dict[str, list[np.ndarray]]] = {}
    several = isinstance(folders, Sequence) and not isinstance(folders, str)
    stores = [as_store(folder) for folder in (folders if several else [folders])]  # type: ignore[arg-type]
    for store, counted in zip(stores, counts or [lambda sample: True] * len(stores), strict=True):
        manifest = load_manifest(store)
        for name in manifest.embodiments if embodiments is None else embodiments:
            rows.setdefault(name, {})
        for shard, sample in manifest.split(split):
            if sample.embodiment not in rows or not counted(sample):
                continue
            at = f"shard {store.where(shard.name)!r}, sample {sample.key!r}"
            members = read_sample(store, shard, sample)
            arrays = sample_arrays(members, sample_info(members, at), at)
            for name in ("actions", "state"):
                if (array := arrays[name]) is not None and len(array):
                    rows[sample.embodiment].setdefault(name, []).append(array)
    return {
        embodiment: {name: describe(np.concatenate(arrays)) for name, arrays in sorted(by_name.items())}
        for embodiment, by_name in sorted(rows.items())
    }


def recorded_actions(by: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return one embodiment's statistics of the actions as a robot takes them, whatever a model is told; empty if there are none."""
    return by.get(RECORDED, by.get("actions", {}))


def describe(values: Float[np.ndarray, "n d"]) -> dict[str, Any]:
    """Return the statistics of some rows: one number a dimension for each of `FIELDS`, and `count`."""
    values = values.astype(np.float64)
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    found = {
        "mean": values.mean(0),
        "std": values.std(0),
        "min": values.min(0),
        "max": values.max(0),
        "q01": q01,
        "q99": q99,
    }
    # float32 is what the recordings hold; shorter decimals also keep the file and its hash stable across BLAS builds
    return {name: [float(np.float32(x)) for x in v] for name, v in found.items()} | {"count": len(values)}


def save_stats(stats: Stats, folder: Path | str) -> Path:
    """Write `stats.json`; the same statistics give the same bytes."""
    path = Path(folder) / STATS_NAME
    path.write_text(
        json.dumps({"sha256": stats_hash(stats), "stats": stats}, sort_keys=True, indent=1) + "\n", encoding="utf-8"
    )
    return path


def load_stats(folder: Path | str | Store) -> Stats:
    """Read `stats.json` of a folder of shards.

    Raises:
        DataError: The file is missing or broken, or its hash does not match its contents.
    """
    store = as_store(folder)
    path, remedy = store.where(STATS_NAME), f"run `wam-video data stats {store.path}`"
    try:
        text = store.read(STATS_NAME)
    except FileNotFoundError as error:
        raise DataError(f"{path!r} does not exist; {remedy}") from error
    except OSError as error:
        raise DataError(
            f"{path} can't be read: {error.strerror or error}; check the address and your rights"
        ) from error
    try:
        raw = json.loads(text)
        stats, stored = raw["stats"], raw["sha256"]
        found = stats_hash(stats)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a statistics file ({error}); {remedy}") from error
    if found != stored:
        raise DataError(
            f"{path}: statistics hash to {found[:12]}, the file says {stored[:12]}; it was altered: compute them again"
        )
    return stats


def stats_hash(stats: Mapping[str, Any]) -> str:
    """Return the sha256 of the statistics' canonical JSON (sorted keys, no spaces), as hex."""
    canonical = json.dumps(stats, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def affine(kind: str, stats: Mapping[str, Any]) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Return `(shift, scale)`, float32, of `normalised = (x - shift) * scale`.

    `quantile` maps [q01, q99] and `min_max` [min, max] to [-1, 1] (no clipping); `mean_std` gives mean 0 and deviation 1.
    A dimension that never changes has scale 0: it maps to 0, and back to its own value exactly.

    Raises:
        ConfigError: Unknown kind.
        DataError: A field is missing.
    """
    if kind not in KINDS:
        raise ConfigError(one_of("normalization", kind, KINDS))
    try:
        field = {name: np.asarray(stats[name], np.float32) for name in FIELDS}
    except KeyError as error:
        raise DataError(f"statistics have no {error}; they need {', '.join(FIELDS)}: compute them again") from error
    if kind == "mean_std":
        shift, half = field["mean"], field["std"]
    else:
        low, high = (field["q01"], field["q99"]) if kind == "quantile" else (field["min"], field["max"])
        # a dimension that moves only in rare steps has equal quantiles; its whole range is then the honest scale
        low, high = (np.where(high - low > _CONSTANT, a, b) for a, b in ((low, field["min"]), (high, field["max"])))
        shift, half = (low + high) / 2, (high - low) / 2
    constant = field["max"] - field["min"] <= _CONSTANT * np.maximum(1, np.abs(field["max"]))
    scale = np.where(constant, 0, 1 / np.where(constant, 1, half))
    return np.where(constant, field["min"], shift).astype(np.float32), scale.astype(np.float32)


class Normalizer:
    """Map one quantity of one embodiment to and from the model's units."""

    def __init__(self, kind: str, stats: Mapping[str, Any]) -> None:
        """Build the map; see `affine`."""
        self.shift, self.scale = affine(kind, stats)
        self.inverse_scale = np.where(self.scale > 0, 1 / np.where(self.scale > 0, self.scale, 1), 0).astype(np.float32)

    def apply(self, x: Array) -> Array:
        """Return `x` (`... d`, physical units) normalised."""
        shift, scale = self._like(x, self.shift, self.scale)
        return (x - shift) * scale

    def invert(self, x: Array) -> Array:
        """Return `x` (`... d`, normalised) in physical units."""
        shift, scale = self._like(x, self.shift, self.inverse_scale)
        return x * scale + shift

    @staticmethod
    def _like(x: Array, *tables: np.ndarray) -> list[Any]:
        if x.shape[-1] != len(tables[0]):
            raise DataError(
                f"last dimension is {x.shape[-1]}; the statistics have {len(tables[0])}: give the embodiment's own width"
            )
        return [torch.as_tensor(t, device=x.device) for t in tables] if isinstance(x, torch.Tensor) else list(tables)
