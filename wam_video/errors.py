"""The error family of the library: each message says what, the value, what is allowed, what to do.

The command line prints one line and exits with 2 for `WamError` (the request was wrong). Anything else is our own fault.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class WamError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(WamError, ValueError):
    """A request or a configuration that can't be carried out."""


class DataError(WamError, ValueError):
    """A recording, shard, manifest or statistics file that can't be used."""


class CheckpointError(WamError, RuntimeError):
    """A checkpoint folder that is incomplete, altered or of another model."""


class ToldError(WamError):
    """Another process of the run refuses and prints why; the command line of this one prints nothing, and ends alike."""


class MissingDependencyError(WamError, ImportError):
    """An optional package that is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: pip install 'wam-video[{extra}]'"
        )


def one_of(what: str, value: object, allowed: Iterable[str]) -> str:
    """Return the message for a value outside a closed set, with the nearest allowed one.

    >>> one_of("mode", "polcy", ["policy", "video"])
    "mode is 'polcy'; allowed: policy, video. Did you mean 'policy'?"
    """
    names = sorted(str(name) for name in allowed)
    near = get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{what} is {value!r}; allowed: {', '.join(names) or 'none'}.{hint}"


def first_line(error: BaseException) -> str:
    """Return an exception's message cut to one short line."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
