"""Runs whose processes are forked from one that has imported everything, as a test asks for them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from wam_video.training.checkpoint import verify

ROOT = Path(__file__).resolve().parents[2]


class Runs:
    """The process that forks runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.runs", str(folder)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def __call__(self, name: str, job: dict[str, Any] | None = None, **settings: Any) -> list[int]:
        """Run a job in the folder of that name; return the exit codes of its processes."""
        settings = {"steps": 6, "save_every": 2, "eval_every": 0, "batch_size": 4} | settings
        request = {"output": str(self.folder / name), "settings": settings} | (job or {})
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._answer())

    def end(self, name: str, rank: int = 0) -> dict[str, Any]:
        """Return the weights, averages and moments that a run has ended with."""
        return load_file(self.folder / f"{name}.end{rank}")

    def log(self, name: str, rank: int = 0) -> str:
        """Return what a process of a run has said."""
        return (self.folder / f"{name}.log{rank}").read_text()

    def steps(self, name: str) -> list[int]:
        """Return the steps of a run's committed checkpoints, all of which are whole."""
        found = sorted(path.parent for path in (self.folder / name / "checkpoints").glob("step-???????/COMMIT.json"))
        assert [verify(path) for path in found] == [None] * len(found)
        return [int(path.name.removeprefix("step-")) for path in found]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=20)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()
