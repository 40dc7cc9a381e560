"""Where the figures of a benchmark come from: command, commit, machine and day."""

import platform
from datetime import UTC, datetime
from os import cpu_count
from pathlib import Path
from typing import Any

from wam_video import __version__
from wam_video.evaluation.evaluate import commit, environment

_CPUS = Path("/proc/cpuinfo")


def provenance(command: str, device: str) -> dict[str, Any]:
    """Return what somebody needs to make the figures again, or to say why theirs differ.

    Args:
        command: As it was typed.
        device: On which it ran.
    """
    return {
        "command": command,
        "library_version": __version__,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": {"cpu": processor(), "cpus": cpu_count(), **environment(device)},
    }


def processor() -> str:
    """Return what the machine calls its processor."""
    try:
        lines = _CPUS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
