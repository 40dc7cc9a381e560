"""A source's episodes into a folder of shards: encoding in several processes, the same bytes whatever their number."""

import multiprocessing
import shutil
import signal
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from wam_video.data.duplicates import Duplicates
from wam_video.data.encode import EncodedEpisode, WriterConfig
from wam_video.data.manifest import MANIFEST_NAME, Manifest, load_manifest
from wam_video.data.refine import NOTHING, RefineConfig, refine
from wam_video.data.schema import EmbodimentSpec, Episode
from wam_video.data.sources import SkippedEpisode, Source
from wam_video.data.spans import encode_spans
from wam_video.data.video import keep_picture_memory
from wam_video.data.writer import ShardWriter, output_taken
from wam_video.errors import ConfigError, DataError
from wam_video.log import get_logger, progress

_AHEAD = 2
"""Episodes that wait for each process, so that none is idle and memory stays bounded."""

_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a conversion would read, without decoding or writing anything."""

    episodes: int = 0
    frames: int = 0
    """As recorded, of the first view."""
    actions: int = 0
    seconds: float = 0.0
    embodiments: dict[str, EmbodimentSpec] = field(default_factory=dict)
    prompts: int = 0
    """Different instructions."""
    notes: dict[str, int] = field(default_factory=dict)
    skipped: tuple[SkippedEpisode, ...] = ()


def plan(source: Source, *, limit: int | None = None, refining: RefineConfig = NOTHING) -> Plan:
    """Read the source's tables and headers and count what is there; see `Plan`.

    Raises:
        ConfigError: `limit` is not positive.
        DataError: The source has no episodes.
    """
    frames = actions = episodes = 0
    seconds = 0.0
    embodiments: dict[str, EmbodimentSpec] = {}
    prompts: set[str] = set()
    notes: Counter[str] = Counter()
    skipped = []
    for recording in _limited(source, limit):
        item = refine(recording, refining, look=False)
        if isinstance(item, SkippedEpisode):
            skipped.append(item)
            continue
        episodes += 1
        times = next(iter(item.views.values())).times
        frames += len(times)
        seconds += len(times) / item.embodiment.fps
        actions += 0 if item.actions is None else len(item.actions)
        embodiments.setdefault(item.embodiment.name, item.embodiment)
        prompts.update(item.prompts)
        notes.update({*source.notes, *item.notes})
    if not episodes and not skipped:
        raise DataError(f"source {source.name!r} has no episodes; check the path and the options")
    return Plan(
        episodes=episodes,
        frames=frames,
        actions=actions,
        seconds=seconds,
        embodiments=embodiments,
        prompts=len(prompts),
        notes=dict(sorted(notes.items())),
        skipped=tuple(skipped),
    )


def convert(
    source: Source,
    output: Path | str,
    config: WriterConfig,
    *,
    workers: int = 1,
    limit: int | None = None,
    overwrite: bool = False,
    refining: RefineConfig = NOTHING,
) -> Manifest:
    """Write the episodes of `source` as shards with manifest and statistics; the folder appears whole or not at all.

    Args:
        source: Where the recordings come from.
        output: Folder to make.
        config: What the shards look like.
        workers: Processes that decode and encode; the bytes do not depend on their number.
        limit: Stop after so many recordings, skipped ones included.
        overwrite: Replace a folder of shards that is there already, once the new one is complete.
        refining: What is done to the recordings, and which of them are kept.

    Returns:
        The manifest that was written. A recording that can't be used is under `skipped` there, with the reason.

    Raises:
        ConfigError: `workers` or `limit` is not positive.
        DataError: The output exists, no recording can be used, or the disk is full; then nothing is left behind.
    """
    output = Path(output)
    if workers < 1:
        raise ConfigError(f"workers is {workers}; it must be at least 1")
    check_limit(limit)
    check_replaceable(output, overwrite)
    target = output.with_name(output.name + ".replacing") if output_taken(output) else output
    with ShardWriter(target, config) as writer:
        items = _limited(source, limit)
        total = source.len_hint if limit is None else min(limit, source.len_hint or limit)
        encoded = _encoded(items, config, refining, workers)
        noted = (with_notes(item, source.notes) for item in encoded)
        put_all(writer, progress(noted, total=total, what="episodes"), refining)
    if target is not output:
        put_in_place(target, output)
    return load_manifest(output)


def put_all(
    writer: ShardWriter, items: Iterable[EncodedEpisode | SkippedEpisode], refining: RefineConfig = NOTHING
) -> None:
    """Write encoded recordings in their order, but for near-duplicates if they are not wanted.

    Raises:
        DataError: As `ShardWriter.add` does.
    """
    seen = Duplicates() if refining.drop_duplicates else None
    for item in items:
        if isinstance(item, SkippedEpisode):
            _log.warning("skipped %s: %s", item.episode_id, item.reason)
            writer.skip(item.episode_id, item.reason)
        elif seen is not None and (earlier := seen.earlier(item)) is not None:
            writer.skip(item.episode_id, f"a near-duplicate of {earlier}")
            writer.note("near_duplicates_left_out")
        else:
            writer.add(item)


def check_limit(limit: int | None) -> None:
    """Refuse a number of recordings that is not positive.

    Raises:
        ConfigError: It is not.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1")


