"""Datatrove's executors: which there are, their options as a command line gives them, and how they start tasks."""

import shutil
import subprocess
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any

from wam_video.errors import ConfigError, DataError, MissingDependencyError, first_line, one_of

EXECUTORS = {"local": "LocalPipelineExecutor", "slurm": "SlurmPipelineExecutor", "ray": "RayPipelineExecutor"}
_OURS = ("pipeline", "tasks", "workers", "logging_dir", "depends", "depends_job_id", "skip_completed")


def executor_class(name: str) -> Any:
    """Return an executor of datatrove, a key of `EXECUTORS`.

    Raises:
        MissingDependencyError: datatrove is not installed.
    """
    try:
        return getattr(import_module(f"datatrove.executor.{name}"), EXECUTORS[name])
    except ImportError as error:
        raise MissingDependencyError("datatrove", "scale", "conversion by tasks") from error


def chosen(name: str, options: Mapping[str, str]) -> tuple[Any, dict[str, Any]]:
    """Return an executor's class, and its further arguments as it takes them.

    Raises:
        MissingDependencyError: datatrove is not installed.
        ConfigError: An option is unknown, reserved or missing, or the cluster's commands are not on this machine.
    """
    executor = executor_class(name)
    if name == "local":
        check_local(options)
        return executor, {}
    known = signature(executor).parameters
    allowed = [key for key in known if key not in _OURS]
    for key in options:
        if key not in allowed:
            raise ConfigError(one_of(f"--executor-option of {name}", key, allowed))
    needed = [key for key in allowed if known[key].default is known[key].empty and key not in options]
    if needed:
        raise ConfigError(f"--executor {name} needs --executor-option {needed[0]}=...; see datatrove's executor")
    if name == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError("--executor slurm needs the command sbatch, which is not on this machine; run it where it is")
    if name == "ray" and find_spec("ray") is None:
        raise ConfigError("--executor ray needs the package ray, which is not installed: pip install ray")
    return executor, {key: _typed(name, key, value, known[key].default) for key, value in options.items()}


def check_local(options: Mapping[str, str]) -> None:
    """Refuse options, of which the executor of this machine has none.

    Raises:
        ConfigError: There are some.
    """
    if options:
        raise ConfigError(f"--executor-option is {', '.join(options)}; there are none for local, but --workers")


def launch(tasks: Any, name: str) -> None:
    """Start the tasks of an executor.

    Raises:
        DataError: The cluster refuses them.
    """
    try:
        tasks.run()
    except (OSError, subprocess.CalledProcessError, ImportError) as error:
        raise DataError(
            f"--executor {name} refuses the tasks: {_said(error)}; mend the options and try again"
        ) from error


def _said(error: Exception) -> str:
    """Return what went wrong on one line; what a cluster's command itself says goes straight to the terminal."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"{error.cmd[0]} ended with {error.returncode}, its words stand above"
    return first_line(error)


def _typed(executor: str, key: str, value: Any, like: Any) -> Any:
    """Return an option of the command line as what the executor's own default is."""
    if isinstance(like, bool) and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if not isinstance(like, int | float):
        return value
    try:
        return type(like)(value) if not isinstance(like, bool) else {}[value]
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"--executor-option {key} of {executor} is {value!r}; it must be like its default, {like!r}"
        ) from error
