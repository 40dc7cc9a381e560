"""Checkpoints that are whole or not there: written aside, hashed, committed by a rename; and what is in them.

`<output>/checkpoints/step-0000500/` holds `model.safetensors`, `ema.safetensors`, `optimizer[-rank].safetensors`,
`rng-<rank>.json`, `state.json` (step, next sample, config, data fingerprint) and, written last, `COMMIT.json` with the size and the
sha256 of each. No file of a checkpoint is a pickle.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wam_video.data.settings import DatasetConfig
from wam_video.errors import CheckpointError, ConfigError
from wam_video.log import get_logger
from wam_video.training.config import FREE_ON_RESUME

COMMIT = "COMMIT.json"
STATE_VERSION = 1

_LOG = get_logger(__name__)


class CheckpointStore:
    """The checkpoints of a run on disk; knows nothing of what is in them."""

    def __init__(self, folder: Path, *, keep_last: int) -> None:
        self._folder = folder
        self._keep_last = keep_last

    def path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self._folder / f"step-{step:07d}"

    def begin(self, step: int) -> Path:
        """Return a new empty folder to write a checkpoint into (on the main process)."""
        folder = self.path(step).with_suffix(".tmp")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def writing(self, step: int) -> Path:
        """Return the folder that `begin` has made (on the other processes)."""
        return self.path(step).with_suffix(".tmp")

    def commit(self, step: int) -> Path:
        """Hash what was written, put it in place at once, and remove the oldest checkpoints."""
        source, target = self.writing(step), self.path(step)
        files = {p.name: {"bytes": p.stat().st_size, "sha256": file_hash(p)} for p in sorted(source.iterdir())}
        write_json(source / COMMIT, {"step": step, "files": files})
        for path in source.iterdir():
            _fsync(path)
        _fsync(source)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(source, target)
        _fsync(self._folder)
        self._prune()
        return target

    def latest(self) -> Path | None:
        """Return the newest checkpoint that is committed and whose files agree with their hashes; None if there is none."""
        for folder in reversed(self._committed()):
            fault = verify(folder)
            if fault is None:
                return folder
            _LOG.warning("checkpoint %s is damaged (%s); trying the one before it", folder, fault)
        return None

    def _committed(self) -> list[Path]:
        return sorted(p.parent for p in self._folder.glob(f"step-*/{COMMIT}") if p.parent.suffix != ".tmp")

    def _prune(self) -> None:
        if self._keep_last:
            for folder in self._committed()[: -self._keep_last]:
                shutil.rmtree(folder, ignore_errors=True)


def verify(folder: Path) -> str | None:
    """Return what is wrong with a committed checkpoint, naming the file, or None."""
    try:
        files = json.loads((folder / COMMIT).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{COMMIT}: {error}"
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {facts['bytes']}"
        if file_hash(path) != facts["sha256"]:
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


def file_hash(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is whole or not there."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, path)


def replace_folder(source: Path, target: Path) -> None:
    """Put a finished folder in the place of another; a reader sees the old one or the new one."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(source, target)
    shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix.removesuffix("."): tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.")
    return flat
