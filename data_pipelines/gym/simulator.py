"""The only module that imports gymnasium for environments that are named by the user."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from wam_video.errors import ConfigError, MissingDependencyError


def make(env_id: str, imports: Sequence[str], arguments: dict[str, Any], wrappers: Sequence[str] = ()) -> Any:
    """Make a gymnasium environment.

    Args:
        env_id: Its registered name.
        imports: Packages that register it.
        arguments: Of its constructor.
        wrappers: `MODULE:CLASS` of what is put around it, innermost first.

    Raises:
        MissingDependencyError: gymnasium is not installed.
        ConfigError: A package can't be imported, or there is no such environment or wrapper.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise MissingDependencyError(error.name or "gymnasium", "sim", "--env gym:ID") from error
    for name in [*imports, *(wrapper.partition(":")[0] for wrapper in wrappers)]:
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"environment 'gym:{env_id}' needs {name!r}, which can't be imported: {error}; install it"
            ) from error
    try:
        environment = gymnasium.make(env_id, disable_env_checker=True, **arguments)
        for wrapper in wrappers:
            module, _, name = wrapper.partition(":")
            environment = getattr(import_module(module), name)(environment)
        return environment
    except Exception as error:  # whatever the environment's own constructor raises
        raise ConfigError(f"environment 'gym:{env_id}' can't be made: {str(error).splitlines()[0]}") from error
