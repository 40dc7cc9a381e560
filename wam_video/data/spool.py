"""Encoded recordings on their way into shards: the units of a conversion by tasks, each on disk whole or not at all.

A conversion that many processes or machines share is cut into units of consecutive recordings, by the recipe alone and not
by who is at work. Whoever encodes a unit puts it into `<output>.spool/` under its number; once all are there, `assemble`
hands them to the writer in the source's order, so the shards have the same bytes as those of one process. A unit that is
there is never done again.
"""

import fcntl
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import IO, Any

from wam_video.data.convert import check_replaceable, put_all, put_in_place
from wam_video.data.encode import EncodedClip, EncodedEpisode, WriterConfig
from wam_video.data.manifest import Manifest, load_manifest
from wam_video.data.refine import RefineConfig
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.sources import SkippedEpisode, open_source
from wam_video.data.writer import ShardWriter
from wam_video.errors import DataError
from wam_video.log import progress

_RECIPE, _RECORDING = "recipe.json", "recording.json"
_UNIT = re.compile(r"unit-(\d+)\.tar")

Item = EncodedEpisode | SkippedEpisode


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a task on another machine must know."""

    source: str
    """Folder or file, which every machine must see under this name."""
    format: str
    writer: WriterConfig
    recordings: int
    per_unit: int = 16
    """Recordings in a unit: what a task that dies has to do again."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the source."""
    refining: Mapping[str, Any] = field(default_factory=dict)
    """What is done to the recordings: what differs from the defaults of `refine.RefineConfig`."""

    @property
    def units(self) -> int:
        """How many there are."""
        return -(-self.recordings // self.per_unit)

    def episodes(self, unit: int) -> Iterator[Any]:
        """Yield the recordings of a unit, none of them decoded, and the source's own notes with each."""
        source = open_source(self.source, self.format, **self.options)
        first = unit * self.per_unit
        for item in islice(source.episodes(), first, min(first + self.per_unit, self.recordings)):
            yield item, source.notes


class Spool:
    """The folder of a conversion under way.

    Args:
        output: Where the shards are to be.
    """

    def __init__(self, output: Path | str) -> None:
        self.output = Path(output)
        self.folder = self.output.with_name(self.output.name + ".spool")

    @property
    def logs(self) -> Path:
        """Where the executor writes what its tasks say."""
        return self.folder / "logs"

    def open(self, recipe: Recipe) -> None:
        """Make the folder, or go on with one of the same recipe.

        Raises:
            DataError: It is of another recipe, or can't be written.
        """
        wanted = json.loads(json.dumps(asdict(recipe)))
        if self.under_way:
            found = asdict(self.recipe())
            differing = sorted(key for key in wanted if json.loads(json.dumps(found[key])) != wanted[key])
            if differing:
                raise DataError(
                    f"{str(self.folder)!r} holds a conversion that was begun with another {', '.join(differing)}; "
                    "give the same again to go on, or remove that folder"
                )
            return
        if self.finished():
            raise DataError(f"{str(self.folder)!r} holds units of which nothing says what they are; remove that folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # of a conversion that ended: its marks would have the tasks of this one left out
            shutil.rmtree(self.logs, ignore_errors=True)
            self._put(_RECIPE, (json.dumps(wanted, indent=1) + "\n").encode())
        except OSError as error:
            raise DataError(f"can't write {str(self.folder)!r}: {error.strerror}; give another --output") from error

    @property
    def under_way(self) -> bool:
        """Whether a conversion was begun here and has not ended."""
        return (self.folder / _RECIPE).is_file()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes of this machine out, until the block or this process ends, however it ends.

        Raises:
            DataError: Another process is in, or the folder can't be written.
        """
        path = self.folder / ".lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = path.open("wb")
        except OSError as error:
            raise DataError(f"can't write {str(self.folder)!r}: {error.strerror}; give another --output") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DataError(
                    f"another process converts to {str(self.output)!r} now; wait for it or stop it, or give another --output"
                ) from error
            yield

    def recipe(self) -> Recipe:
        """Return what the units are made by.

        Raises:
            DataError: There is no conversion under way, or its recipe can't be read.
        """
        try:
            raw = json.loads((self.folder / _RECIPE).read_text(encoding="utf-8"))
            return Recipe(**{**raw, "writer": WriterConfig(**raw["writer"])})
        except FileNotFoundError as error:
            raise DataError(f"{str(self.output)!r}: no conversion by tasks is under way there") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{self.folder / _RECIPE} can't be read ({error}); remove the folder, begin again"
            ) from error

    def finished(self) -> set[int]:
        """Return the units that are there."""
        found = (_UNIT.fullmatch(path.name) for path in self.folder.glob("unit-*.tar"))
        return {int(match[1]) for match in found if match}

    def remove_halves(self) -> None:
        """Remove what processes that were killed have left unfinished; for who is `alone`."""
        for path in self.folder.glob(".unit-*"):
            path.unlink(missing_ok=True)

    def write(self, unit: int, items: Iterable[Item]) -> None:
        """Put a unit there.

        Raises:
            DataError: The disk is full, or the folder can't be written; then nothing of the unit is kept.
        """
        # another process may be doing the same unit: the last one wins, with the same bytes
        partial = self.folder / f".unit-{unit:06d}.{os.uname().nodename}-{os.getpid()}"
        try:
            with partial.open("wb") as file:
                _pack(file, items)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.folder / _name(unit))
        except OSError as error:
            raise DataError(
                f"unit {unit} can't be written to {str(self.folder)!r}: {error.strerror}; make room, and start again"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def read(self, unit: int) -> Iterator[Item]:
        """Yield the recordings of a unit.

        Raises:
            DataError: It is not there, or was cut short.
        """
        path = self.folder / _name(unit)
        try:
            with tarfile.open(path, mode="r:") as tar:
                members = iter(tar)
                for entry in members:
                    yield _item(_content(tar, entry), lambda: _content(tar, next(members)))
        except (OSError, tarfile.TarError, ValueError, KeyError, TypeError, StopIteration, RuntimeError) as error:
            raise DataError(f"{str(path)!r} can't be read ({error}); remove it, and start again") from error

    def _put(self, name: str, content: bytes) -> None:
        partial = self.folder / f".{name}"
        partial.write_bytes(content)
        partial.replace(self.folder / name)


def assemble(spool: Spool, *, overwrite: bool = False) -> Manifest:
    """Write the shards of a conversion whose units are all there, and remove the units; the logs stay.

    Args:
        spool: Of the conversion.
        overwrite: Replace a folder of shards that is at the output.

    Raises:
        DataError: Units are missing, the output exists, or the disk is full; the units stay.
    """
    recipe = spool.recipe()
    check_replaceable(spool.output, overwrite)
    if missing := sorted(set(range(recipe.units)) - spool.finished()):
        raise DataError(
            f"{len(missing)} of {recipe.units} units of {str(spool.output)!r} are not done, the first is {missing[0]}; "
            "start the conversion again to have them done"
        )
    items = (item for unit in range(recipe.units) for item in spool.read(unit))
    built = spool.folder / "shards"
    for leftover in (built, built.with_name(built.name + ".partial")):  # of an assembling that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with ShardWriter(built, recipe.writer) as writer:
        shown = progress(items, total=recipe.recordings, what="recordings into shards")
        put_all(writer, shown, RefineConfig(**recipe.refining))
    put_in_place(built, spool.output)
    for unit in range(recipe.units):
        (spool.folder / _name(unit)).unlink()
    (spool.folder / _RECIPE).unlink()
    return load_manifest(spool.output)


def _pack(file: IO[bytes], items: Iterable[Item]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, item in enumerate(items):
            for name, content in _members(item):
                entry = tarfile.TarInfo(f"{number:06d}/{name}")
                entry.size = len(content)
                tar.addfile(entry, BytesIO(content))


def _name(unit: int) -> str:
    return f"unit-{unit:06d}.tar"


def _members(item: Item) -> Iterator[tuple[str, bytes]]:
    """Yield what one recording is in a unit: a description, then the members that it lists, in this order."""
    if isinstance(item, SkippedEpisode):
        yield _RECORDING, json.dumps({"skipped": asdict(item)}).encode()
        return
    clips = [
        {"key": c.key, "num_frames": c.num_frames, "num_actions": c.num_actions, "members": list(c.members)}
        for c in item.clips
    ]
    facts = {"episode_id": item.episode_id, "embodiment": asdict(item.embodiment), "notes": list(item.notes)}
    yield _RECORDING, json.dumps({**facts, "clips": clips}).encode()
    for number, clip in enumerate(item.clips):
        for name, content in clip.members.items():
            yield f"{number}/{name}", content


def _item(description: bytes, next_member: Any) -> Item:
    facts = json.loads(description)
    if "skipped" in facts:
        return SkippedEpisode(**facts["skipped"])
    clips = [
        EncodedClip(
            key=clip["key"],
            members={name: next_member() for name in clip["members"]},
            num_frames=clip["num_frames"],
            num_actions=clip["num_actions"],
        )
        for clip in facts["clips"]
    ]
    return EncodedEpisode(
        episode_id=facts["episode_id"],
        embodiment=EmbodimentSpec.from_dict(facts["embodiment"]),
        clips=tuple(clips),
        notes=tuple(facts["notes"]),
    )


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(entry)
    if file is None:
        raise ValueError(f"{entry.name} is no file")
    content = file.read()
    if len(content) != entry.size:
        raise ValueError(f"{entry.name} is cut short")
    return content
