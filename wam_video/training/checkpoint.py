"""Checkpoints that are whole or not there: the protocol by which the processes of a run write one.

`<output>/checkpoints/step-0000500/` holds safetensors and JSON, nothing else, and `COMMIT.json`: the size and the sha256 of each.
What is in them is `state`'s business; `saving` has the processes keep to this order, in which each step is on the disk before
the next begins. At the names in quotes (`POINTS`) tests end the process.

1. The main process makes a fresh `step-N.tmp/`. "begun"
2. Every process writes its files, hashing what it writes ("in a file"), syncs each ("before marker"), and leaves a marker
   `process-K.done` with their sizes and hashes; or, where it can't write, `process-K.failed`, and the save is off.
3. The main process sees all markers ("before COMMIT"), removes them, writes `COMMIT.json` and syncs the folder. "before rename"
4. It renames the folder to `step-N/` and syncs the folder above. From here on the checkpoint is there. "before latest"
   (A damaged `step-N` of before is moved to `step-N.old`, "in replace", and comes back if the process ends in between.)
5. It writes `latest`, a line with the folder's name, aside ("in latest") and renames it. "before prune"
   A hint for people and scripts: a run that starts takes the newest committed checkpoint whose hashes agree.
6. It removes what is older than the last `keep_last`: renamed to `step-M.gone` first ("in prune"), so that a half removed
   checkpoint never looks like one. What can't be removed is told, stays, and is tried again at the next save.

A process may die anywhere: what has no `COMMIT.json` and the plain name is no checkpoint, and leftovers (`.tmp`, `.gone`) are
removed by the next start or save. One run at a time has the folder (`durable.FolderLock`).
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from wam_video.data.settings import DatasetConfig
from wam_video.errors import CheckpointError, ConfigError
from wam_video.log import get_logger
from wam_video.training.config import FREE_ON_RESUME
from wam_video.training.durable import FolderLock, file_hash, sync, write_json, write_tensors, write_text

COMMIT = "COMMIT.json"
PROTOCOL = 1
"""Of the commit; `STATE_VERSION` is that of what a checkpoint holds."""
STATE_VERSION = 2

POINTS = (
    *(
        "begun",
        "in a file",
        "before marker",
        "before COMMIT",
        "before rename",
        "in replace",
        "before latest",
        "in latest",
    ),
    *("before prune", "in prune"),
)
"""Names of the places in a save at which a `FaultPoint` is called, in their order."""

FaultPoint = Callable[[str], None]
"""Called at each of `POINTS` with its name; tests end or slow the process there."""

Contents = Mapping[str, Tensor] | Mapping[str, Any]
"""Of a file: tensors by name (`.safetensors`), or what is JSON-able (`.json`)."""

Files = Mapping[str, Contents]
"""The files of one process, by name."""

Report = Mapping[str, Any]
"""Of one process on its part of a save: `files` with the size and hash of each, or `error`."""

_POLL_S = (0.01, 0.5)
"""Pauses between looks for markers: the first, and the longest after doubling."""

_LOG = get_logger(__name__)


def no_fault(point: str) -> None:
    """Do nothing at a fault point, as every real run does."""


class CheckpointStore:
    """The checkpoints of a run on disk; knows nothing of what is in them.

    Args:
        folder: Of the checkpoints.
        keep_last: Checkpoints kept; 0 keeps all.
        fault: Called at `POINTS`.
    """

    def __init__(self, folder: Path, *, keep_last: int, fault: FaultPoint = no_fault) -> None:
        self._folder = folder.absolute()  # whatever becomes of the working directory
        self._keep_last = keep_last
        self._fault = fault
        self._lock = FolderLock(self._folder / ".lock")
        self._damaged: set[int] = set()

    def path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self._folder / f"step-{step:07d}"

    def steps(self) -> list[int]:
        """Return the steps of which there is a committed checkpoint, damaged ones included, oldest first."""
        found = [path.parent.name.removeprefix("step-") for path in self._folder.glob(f"step-*/{COMMIT}")]
        return sorted(int(name) for name in found if name.isdecimal())

    def open(self) -> None:
        """Take the folder for this run and clear up what a dead one left (on the main process).

        Raises:
            CheckpointError: Another run has it, or it can't be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._sweep()
            if self.steps() and self._pointed() != self.path(self.steps()[-1]).name:
                self._point(self.steps()[-1])
        except OSError as error:
            raise CheckpointError(
                f"checkpoints can't be written to {str(self._folder)!r} ({error.strerror}); make room or give it write "
                "permission, or give another output_dir"
            ) from error

    def close(self) -> None:
        """Give the folder back."""
        self._lock.release()

    def distrust(self, step: int) -> None:
        """Remember that a checkpoint is damaged: it does not count among those that are kept."""
        self._damaged.add(step)

    def begin(self, step: int) -> None:
        """Make a new empty folder to write a checkpoint into (on the main process)."""
        self._sweep()
        self._writing(step).mkdir(parents=True)
        self._fault("begun")

    def write(self, step: int, rank: int, files: Files) -> None:
        """Write a process's files and its marker.

        Raises:
            OSError: A file can't be written; call `give_up`.
        """
        folder, facts = self._writing(step), {}
        if not folder.is_dir():
            raise OSError(
                f"{folder} is not there on process {rank}; output_dir must be shared by all machines of the run"
            )
        for name, contents in files.items():
            write = write_tensors if Path(name).suffix == ".safetensors" else write_json
            facts[name] = write(folder / name, contents, lambda: self._fault("in a file"))
        self._fault("before marker")
        write_json(folder / f"process-{rank:05d}.done", {"files": facts})

    def give_up(self, step: int, rank: int, files: Collection[str], error: OSError) -> None:
        """Tell the main process that this one could not write its files, after making room for the message."""
        folder = self._writing(step)
        try:
            for name in files:
                (folder / name).unlink(missing_ok=True)
            write_json(folder / f"process-{rank:05d}.failed", {"error": str(error)})
        except OSError as more:
            _LOG.error("process %d can't even tell that its part of step %d failed: %s", rank, step, more)

    def gather(self, step: int, ranks: Collection[int], deadline: Callable[[], float]) -> dict[int, Report]:
        """Wait until all these processes have left a marker; return a report for each.

        Args:
            step: The checkpoint's.
            ranks: The processes.
            deadline: Says until when, in seconds of `time.monotonic`; who has not reported by then has failed.
        """
        reports: dict[int, Report] = {}
        pause, longest = _POLL_S
        while True:
            in_time = time.monotonic() < deadline()
            for rank in set(ranks) - reports.keys():
                for kind in ("done", "failed"):
                    marker = self._writing(step) / f"process-{rank:05d}.{kind}"
                    if marker.is_file():
                        reports[rank] = json.loads(marker.read_text())
            if len(reports) == len(ranks) or not in_time:
                late = {"error": "its files have not come in time (save_timeout_s)"}
                return dict.fromkeys(ranks, late) | reports
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def commit(self, step: int, reports: Mapping[int, Report]) -> None:
        """Put in place what the processes have written, point to it, and remove the oldest (on the main process).

        Raises:
            OSError: A process has failed, or the disk does not take it; call `abandon`.
        """
        for rank, report in sorted(reports.items()):
            if "error" in report:
                raise OSError(f"process {rank}: {report['error']}")
        files = {name: facts for report in reports.values() for name, facts in report["files"].items()}
        source, target = self._writing(step), self.path(step)
        self._fault("before COMMIT")
        for marker in source.glob("process-*.done"):
            marker.unlink()
        write_json(source / COMMIT, {"protocol": PROTOCOL, "step": step, "files": files})
        sync(source)
        self._fault("before rename")
        if target.exists():
            os.replace(target, target.with_suffix(".old"))
            self._fault("in replace")
        os.replace(source, target)
        sync(self._folder)
        self._damaged.discard(step)
        self._fault("before latest")
        self._point(step)
        self._fault("before prune")
        self._prune(step)

    def abandon(self, step: int) -> None:
        """Remove what was written of a checkpoint that will not be (on the main process)."""
        self._remove(self._writing(step))

    def _writing(self, step: int) -> Path:
        return self.path(step).with_suffix(".tmp")

    def _pointed(self) -> str:
        latest = self._folder / "latest"
        return latest.read_text().strip() if latest.is_file() else ""

    def _point(self, step: int) -> None:
        write_text(self._folder / "latest", self.path(step).name + "\n", lambda: self._fault("in latest"))
        sync(self._folder)

    def _prune(self, step: int) -> None:
        """Remove older checkpoints than the one just committed, but for the newest good ones."""
        self._sweep()
        if not self._keep_last:
            return
        older = [other for other in self.steps() if other < step]
        good = [other for other in older if other not in self._damaged]
        kept = good[len(good) - self._keep_last + 1 :] if self._keep_last > 1 else []
        for other in older:
            if other not in kept:
                gone = self.path(other).with_suffix(".gone")
                os.replace(self.path(other), gone)
                self._fault("in prune")
                self._remove(gone)

    def _sweep(self) -> None:
        """Remove what a dead run, a failed save or a failed removal left; but what was to be replaced and was not comes back."""
        for old in self._folder.glob("step-*.old"):
            if not old.with_suffix("").exists():
                os.replace(old, old.with_suffix(""))
        for pattern in ("step-*.tmp", "step-*.gone", "step-*.old"):
            for path in self._folder.glob(pattern):
                self._remove(path)

    def _remove(self, folder: Path) -> None:
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            _LOG.warning("%s can't be removed (%s); the next save tries again", folder, error)


