"""The cells of an ablation, run side by side: what is done is kept, what is half done goes on, what fails is told at the end."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wam_video.cli.ablate_spec import Plan
from wam_video.errors import ConfigError
from wam_video.log import get_logger

MARKER = "cell.json"
_LOG = get_logger(__name__)
_PRODUCT = {
    "train": "train/model/model_index.json",
    "evaluate": "evaluation/episodes.json",
    "rollout": "rollout/rollout.json",
}
"""Step -> the last file that it writes."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell that has no scores."""

    plan: Plan
    reason: str


def read_marker(plan: Plan) -> Mapping[str, Any]:
    """Return what is known of a cell: `hash`, `resolved`, and `seconds` by finished step; nothing of a new one.

    Raises:
        ConfigError: The folder was made from another configuration; the message names what differs.
    """
    path = plan.folder / MARKER
    if not path.is_file():
        return {}
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
        found, before = marker["hash"], marker["resolved"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} can't be read ({error}); remove the folder {str(plan.folder)!r}") from error
    if found != plan.digest:
        raise ConfigError(
            f"cell {plan.name} was made with other settings: {_differences(before, plan.resolved)}; set them back, give another "
            f"--output, or remove {str(plan.folder)!r}"
        )
    return marker


def is_finished(plan: Plan) -> bool:
    """Say whether every step of a cell is done; see `read_marker` for what it raises."""
    done = read_marker(plan).get("seconds", {})
    return all(step in done and (plan.folder / _PRODUCT[step]).is_file() for step in plan.commands)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], limit: int = 3) -> str:
    old, new = _flat(before), _flat(now)
    keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    told = [f"{key} was {old.get(key, 'not set')!r}, is {new.get(key, 'not set')!r}" for key in keys[:limit]]
    return ", ".join(told) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found


class Runner:
    """Runs cells; every step is a process of its own, whose words go to a file of the cell's folder."""

    def __init__(self, jobs: int, threads: int) -> None:
        """Run `jobs` cells side by side, with `threads` threads each."""
        self._jobs = jobs
        # unbuffered, so that the last line of a step's log is what it died of, not what it had still to print
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopping = False

    def run(self, plans: Sequence[Plan]) -> list[Failure]:
        """Run what is not finished and return what failed; a failing cell does not stop the others."""
        with ThreadPoolExecutor(self._jobs) as pool:
            futures = [pool.submit(self._cell, plan) for plan in plans]
            try:
                return [failure for future in futures if (failure := future.result()) is not None]
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Ask the running steps to stop, and start no more; a training saves a checkpoint first."""
        with self._lock:
            self._stopping = True
            for process in self._running:
                process.terminate()

    def _cell(self, plan: Plan) -> Failure | None:
        marker = dict(read_marker(plan))
        seconds = dict(marker.get("seconds", {}))
        plan.folder.mkdir(parents=True, exist_ok=True)
        for step in plan.commands:
            if step in seconds and (plan.folder / _PRODUCT[step]).is_file():
                continue
            self._mark(plan, seconds)
            started = time.monotonic()
            _LOG.info("%s: %s", plan.name, step)
            reason = self._step(plan, step)
            if reason:
                _LOG.warning("%s: %s", plan.name, reason)
                return Failure(plan=plan, reason=reason)
            seconds[step] = round(time.monotonic() - started, 1)
            self._mark(plan, seconds)
        _LOG.info("%s: finished (%s)", plan.name, ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items()))
        return None

    def _step(self, plan: Plan, step: str) -> str:
        """Run one step and return what went wrong, or nothing."""
        log = plan.folder / f"{step}.log"
        with log.open("ab") as words:
            words.write(f"$ {plan.shell(step)}\n".encode())
            words.flush()
            with self._lock:
                if self._stopping:
                    return f"{step} was not started: stopped"
                process = subprocess.Popen(
                    [sys.executable, "-m", *plan.commands[step]],
                    stdin=subprocess.DEVNULL, stdout=words, stderr=subprocess.STDOUT, env=self._environment,
                )  # fmt: skip
                self._running.add(process)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        if code != 0 and self._stopping:
            return f"{step} was stopped; run the same command again to go on"
        if code != 0:
            return f"{step} failed with exit code {code}: {_last_line(log)} (see {log})"
        if not (plan.folder / _PRODUCT[step]).is_file():  # a training that was asked to stop saves and says 0
            return f"{step} stopped before it was done; run the same command again to go on (see {log})"
        return ""

    def _mark(self, plan: Plan, seconds: Mapping[str, float]) -> None:
        partial = plan.folder / f".{MARKER}.partial"
        marker = {"hash": plan.digest, "seconds": seconds, "commands": {s: plan.shell(s) for s in plan.commands}}
        partial.write_text(json.dumps(marker | {"resolved": plan.resolved}, indent=1) + "\n", encoding="utf-8")
        partial.replace(plan.folder / MARKER)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"
