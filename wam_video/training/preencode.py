"""Shards of pixels to shards of latents: every window through the frozen codec once, before training.

A finished shard is a tar and, after it, a small record beside it; what has no record is made again, and the same inputs give
the same bytes. So the work can be killed anywhere, and be cut over processes that share nothing but the output folder.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from wam_video.data.latents import OPTION, Encoding, to_npy
from wam_video.data.manifest import (
    MANIFEST_NAME,
    Manifest,
    SampleEntry,
    ShardEntry,
    Skipped,
    load_manifest,
    save_manifest,
)
from wam_video.data.normalize import STATS_NAME, compute_stats, load_stats, save_stats
from wam_video.data.reader import Clip, SampleError, read_sample
from wam_video.data.shard_set import ClipCache, ShardSet
from wam_video.data.store import StoreConfig, as_store
from wam_video.data.windows import WindowConfig, cut_window
from wam_video.data.writer import ShardFile, count_samples
from wam_video.errors import ConfigError, DataError
from wam_video.log import get_logger, progress
from wam_video.models.fingerprint import codec_hash
from wam_video.models.video_codec import Codec, encode
from wam_video.tensors import to_unit_range
from wam_video.training.teacher import FrameTeacher

_LOG = get_logger(__name__)
_PLAN = "encode.json"


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """What is encoded, and which share of it here."""

    window: WindowConfig
    """The run's: latents are of windows."""
    every: int = 1
    """Encode every so manieth window of a clip; 1: all, as training from pixels would see them."""
    batch_size: int = 8
    """Windows that pass the codec at once; with some codecs the last bit of a latent depends on it."""
    part: int = 0
    num_parts: int = 1
    """This process makes every `num_parts`-th shard, from number `part` on."""
    keep_video: bool = False
    """Store the pixels beside the latents, for evaluation and generation from the same folder."""
    store: StoreConfig = field(default_factory=StoreConfig)

    def __post_init__(self) -> None:
        for what in ("every", "batch_size", "num_parts"):
            if getattr(self, what) < 1:
                raise ConfigError(f"{what} is {getattr(self, what)}; it must be at least 1")
        if not 0 <= self.part < self.num_parts:
            raise ConfigError(f"part is {self.part} of {self.num_parts}; allowed: 0 to {self.num_parts - 1}")


