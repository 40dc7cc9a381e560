"""What every source does with its options and with names that can't stand in a shard."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from wam_video.errors import ConfigError, one_of

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Of what has none: every option is then an unknown one."""


def build_options(schema: type[C], source: str, options: Mapping[str, Any]) -> C:
    """Fill the frozen dataclass `schema` from options that may come as text from a command line.

    Raises:
        ConfigError: An option is unknown or its value can't be read as its type.
    """
    types = {f.name: f.type for f in fields(schema)}  # type: ignore[arg-type]
    values = {}
    for key, value in options.items():
        if key not in types:
            raise ConfigError(one_of(f"option of source {source!r}", key, types))
        values[key] = _convert(source, key, types[key], value)
    return schema(**values)


def parse_weights(what: str, entries: Sequence[str], allowed: Iterable[str]) -> dict[str, float]:
    """Return the weight of each name of `name=weight` entries; a bare name weighs 1.

    Raises:
        ConfigError: An unknown name, a weight that is no number >= 0, or nothing above 0.
    """
    names, weights = tuple(allowed), {}
    for entry in entries or ("",):
        name, _, weight = entry.partition("=")
        if name not in names:
            raise ConfigError(one_of(what, name, names))
        try:
            weights[name] = float(weight or 1.0)
        except ValueError:
            weights[name] = -1.0
        if not 0 <= weights[name] < math.inf:
            raise ConfigError(f"{what} is {entry!r}; write name=weight with a weight >= 0")
    if not sum(weights.values()) > 0:
        raise ConfigError(f"{what} has no weight above 0; give at least one")
    return weights


def safe_name(text: str, default: str = "unnamed") -> str:
    """Return `text` with everything that a shard's names can't hold (dots, spaces, ...) turned into `_`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_-") or default


def episode_name(*parts: str, limit: int = 60) -> str:
    """Return an episode id made of `parts`; a first part that is too long is cut and told apart by its hash.

    A shard's member name has 100 letters at most, and file names of tasks are long sentences.
    """
    first, rest = safe_name(parts[0]), [safe_name(part) for part in parts[1:]]
    room = limit - sum(len(part) + 1 for part in rest)
    if len(first) > room:
        digest = hashlib.sha256(first.encode()).hexdigest()[:8]
        first = f"{first[: max(room - 9, 1)].rstrip('_-')}-{digest}"
    return "-".join([first, *rest])


def _convert(source: str, key: str, kind: Any, value: Any) -> Any:
    if kind == tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(part.strip() for part in parts if part.strip())
    if kind is int:
        try:
            return int(str(value))
        except ValueError as error:
            raise ConfigError(f"option {key} of source {source!r} is {value!r}; it must be a whole number") from error
    if kind in (float, float | None):
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"option {key} of source {source!r} is {value!r}; it must be a number") from error
    return str(value)
