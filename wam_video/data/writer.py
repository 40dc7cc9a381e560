"""Episodes to a folder of shards: all of it appears at once, whole, or not at all."""

import errno
import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wam_video.data.encode import EncodedEpisode, WriterConfig, config_options, encode_episode
from wam_video.data.manifest import Manifest, SampleEntry, ShardEntry, Skipped, hash_file, save_manifest
from wam_video.data.schema import EmbodimentSpec, Episode
from wam_video.errors import DataError

SPLITS = ("train", "val")


class ShardWriter:
    """Write episodes as shards into `<output>.partial`, which becomes `<output>` when the `with` block ends well.

    After any error, an interrupt or a full disk included, nothing is left. Encoding is the slow part: run the pure
    `encode_episode` in threads and `add` the results in order; the bytes are the same as from `write`.
    """

    def __init__(self, output: Path | str, config: WriterConfig) -> None:
        """Prepare to write; the folder is made on entry.

        Raises:
            DataError: `output`, or a partial folder beside it, exists already.
        """
        self.output, self.config = Path(output), config
        self._partial = self.output.with_name(self.output.name + ".partial")
        self._shards: dict[str, ShardFile] = {}
        self._done: list[ShardEntry] = []
        self._embodiments: dict[str, EmbodimentSpec] = {}
        self._episodes: dict[str, str] = {}
        self._skipped: list[Skipped] = []
        self._notes: Counter[str] = Counter()
        if output_taken(self.output):
            raise DataError(f"output {str(self.output)!r} exists already; remove it or choose another folder")
        if self._partial.exists():
            raise DataError(_under_way(self._partial))

    def __enter__(self) -> Self:
        with _disk(self._partial):
            try:  # whoever makes it is the one that writes: of two at once, the second is told
                self._partial.mkdir(parents=True)
            except FileExistsError as error:
                raise DataError(_under_way(self._partial)) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with _disk(self._partial):
                    self._finish()
        finally:
            for shard in self._shards.values():
                shard.abandon()
            shutil.rmtree(self._partial, ignore_errors=True)

    def write(self, episode: Episode) -> None:
        """Encode and add one recording.

        Raises:
            DataError: The recording can't be used (nothing of it was written, and writing may go on), or the disk is full.
        """
        self.add(encode_episode(episode, self.config))

    def add(self, encoded: EncodedEpisode) -> None:
        """Append an encoded recording to the shards of its split.

        Raises:
            DataError: Its id was there before, its embodiment differs from an earlier one of the same name, or the disk is full.
        """
        spec = encoded.embodiment
        if encoded.episode_id in self._episodes:
            raise DataError(f"episode id {encoded.episode_id!r} came twice; ids must be unique in a dataset")
        if self._embodiments.setdefault(spec.name, spec) != spec:
            known = self._embodiments[spec.name]
            raise DataError(
                f"episode {encoded.episode_id!r}: embodiment {spec.name!r} has other dims, rates or names than before "
                f"({spec} against {known}); give it another name, or set fps"
            )
        split = "val" if _hash01(encoded.episode_id) < self.config.val_fraction else "train"
        self._episodes[encoded.episode_id] = split
        self._notes.update(encoded.notes)
        with _disk(self._partial):
            for clip in encoded.clips:
                entry = SampleEntry(
                    key=clip.key,
                    offset=0,
                    bytes=0,
                    num_frames=clip.num_frames,
                    num_actions=clip.num_actions,
                    embodiment=spec.name,
                    episode_id=encoded.episode_id,
                )
                self._append(split, entry, clip.members)

    def note(self, text: str) -> None:
        """Count an oddity of one more recording, for the manifest."""
        self._notes[text] += 1

    def skip(self, episode_id: str, reason: str) -> None:
        """Record in the manifest that a recording was left out, and why."""
        self._skipped.append(Skipped(episode_id=episode_id, reason=reason))

    def _append(self, split: str, entry: SampleEntry, members: Mapping[str, bytes]) -> None:
        if split not in self._shards:
            number = sum(shard.split == split for shard in self._done)
            self._shards[split] = ShardFile(self._partial / f"{self.config.dataset}-{split}-{number:06d}.tar", split)
        shard = self._shards[split]
        shard.append(entry, members)
        if shard.size >= self.config.shard_bytes:
            self._close(split)

    def _close(self, split: str) -> None:
        self._done.append(self._shards[split].close())
        del self._shards[split]

    def _finish(self) -> None:
        if not self._episodes:
            why = (
                f" ({len(self._skipped)} skipped, the first because {self._skipped[0].reason})" if self._skipped else ""
            )
            raise DataError(f"no episode to write to {str(self.output)!r}{why}; check the source and its options")
        for split in list(self._shards):
            self._close(split)
        self._mend_splits()
        self._done.sort(key=lambda shard: shard.name)
        manifest = Manifest(
            dataset=self.config.dataset,
            converter=self.config.converter,
            options=config_options(self.config),
            embodiments=dict(sorted(self._embodiments.items())),
            shards=tuple(self._done),
            counts=count_samples(self._done, self._embodiments),
            skipped=tuple(self._skipped),
            notes=dict(sorted(self._notes.items())),
        )
        save_manifest(manifest, self._partial)
        from wam_video.data.normalize import compute_stats, save_stats

        save_stats(compute_stats(self._partial), self._partial)
        if self.output.is_dir():
            self.output.rmdir()
        self._partial.rename(self.output)

    def _mend_splits(self) -> None:
        """Give each wanted split at least one episode, which few episodes do not get from their hashes."""
        wanted = [
            s
            for s, share in zip(SPLITS, (1 - self.config.val_fraction, self.config.val_fraction), strict=True)
            if share > 0
        ]
        empty = [split for split in wanted if split not in self._episodes.values()]
        if not empty or len(self._episodes) < 2:
            return
        moved = (min if empty[0] == "val" else max)(self._episodes, key=lambda name: (_hash01(name), name))
        self._episodes[moved] = empty[0]
        old, self._done = self._done, []
        for shard in old:
            path = self._partial / shard.name
            path.rename(path.with_suffix(".old"))
        for shard in old:
            for entry in shard.samples:
                members = _read_back(self._partial / f"{Path(shard.name).stem}.old", entry)
                self._append(self._episodes[entry.episode_id], entry, members)
            (self._partial / f"{Path(shard.name).stem}.old").unlink()
        for split in list(self._shards):
            self._close(split)


