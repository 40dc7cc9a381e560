"""A conversion as tasks of datatrove: processes of this machine, a Slurm array or a Ray cluster encode its units.

Datatrove starts the tasks, keeps their logs and starts again those that did not end; what is finished is decided by the units
themselves (`spool.Spool`), so that a task which died after its last write is not done twice. With Slurm and Ray the shards are
assembled by one more task that waits for the others. Datatrove hands its tasks over as pickles of its own, which nobody but
it reads.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

from wam_video.data.convert import check_replaceable, encode_recording, with_notes
from wam_video.data.manifest import Manifest
from wam_video.data.refine import RefineConfig
from wam_video.data.spool import Item, Recipe, Spool, assemble
from wam_video.errors import ConfigError, DataError, MissingDependencyError, first_line, one_of
from wam_video.log import progress

EXECUTORS = {"local": "LocalPipelineExecutor", "slurm": "SlurmPipelineExecutor", "ray": "RayPipelineExecutor"}
_OURS = ("pipeline", "tasks", "workers", "logging_dir", "depends", "depends_job_id", "skip_completed")
_POLL_S = 0.5
_TAIL_BYTES = 1 << 20


@dataclass(frozen=True)
class EncodeUnit:
    """A task: encode the unit of its number, unless it is there."""

    output: str

    def __call__(self, _data: object, rank: int = 0, world_size: int = 1) -> None:
        """Do it; datatrove calls this in the task's process."""
        spool = Spool(self.output)
        if rank not in spool.finished():
            spool.write(rank, _encoded(spool.recipe(), rank))


@dataclass(frozen=True)
class Assemble:
    """The last task: the units into shards."""

    output: str
    overwrite: bool = False

    def __call__(self, _data: object, rank: int = 0, world_size: int = 1) -> None:
        """Do it."""
        assemble(Spool(self.output), overwrite=self.overwrite)


def _encoded(recipe: Recipe, unit: int) -> Iterator[Item]:
    refining = RefineConfig(**recipe.refining)
    for recording, notes in recipe.episodes(unit):
        yield with_notes(encode_recording(recording, recipe.writer, refining), notes)


def run_here(recipe: Recipe, output: Path, *, workers: int, overwrite: bool = False) -> Manifest:
    """Encode all units with processes of this machine, and assemble the shards.

    Started again after it was stopped in whatever way, it does what is missing.

    Args:
        recipe: What to convert.
        output: The folder of shards to make.
        workers: Units that are encoded at a time; the bytes do not depend on it.
        overwrite: Replace a folder of shards that is there, once the new one is complete.

    Raises:
        MissingDependencyError: datatrove is not installed.
        DataError: A task failed, the output exists or can't be written, or another process converts to it now.
    """
    _executor("local")
    check_replaceable(output, overwrite)
    spool = Spool(output)
    with spool.alone():
        spool.open(recipe)
        spool.remove_halves()
        if missing := set(range(recipe.units)) - spool.finished():
            _forget(spool, missing)
            _encode_here(spool, recipe.units, min(workers, len(missing)))
        manifest = assemble(spool, overwrite=overwrite)
        shutil.rmtree(spool.folder)
    return manifest


def _encode_here(spool: Spool, units: int, workers: int) -> None:
    """Run the tasks in a process of its own, whose chatter goes to a file, and show how many units are there."""
    spool.logs.mkdir(parents=True, exist_ok=True)
    log = spool.logs / "executor.log"
    command = [sys.executable, "-m", "wam_video.data.tasks", str(spool.output), str(units), str(workers)]
    with log.open("ab") as chatter:
        begin = chatter.tell()
        child = subprocess.Popen(command, stdout=chatter, stderr=chatter, start_new_session=True)
    try:
        for _ in progress(_appearing(spool, child), total=units, what="units"):
            pass
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
        child.wait()
    if child.returncode:
        raise DataError(
            f"encoding stopped after {len(spool.finished())} of {units} units{_reason(log, begin)}. More stands in {log} and "
            f"in {spool.logs / 'logs'}; start it again to go on"
        )


def _reason(log: Path, begin: int) -> str:
    """Return what a task said at its end, if it was one of our errors."""
    with log.open("rb") as chatter:
        chatter.seek(max(begin, log.stat().st_size - _TAIL_BYTES))
        lines = chatter.read().decode(errors="replace").splitlines()
    told = [line.partition(": ")[2] for line in lines if line.startswith("wam_video.errors.")]
    return f": {told[-1]}" if told else ""


