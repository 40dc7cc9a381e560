"""One folder of shards into another, sample by sample: the same tars with other members, resumable after any interruption.

A finished shard is a tar and, after it, a small record; what has no record is made again. `<output>.partial` becomes
`<output>` when all shards are there.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from wam_video.data.manifest import Manifest, SampleEntry, ShardEntry, load_manifest, save_manifest
from wam_video.data.normalize import compute_stats, save_stats
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.writer import ShardFile, count_samples
from wam_video.errors import DataError
from wam_video.log import progress

_PLAN = "rewrite.json"

Rewrite = Callable[[ShardEntry, SampleEntry], tuple[SampleEntry, Mapping[str, bytes]] | None]
"""From a sample to its new entry and members; None leaves it out. The same input gives the same bytes."""


def rewrite_shards(
    source: Path,
    output: Path,
    rewrite: Rewrite,
    embodiments: Mapping[str, EmbodimentSpec],
    options: Mapping[str, Any],
) -> Manifest:
    """Write every sample of a folder anew; splits, shards and their names stay.

    Args:
        source: Folder of shards.
        output: Folder to make, or to go on with.
        rewrite: Makes the new sample.
        embodiments: Of the new samples.
        options: Added to the manifest's; what is made depends on them and on the source alone.

    Returns:
        The new manifest.

    Raises:
        DataError: `output` exists, the partial folder is of other inputs, a sample can't be read, or the disk is full.
    """
    manifest = load_manifest(source)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise DataError(f"output {str(output)!r} exists already; remove it or choose another folder")
    partial = output.with_name(output.name + ".partial")
    plan = {"shards": {shard.name: shard.sha256 for shard in manifest.shards}, "options": dict(options)}
    try:
        partial.mkdir(parents=True, exist_ok=True)
        _check_plan(partial / _PLAN, plan)
        entries = [
            _shard(partial, shard, rewrite)
            for shard in progress(manifest.shards, total=len(manifest.shards), what="shards")
        ]
        shards = tuple(entry for entry in entries if entry.samples)
        made = replace(
            manifest,
            embodiments=dict(embodiments),
            options={**manifest.options, **options},
            shards=shards,
            counts=count_samples(shards, embodiments),
        )
        save_manifest(made, partial)
        save_stats(compute_stats(partial), partial)
        for path in (
            partial / _PLAN,
            *(partial / f"{shard.name}.json" for shard in manifest.shards),
            *partial.glob("*.tmp"),
        ):
            path.unlink(missing_ok=True)
        for entry in entries:
            if not entry.samples:
                (partial / entry.name).unlink()
        if output.is_dir():
            output.rmdir()
        partial.rename(output)
    except OSError as error:
        raise DataError(
            f"can't write to {str(partial)!r}: {error.strerror or error}; make room and start again: finished shards are kept"
        ) from error
    return made


def _check_plan(path: Path, plan: Mapping[str, Any]) -> None:
    if not path.is_file():
        _write_whole(path, plan)
    if json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(plan)):
        raise DataError(f"{str(path.parent)!r} was begun with another source or options; remove it to begin again")


def _shard(partial: Path, shard: ShardEntry, rewrite: Rewrite) -> ShardEntry:
    """Make one shard, unless its record says that it is there."""
    record = partial / f"{shard.name}.json"
    if record.is_file():
        raw = json.loads(record.read_text(encoding="utf-8"))
        return ShardEntry(**{**raw, "samples": tuple(SampleEntry(**sample) for sample in raw["samples"])})
    unfinished = partial / f"{Path(shard.name).stem}.{os.getpid()}.tmp"
    file = ShardFile(unfinished, shard.split)
    try:
        for sample in progress(shard.samples, total=len(shard.samples), what=f"{shard.name}: clips"):
            made = rewrite(shard, sample)
            if made is not None:
                file.append(*made)
        entry = replace(file.close(), name=shard.name)
        unfinished.replace(partial / shard.name)
    finally:
        file.abandon()
        unfinished.unlink(missing_ok=True)
    _write_whole(record, asdict(entry))
    return entry


def _write_whole(path: Path, content: Any) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, sort_keys=True), encoding="utf-8")
    temporary.replace(path)