def check_replaceable(output: Path, overwrite: bool) -> None:
    """Refuse an output that is taken, unless it is a folder of shards that is to be replaced.

    Raises:
        DataError: It is taken.
    """
    if not output_taken(output):
        return
    if not overwrite:
        raise DataError(f"output {str(output)!r} exists already; give another folder, or --overwrite to replace shards")
    if not (output / MANIFEST_NAME).is_file():
        raise DataError(f"output {str(output)!r} exists and is no folder of shards; --overwrite replaces only shards")


def put_in_place(built: Path, output: Path) -> None:
    """Move a complete folder of shards to `output`; what was there goes only once the new one is in its place.

    Raises:
        DataError: The folders can't be moved.
    """
    old = output.with_name(output.name + ".replaced")
    try:
        shutil.rmtree(old, ignore_errors=True)
        if output.exists():
            output.rename(old)
        built.rename(output)
    except OSError as error:
        raise DataError(
            f"can't put {str(built)!r} in place of {str(output)!r}: {error.strerror}; move it there by hand"
        ) from error
    shutil.rmtree(old, ignore_errors=True)


def _limited(source: Source, limit: int | None) -> Iterator[Episode | SkippedEpisode]:
    check_limit(limit)
    return islice(source.episodes(), limit)


def _encoded(
    items: Iterable[Episode | SkippedEpisode], config: WriterConfig, refining: RefineConfig, workers: int
) -> Iterator[EncodedEpisode | SkippedEpisode]:
    """Yield the items encoded, in their order."""
    if workers == 1:
        for item in items:
            yield encode_recording(item, config, refining)
        return
    # spawned, not forked: decoders hold threads and locks that a fork would copy in a broken state
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupt)
    waiting: deque[Future[EncodedEpisode | SkippedEpisode]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(encode_recording, item, config, refining))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            f"one of {workers} encoding processes died, most likely for lack of memory; give fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def with_notes(encoded: EncodedEpisode | SkippedEpisode, notes: Iterable[str]) -> EncodedEpisode | SkippedEpisode:
    """Return a recording with the notes of its source beside its own."""
    if isinstance(encoded, SkippedEpisode):
        return encoded
    return replace(encoded, notes=tuple(sorted({*notes, *encoded.notes})))


def encode_recording(
    item: Episode | SkippedEpisode, config: WriterConfig, refining: RefineConfig = NOTHING
) -> EncodedEpisode | SkippedEpisode:
    """Encode one recording, or say why it can't be.

    Raises:
        ConfigError: As `refine.refine` does: what is asked can't be done to this dataset.
    """
    keep_picture_memory()
    try:
        wanted = refine(item, refining)
        return wanted if isinstance(wanted, SkippedEpisode) else encode_spans(wanted, config)
    except ConfigError:
        raise
    except DataError as error:
        reason = str(error).removeprefix(f"episode {item.episode_id!r}: ")
        return SkippedEpisode(episode_id=item.episode_id, reason=reason)


def _ignore_interrupt() -> None:
    """Leave Ctrl-C to the parent, which stops its processes itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