def _appearing(spool: Spool, child: "subprocess.Popen[bytes]") -> Iterator[int]:
    seen: set[int] = set()
    running = True
    while running:
        running = child.poll() is None
        found = spool.finished() - seen
        yield from sorted(found)
        seen |= found
        if running:
            time.sleep(_POLL_S)


def submit(
    recipe: Recipe, output: Path, name: str, *, workers: int, options: Mapping[str, str], overwrite: bool = False
) -> None:
    """Hand the units and the assembling to a cluster.

    Args:
        recipe: What to convert; every machine must see its source.
        output: The folder of shards to make, which every machine must see.
        name: `slurm` or `ray`.
        workers: Units at a time; -1: all that the cluster takes.
        options: Further arguments of datatrove's executor, e.g. `partition` and `time` of Slurm.
        overwrite: Replace a folder of shards that is there, once the new one is complete.

    Raises:
        MissingDependencyError: datatrove is not installed, or what its executor needs.
        ConfigError: An option is unknown, reserved or missing, or the cluster's commands are not on this machine.
        DataError: The output exists, another conversion is under way there, or the cluster refuses the tasks.
    """
    executor = _executor(name)
    check_replaceable(output, overwrite)
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
    given = {key: _typed(name, key, value, known[key].default) for key, value in options.items()}
    spool = Spool(output)
    began = not spool.under_way
    spool.open(recipe)
    _forget(spool, set(range(recipe.units)) - spool.finished())
    units = executor(
        pipeline=[EncodeUnit(str(output))], tasks=recipe.units, workers=workers, logging_dir=str(spool.logs), **given
    )
    last = {**given, "job_name": f"{given.get('job_name', 'units')}_assemble"} if "job_name" in known else given
    assembling = executor(
        pipeline=[Assemble(str(output), overwrite)],
        tasks=1,
        depends=units,
        logging_dir=str(spool.logs / "assemble"),
        **last,
    )
    try:
        assembling.run()
    except (OSError, subprocess.CalledProcessError, ImportError) as error:
        if began:
            shutil.rmtree(spool.folder, ignore_errors=True)
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


def status(output: Path) -> str:
    """Say how far a conversion by tasks is.

    Raises:
        DataError: None is under way there.
    """
    spool = Spool(output)
    recipe = spool.recipe()
    done = spool.finished()
    newest = max((path.stat().st_mtime for path in spool.folder.glob("unit-*.tar")), default=None)
    since = "" if newest is None else f", the last one {max(time.time() - newest, 0) / 60:.0f} minutes ago"
    missing = sorted(set(range(recipe.units)) - done)
    lines = [f"{output}: {len(done)} of {recipe.units} units of up to {recipe.per_unit} recordings are done{since}"]
    if missing:
        lines.append(f"missing: {_ranges(missing)}; logs: {spool.logs / 'logs'}")
    else:
        lines.append("all are there; the shards are being assembled, or start the conversion again to have it done")
    return "\n".join(lines)


def _ranges(numbers: Iterable[int], most: int = 8) -> str:
    """Write rising numbers as ranges, at most some of them."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    told = [str(a) if a == b else f"{a}-{b}" for a, b in found[:most]]
    return ", ".join(told) + (", ..." if len(found) > most else "")


def _executor(name: str) -> Any:
    try:
        return getattr(import_module(f"datatrove.executor.{name}"), EXECUTORS[name])
    except ImportError as error:
        raise MissingDependencyError("datatrove", "scale", "conversion by tasks") from error


def _forget(spool: Spool, units: Iterable[int]) -> None:
    """Take away datatrove's marks of units that are not there, or it would leave them out."""
    for unit in units:
        (spool.logs / "completions" / f"{unit:05d}").unlink(missing_ok=True)


def _die_with(parent: int) -> None:
    """End this process group once the parent is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.killpg(0, signal.SIGKILL)


def main(output: str, units: int, workers: int) -> None:
    """Run the tasks of a conversion; `run_here` starts this in a process of its own."""
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    with suppress(KeyboardInterrupt):
        _executor("local")(
            pipeline=[EncodeUnit(output)], tasks=units, workers=workers, logging_dir=str(Spool(output).logs)
        ).run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
