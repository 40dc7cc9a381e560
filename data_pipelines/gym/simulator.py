"""The only module that imports gymnasium for environments that are named by the user."""

from importlib import import_module
from typing import Any

from wam_video.errors import ConfigError, MissingDependencyError


def make(env_id: str, imports: tuple[str, ...], arguments: dict[str, Any]) -> Any:
    """Make a gymnasium environment.

    Args:
        env_id: Its registered name.
        imports: Packages that register it.
        arguments: Of its constructor.

    Raises:
        MissingDependencyError: gymnasium is not installed.
        ConfigError: A package can't be imported, or there is no such environment.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise MissingDependencyError(error.name or "gymnasium", "sim", "--env gym:ID") from error
    for name in imports:
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"environment 'gym:{env_id}' needs {name!r}, which can't be imported: {error}; install it"
            ) from error
    try:
        return gymnasium.make(env_id, disable_env_checker=True, **arguments)
    except Exception as error:  # whatever the environment's own constructor raises
        raise ConfigError(f"environment 'gym:{env_id}' can't be made: {str(error).splitlines()[0]}") from error
