"""Where recordings come from: the protocol of a source, and how one is found by name or by looking at a path.

A source is a class of `data_pipelines/<name>` or of any installed package that declares an entry point in the group
`wam_video.sources`. It parses a format and yields episodes; cutting, encoding and validating is the writer's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from wam_video.data.schema import Episode
from wam_video.errors import ConfigError, WamError, one_of

ENTRY_POINT_GROUP = "wam_video.sources"

BUILT_IN = {
    "aloha": "data_pipelines.aloha:AlohaSource",
    "calvin": "data_pipelines.calvin:CalvinSource",
    "irasim": "data_pipelines.irasim:IRASimSource",
    "lerobot": "data_pipelines.lerobot:LeRobotSource",
    "metaworld": "data_pipelines.metaworld:MetaWorldSource",
    "pusht": "data_pipelines.pusht:PushTSource",
    "rlds": "data_pipelines.rlds:RldsSource",
    "robomimic": "data_pipelines.robomimic:RobomimicSource",
    "umi": "data_pipelines.umi:UmiSource",
    "video": "data_pipelines.video:VideoSource",
    "webdataset": "data_pipelines.webdataset:WebDatasetSource",
}
"""Found even when the package runs from a plain checkout that was never installed."""


@dataclass(frozen=True, kw_only=True)
class SkippedEpisode:
    """A recording that can't be used; the manifest keeps its name and the reason."""

    episode_id: str
    reason: str


@runtime_checkable
class Source(Protocol):
    """A dataset in a foreign format, read lazily.

    `__init__(path, **options)` raises `ConfigError` for an unknown option and `DataError` for a dataset that can't be
    read at all; one bad recording among others is a `SkippedEpisode` instead.
    """

    name: ClassVar[str]
    """What `--format` calls it."""
    looks_like: ClassVar[str]
    """One line for the message when no source recognises a path: what this one needs to see."""

    @classmethod
    def matches(cls, path: str | Path) -> bool:
        """Return whether this source can read `path`, by a look at names only."""
        ...

    def episodes(self) -> Iterator[Episode | SkippedEpisode]:
        """Yield every recording once, always in the same order, holding at most one in memory."""
        ...

    @property
    def len_hint(self) -> int | None:
        """How many items `episodes` will yield, if that is known."""
        ...

    @property
    def licence(self) -> str:
        """Terms that the dataset itself states; empty if it states none."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Oddities of the dataset as a whole, for the manifest; those of one recording are in `Episode.notes`."""
        ...


def source_targets() -> dict[str, str]:
    """Return `module:Class` of each source by name: the built-in ones and those of installed packages."""
    found = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINT_GROUP)}
    return dict(sorted({**BUILT_IN, **found}.items()))


def source_class(name: str) -> type[Source]:
    """Import and return the source called `name`.

    Raises:
        ConfigError: There is no such source, or its package can't be imported.
    """
    targets = source_targets()
    if name not in targets:
        raise ConfigError(one_of("--format", name, ["auto", *targets]))
    module, _, attribute = targets[name].partition(":")
    try:
        return getattr(import_module(module), attribute)
    except WamError:
        raise
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"source {name!r} ({targets[name]}) can't be imported: {error}; install what it needs or give another --format"
        ) from error


def detect(path: str | Path) -> type[Source]:
    """Return the one source that recognises `path`.

    Raises:
        ConfigError: None or several of them do, or nothing is there.
    """
    classes, broken = [], []
    for name in source_targets():
        try:
            classes.append(source_class(name))
        except WamError as error:  # a source whose package is missing must not hide the others
            broken.append(f"{name} ({error})")
    matching = [candidate for candidate in classes if candidate.matches(path)]
    if len(matching) > 1:  # many a dataset holds videos, which the plain ones would claim too
        matching = [candidate for candidate in matching if not getattr(candidate, "last_resort", False)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        names = ", ".join(candidate.name for candidate in matching)
        raise ConfigError(f"source {str(path)!r} can be read as {names}; choose one with --format")
    if not Path(path).exists():
        raise ConfigError(f"source {str(path)!r} does not exist; give a dataset folder or file")
    known = "; ".join(f"{candidate.name}: {candidate.looks_like}" for candidate in classes)
    unavailable = f" Not available: {'; '.join(broken)}." if broken else ""
    raise ConfigError(
        f"source {str(path)!r} is of no known format. Known: {known}.{unavailable} Convert it to one of these or write a source"
    )


def open_source(path: str | Path, format_name: str = "auto", **options: Any) -> Source:
    """Open the dataset at `path` with the source `format_name`, or with the one that recognises it.

    Args:
        path: A folder or file; what it must hold is the source's business.
        format_name: A name from `source_targets` or `auto`.
        options: Of that source, e.g. `views`; None means not given.

    Raises:
        ConfigError: Unknown format or option, or no source recognises the path.
        DataError: The dataset can't be read.
    """
    chosen = detect(path) if format_name == "auto" else source_class(format_name)
    return chosen(path, **{key: value for key, value in options.items() if value is not None})  # type: ignore[call-arg]