class Encoder:
    """Encode a folder of shards, shard by shard."""

    def __init__(
        self, source: str, output: Path, codec: Codec, config: EncodeConfig, *, teacher: FrameTeacher | None = None
    ) -> None:
        """Prepare; `<output>.partial` is made, or taken up where it was left. With a teacher, its features are stored too.

        Raises:
            DataError: The source can't be read, `output` exists, or the partial folder is of other inputs.
        """
        self._source, self._output, self._codec, self._config = as_store(source, config.store), output, codec, config
        self._teacher = teacher
        self._partial = output.with_name(output.name + ".partial")
        self._manifest = load_manifest(self._source)
        self._sets = _open_splits(source, self._manifest, config)
        window = next(iter(self._sets.values())).window
        about = {key: value for key, value in codec.config.items() if not key.startswith("_")}
        self._encoding = Encoding.of(
            codec_hash(codec),
            json.loads(json.dumps(about, default=str)),
            window,
            every=config.every,
            keep_video=config.keep_video,
            teacher=None if teacher is None else teacher.about,
        )
        self._made = config.num_parts > 1 and self._is_made()
        if self._made:  # by the other parts, before this one began
            return
        if output.exists():
            raise DataError(f"output {str(output)!r} exists already; remove it or choose another folder")
        self._check_plan()

    def run(self) -> Manifest | None:
        """Make the shards of this part; return the manifest if with them all are there, or None if other parts still work.

        Raises:
            DataError: The disk is full, or no clip could be encoded.
        """
        if self._made:
            return load_manifest(self._output)
        mine = self._manifest.shards[self._config.part :: self._config.num_parts]
        todo = [shard for shard in mine if not self._record(shard.name).is_file()]
        try:
            for shard in progress(todo, what="shards", total=len(todo)):
                self._encode_shard(shard)
            return self._finish()
        except OSError as error:
            raise DataError(
                f"can't write to {str(self._partial)!r}: {error.strerror or error}; make room and start again: finished "
                "shards are kept"
            ) from error

    def _is_made(self) -> bool:
        """Say whether the output holds what this would make."""
        if not (self._output / MANIFEST_NAME).is_file():
            return False
        made = load_manifest(self._output)
        wanted = json.loads(json.dumps(self._encoding.to_option()))
        same = made.options.get(OPTION) == wanted and made.dataset == self._manifest.dataset
        return same and {shard.name for shard in made.shards} <= {shard.name for shard in self._manifest.shards}

    def _check_plan(self) -> None:
        """Write down what is being made, or refuse to go on with something else."""
        facts = {
            "shards": {shard.name: shard.sha256 for shard in self._manifest.shards},
            "encoding": self._encoding.to_option(),
            "batch_size": self._config.batch_size,
        }
        path = self._partial / _PLAN
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                _write_json(path, facts)
        except OSError as error:
            raise DataError(
                f"can't write to {str(self._partial)!r}: {error.strerror or error}; make room, or give another output"
            ) from error
        if json.loads(path.read_text()) != json.loads(json.dumps(facts)):
            raise DataError(
                f"{str(self._partial)!r} was begun with another source, codec, window or options; remove it to begin again"
            )

    def _record(self, name: str) -> Path:
        return self._partial / f"{name}.json"

    def _encode_shard(self, shard: ShardEntry) -> None:
        shards = self._sets[shard.split]
        path = self._partial / shard.name
        # of this process alone: a second one on the same part must not write into the same file
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        file = ShardFile(unfinished, shard.split)
        skipped = []
        try:
            for number, sample in shards.clips_of(shard.name):
                try:
                    members = self._encode_sample(shards, number, shard, sample)
                except SampleError as error:
                    _LOG.warning("left out %s (%s): %s", sample.key, error.reason, error)
                    skipped.append(Skipped(episode_id=sample.episode_id, reason=f"{sample.key}: {error}"))
                    continue
                file.append(sample, members)
            entry = replace(file.close(), name=shard.name)
            unfinished.replace(path)
        finally:
            file.abandon()
            unfinished.unlink(missing_ok=True)
        _write_json(self._record(shard.name), {"shard": asdict(entry), "skipped": [asdict(s) for s in skipped]})

    def _encode_sample(self, shards: ShardSet, number: int, shard: ShardEntry, sample: SampleEntry) -> dict[str, bytes]:
        """Return the members of the new sample."""
        frames = shards.anchors(number)[:: self._config.every]
        clip = shards.load(number, ClipCache(0), "auto")
        kept = read_sample(self._source, shard, sample)
        views = [view for view in shards.spec(number).views[: shards.window.max_views] if view in clip.video]
        members = {name: data for name, data in kept.items() if self._config.keep_video or not name.endswith(".mp4")}
        kinds = ("latents",) if self._teacher is None else ("latents", "teacher")
        if not len(frames):  # too short for any window: it stays, for the statistics are of it, too
            return members | {
                f"{kind}.{view}.npy": to_npy(torch.zeros(0, 0, 0, 0, 0)) for kind in kinds for view in views
            }
        parts = [
            self._encode_windows(clip, chunk.tolist(), shards, views)
            for chunk in np.split(frames, range(self._config.batch_size, len(frames), self._config.batch_size))
        ]
        for kind, found in zip(kinds, zip(*parts, strict=True), strict=True):
            for place, view in enumerate(views):
                members[f"{kind}.{view}.npy"] = to_npy(torch.cat([rows[:, place] for rows in found]))
        return members

    @torch.no_grad()
    def _encode_windows(
        self, clip: Clip, frames: Sequence[int], shards: ShardSet, views: Sequence[str]
    ) -> tuple[torch.Tensor, ...]:
        """Return the latents of windows and, with a teacher, its features of them."""
        config = replace(shards.window, max_views=len(views))
        windows = [cut_window(clip, frame, config, views) for frame in frames]
        pixels = rearrange(torch.from_numpy(np.stack([w.video for w in windows])), "b v f h w c -> b v c f h w")
        device = next((p.device for p in self._codec.parameters()), torch.device("cpu"))
        latents = encode(self._codec, to_unit_range(pixels.to(device))).cpu()
        if self._teacher is None:
            return (latents,)
        mask = torch.from_numpy(np.stack([w.frame_mask for w in windows]))
        return latents, self._teacher.of_windows(pixels, mask).cpu()

    def _finish(self) -> Manifest | None:
        """Write the manifest and put the folder in its place, once, when no shard is missing."""
        import fcntl

        lock = self._output.with_name(f".{self._output.name}.lock")
        with lock.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if self._output.exists():  # another part was last, and is through
                return load_manifest(self._output)
            records = [self._record(shard.name) for shard in self._manifest.shards]
            if not all(record.is_file() for record in records):
                return None
            manifest = self._assemble([json.loads(record.read_text()) for record in records])
            save_manifest(manifest, self._partial)
            left_out = len(manifest.skipped) > len(self._manifest.skipped)
            stats = compute_stats(self._partial) if left_out else load_stats(self._source)
            save_stats(stats, self._partial)
            for path in (*records, self._partial / _PLAN, *self._partial.glob("*.tmp")):
                path.unlink(missing_ok=True)
            names = {shard.name for shard in manifest.shards} | {MANIFEST_NAME, STATS_NAME}
            for path in self._partial.iterdir():
                if path.name not in names:
                    path.unlink()
            self._partial.rename(self._output)
            lock.unlink(missing_ok=True)
            return manifest

    def _assemble(self, records: Sequence[dict[str, Any]]) -> Manifest:
        shards, skipped = [], list(self._manifest.skipped)
        for record in records:
            samples = tuple(SampleEntry(**sample) for sample in record["shard"]["samples"])
            if samples:
                shards.append(ShardEntry(**{**record["shard"], "samples": samples}))
            skipped += [Skipped(**entry) for entry in record["skipped"]]
        if not shards:
            shutil.rmtree(self._partial, ignore_errors=True)
            raise DataError(f"no clip of {self._source.path!r} could be encoded; run `wam-video data verify`")
        return replace(
            self._manifest,
            options={**self._manifest.options, OPTION: self._encoding.to_option()},
            shards=tuple(shards),
            counts=count_samples(shards, self._manifest.embodiments),
            skipped=tuple(skipped),
        )


def _open_splits(source: str, manifest: Manifest, config: EncodeConfig) -> dict[str, ShardSet]:
    """Return the splits of a folder of pixels.

    Raises:
        DataError: One holds no window, or the folder holds latents already.
    """
    if OPTION in manifest.options:
        raise DataError(f"{source!r} holds latents already; encode the folder of pixels that it was made from")
    if not manifest.splits:
        raise DataError(f"{source!r} is empty; convert it again")
    name, store = manifest.dataset, config.store
    return {split: ShardSet(name, source, split, config.window, store=store) for split in manifest.splits}


def _write_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is whole or not there."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, sort_keys=True))
    temporary.replace(path)
