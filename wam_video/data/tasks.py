"""A conversion as tasks of datatrove: processes of this machine, a Slurm array or a Ray cluster encode its units.

Datatrove starts the tasks, keeps their logs and starts again those that did not end; what is finished is decided by the units
themselves (`spool.Spool`), so that a task which died after its last write is not done twice. With Slurm and Ray the shards are
assembled by one more task that waits for the others. Datatrove hands its tasks over as pickles of its own, which nobody but
it reads.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from wam_video.data.convert import check_replaceable, encode_recording, with_notes
from wam_video.data.executors import chosen, executor_class, launch
from wam_video.data.manifest import Manifest
from wam_video.data.refine import RefineConfig
from wam_video.data.spool import Item, Recipe, Spool, assemble
from wam_video.errors import DataError
from wam_video.log import progress

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


@dataclass(frozen=True)
class Part:
    """A task of another command, in a process of its own: the share `--part I/N` of its work."""

    command: tuple[str, ...]
    """A module of this library, and its arguments."""

    def __call__(self, _data: object, rank: int = 0, world_size: int = 1) -> None:
        """Do it.

        Raises:
            DataError: The command failed; the message is its own.
        """
        call = [sys.executable, "-m", *self.command, "--part", f"{rank}/{world_size}"]
        done = subprocess.run(call, check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            told = [line for line in done.stderr.splitlines() if line.strip()] or [f"it ended with {done.returncode}"]
            raise DataError(f"part {rank} of {world_size}: {told[-1].removeprefix('error: ')}")


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
    executor_class("local")
    check_replaceable(output, overwrite)
    spool = Spool(output)
    with spool.alone():
        spool.open(recipe)
        spool.remove_halves()
        if missing := set(range(recipe.units)) - spool.finished():
            _forget(spool, missing)
            told = f"{recipe.units} units of {str(spool.output)!r}"
            step = {"EncodeUnit": [str(spool.output)]}
            child = _Child(step, tasks=recipe.units, workers=min(workers, len(missing)), logs=spool.logs)
            child.watch(spool.finished, recipe.units, "units", told)
        manifest = assemble(spool, overwrite=overwrite)
        shutil.rmtree(spool.folder)
    return manifest


def run_parts(
    part: Part,
    logs: Path,
    name: str,
    *,
    parts: int,
    options: Mapping[str, str],
    done: Callable[[], set[str]] = set,
    total: int = 0,
) -> None:
    """Run all parts of a command here, or hand them to a cluster. What is finished is the command's own business.

    Args:
        part: The command.
        logs: Folder of what the tasks say; removed after work that was done here.
        name: A key of `executors.EXECUTORS`.
        parts: How many there are, all at a time.
        options: Of the executor of a cluster; see `submit`.
        done: Names what is finished, for the progress of work here.
        total: Of those.

    Raises:
        MissingDependencyError: datatrove is not installed.
        ConfigError: As `submit` does.
        DataError: A part failed, or the cluster refuses them.
    """
    executor, given = chosen(name, options)
    if name == "local":
        child = _Child({"Part": [list(part.command)]}, tasks=parts, workers=parts, logs=logs)
        child.watch(done, total, "shards", f"{total} shards")
        shutil.rmtree(logs, ignore_errors=True)
        return
    tasks = executor(pipeline=[part], tasks=parts, workers=parts, logging_dir=str(logs), skip_completed=False, **given)
    launch(tasks, name)


class _Child:
    """Tasks of this machine under a process of their own, whose chatter goes to a file."""

    def __init__(self, step: Mapping[str, Sequence[Any]], *, tasks: int, workers: int, logs: Path) -> None:
        """Start them."""
        try:
            logs.mkdir(parents=True, exist_ok=True)
            self._logs, self._log = logs, logs / "executor.log"
            with self._log.open("ab") as chatter:
                self._begin = chatter.tell()
                request = json.dumps({"step": step, "tasks": tasks, "workers": workers, "logs": str(logs)})
                command = [sys.executable, "-m", "wam_video.data.tasks", request]
                self._child = subprocess.Popen(command, stdout=chatter, stderr=chatter, start_new_session=True)
        except OSError as error:
            raise DataError(f"can't write {str(logs)!r}: {error.strerror}; give another --output") from error

    def watch(self, done: Callable[[], set[Any]], total: int, what: str, told: str) -> None:
        """Show how much is done until all tasks have ended; end them if this is interrupted.

        Raises:
            DataError: One of them failed.
        """
        try:
            for _ in progress(_appearing(done, self._child), total=total, what=what):
                pass
        finally:
            if self._child.poll() is None:
                os.killpg(self._child.pid, signal.SIGTERM)
            self._child.wait()
        if self._child.returncode:
            raise DataError(
                f"encoding stopped after {len(done())} of {told}{_reason(self._log, self._begin)}. More stands in "
                f"{self._log} and in {self._logs / 'logs'}; start it again to go on"
            )


def _reason(log: Path, begin: int) -> str:
    """Return what a task said at its end, if it was one of our errors."""
    with log.open("rb") as chatter:
        chatter.seek(max(begin, log.stat().st_size - _TAIL_BYTES))
        lines = chatter.read().decode(errors="replace").splitlines()
    told = [line.partition(": ")[2] for line in lines if line.startswith("wam_video.errors.")]
    return f": {told[-1]}" if told else ""


def _appearing(done: Callable[[], set[Any]], child: "subprocess.Popen[bytes]") -> Iterator[Any]:
    seen: set[Any] = set()
    running = True
    while running:
        running = child.poll() is None
        found = done() - seen
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
    check_replaceable(output, overwrite)
    executor, given = chosen(name, options)
    spool = Spool(output)
    began = not spool.under_way
    spool.open(recipe)
    _forget(spool, set(range(recipe.units)) - spool.finished())
    units = executor(
        pipeline=[EncodeUnit(str(output))], tasks=recipe.units, workers=workers, logging_dir=str(spool.logs), **given
    )
    named = "job_name" in signature(executor).parameters
    last = {**given, "job_name": f"{given.get('job_name', 'units')}_assemble"} if named else given
    assembling = executor(
        pipeline=[Assemble(str(output), overwrite)],
        tasks=1,
        depends=units,
        logging_dir=str(spool.logs / "assemble"),
        **last,
    )
    try:
        launch(assembling, name)
    except DataError:
        if began:
            shutil.rmtree(spool.folder, ignore_errors=True)
        raise


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


def _forget(spool: Spool, units: Iterable[int]) -> None:
    """Take away datatrove's marks of units that are not there, or it would leave them out."""
    for unit in units:
        (spool.logs / "completions" / f"{unit:05d}").unlink(missing_ok=True)


def _die_with(parent: int) -> None:
    """End this process group once the parent is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.killpg(0, signal.SIGKILL)


def main(request: str) -> None:
    """Run tasks; `_Child` starts this in a process of its own."""
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    asked = json.loads(request)
    ((name, fields),) = asked["step"].items()
    # of the module by its name, not of the script that this is: tasks in other processes must find it
    module = import_module("wam_video.data.tasks")
    step = module.Part(tuple(fields[0])) if name == "Part" else module.EncodeUnit(*fields)
    options = {"tasks": asked["tasks"], "workers": asked["workers"], "logging_dir": asked["logs"]}
    with suppress(KeyboardInterrupt):
        executor_class("local")(pipeline=[step], skip_completed=name != "Part", **options).run()


if __name__ == "__main__":
    main(sys.argv[1])