def output_taken(output: Path) -> bool:
    """Return whether something is at `output` that shards can't be put in place of: anything but an empty folder."""
    return output.exists() and (not output.is_dir() or any(output.iterdir()))


def _under_way(partial: Path) -> str:
    return (
        f"{str(partial)!r} exists already: another conversion writes there, or one was killed; wait for it, or remove that "
        "folder if none is running"
    )


def count_samples(shards: Sequence[ShardEntry], embodiments: Mapping[str, EmbodimentSpec]) -> dict[str, Any]:
    """Return episodes, samples, frames, actions, seconds and bytes, per split and in all."""
    counts: dict[str, Any] = {}
    for split in (*SPLITS, "total"):
        samples = [e for shard in shards if split in (shard.split, "total") for e in shard.samples]
        counts[split] = {
            "episodes": len({e.episode_id for e in samples}),
            "samples": len(samples),
            "frames": sum(e.num_frames for e in samples),
            "actions": sum(e.num_actions for e in samples),
            "seconds": round(sum(e.num_frames / embodiments[e.embodiment].fps for e in samples), 3),
            "bytes": sum(e.bytes for e in samples),
        }
    return counts


class ShardFile:
    """One open tar whose members' offsets are noted as they are written."""

    def __init__(self, path: Path, split: str) -> None:
        """Open a new tar."""
        from webdataset.writer import TarWriter

        self._path, self._split = path, split
        self._file = path.open("wb")
        self._tar = TarWriter(self._file, user="", group="", mode=0o444, mtime=0, encoder=False)
        self._entries: list[SampleEntry] = []

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._tar.tarstream.offset

    def append(self, entry: SampleEntry, members: Mapping[str, bytes]) -> None:
        """Write one sample; offset and length of its entry are filled in."""
        offset = self.size
        self._tar.write({"__key__": entry.key, **members})
        placed = {**entry.__dict__, "offset": offset, "bytes": self.size - offset}
        self._entries.append(SampleEntry(**placed))

    def close(self) -> ShardEntry:
        """Finish the tar and return what the manifest says of it."""
        self._tar.close()
        self._file.close()
        size, digest = self._path.stat().st_size, hash_file(self._path)
        return ShardEntry(
            name=self._path.name, split=self._split, bytes=size, sha256=digest, samples=tuple(self._entries)
        )

    def abandon(self) -> None:
        """Let go of the file after an error; its buffers may no longer fit on the disk."""
        with suppress(OSError):
            self._tar.close()
        with suppress(OSError):
            self._file.close()


def _read_back(path: Path, entry: SampleEntry) -> dict[str, bytes]:
    from wam_video.data.reader import parse_members

    with path.open("rb") as file:
        file.seek(entry.offset)
        return parse_members(file.read(entry.bytes), entry.key, str(path))


def _hash01(name: str) -> float:
    """Return a number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Turn a failed write into one line that says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some space or choose another disk" if full else "check the folder and its permissions"
        raise DataError(
            f"can't write to {str(folder)!r}: {error.strerror or error}; {advice}. Nothing was kept"
        ) from error