def verify(folder: Path, *, rank: int = 0, num_processes: int = 1) -> str | None:
    """Return what is wrong with a committed checkpoint, naming the file, or None.

    Args:
        folder: The checkpoint.
        rank: Of several processes that share the work, which one this is: it hashes every `num_processes`-th file.
        num_processes: How many share it.

    Raises:
        CheckpointError: It was written by a newer version.
    """
    try:
        commit = json.loads((folder / COMMIT).read_text())
        protocol, files = commit.get("protocol", 1), sorted(commit["files"].items())
        expected = [(str(name), int(facts["bytes"]), str(facts["sha256"])) for name, facts in files]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{COMMIT}: {type(error).__name__}: {error}"
    if protocol > PROTOCOL:
        raise CheckpointError(
            f"checkpoint {folder} has protocol {protocol}; this library reads up to {PROTOCOL}; update wam-video"
        )
    for number, (name, size, digest) in enumerate(expected):
        path = folder / name
        if path.name != name or path.suffix not in (".safetensors", ".json"):
            return f"{name!r} is neither safetensors nor JSON, so it is not ours"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if number % num_processes == rank and file_hash(path) != digest:
            return f"{name} does not have the sha256 in {COMMIT}"
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's state.json.

    Raises:
        CheckpointError: It was written by a newer version.
    """
    state = json.loads((folder / "state.json").read_text())
    if state["version"] > STATE_VERSION:
        raise CheckpointError(
            f"checkpoint {folder} has version {state['version']}; this library reads up to {STATE_VERSION}; update wam-video"
        )
    return state


def check_same_run(
    saved: Mapping[str, Any], current: Mapping[str, Any], defaults: Mapping[str, Any], folder: Path
) -> None:
    """Refuse to continue a run under another configuration, but for keys that change no update.

    Args:
        saved: The configuration in the checkpoint; keys that a later version added stand at their defaults.
        current: The configuration now.
        defaults: That of a run without any settings; a dataset's are `DatasetConfig`'s.
        folder: The checkpoint, for the message.

    Raises:
        ConfigError: The message names the first key, both values and what to do.
    """
    new = _flatten(current)
    datasets = dict.fromkeys(saved.get("data", {}).get("datasets", {}), asdict(DatasetConfig()))
    usual = _flatten(defaults) | _flatten({"data": {"datasets": datasets}})
    old = {key: value for key, value in usual.items() if key in new} | _flatten(saved)
    for key in sorted(old.keys() | new.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in FREE_ON_RESUME)
        if old.get(key) != new.get(key) and not free:
            raise ConfigError(
                f"{key} is {new.get(key)!r}, but the run in {str(folder.parent.parent)!r} was started with {old.get(key)!r}; "
                "set it back, or give another output_dir (init_from=FOLDER starts a new run from exported weights)"
            )


def replace_folder(source: Path, target: Path) -> None:
    """Put a finished folder in the place of another; a reader sees the old one or the new one."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(source, target)
    shutil.rmtree(old, ignore_errors=True)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix.removesuffix("."): tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.")
    return flat
