"""A process that has imported everything once, and forks the processes of each run that a test asks for.

Importing torch and diffusers takes most of the time of a short run; a fork has them at once, and can be killed for real.
`python runs.py FOLDER` reads a JSON job a line and answers with the exit codes of its processes (negative: the signal).
"""

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.distributed import health_worker, worker
from tests.unit.training.fakes import tiny_config, weights
from wam_video.data.loader import DataConfig
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.settings import DatasetConfig
from wam_video.data.stream import DataWorkerError
from wam_video.data.windows import WindowConfig
from wam_video.log import setup_logging
from wam_video.tensors import Batch
from wam_video.testing import fake_shards
from wam_video.training import callbacks as hooks
from wam_video.training.engines import EngineConfig, Launch, start_engine
from wam_video.training.feed import ShardFeed
from wam_video.training.trainer import Trainer

BEFORE_MARKER = ("begun", "in a file", "before marker")
LIMIT = 20_000


class Fault:
    """Ends or slows the process at a named point of its so-many-th save (0: of each)."""

    def __init__(self, point: str, save: int, act: str) -> None:
        self._point, self._save, self._act, self._begun = point, save, act, 0

    def __call__(self, point: str) -> None:
        number = self._begun + (point in BEFORE_MARKER)
        self._begun += point == "before marker"
        if point == self._point and self._save in (0, number):
            if self._act == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(float(self._act))


class Events:
    """What happens to a run at its steps: killed, told to stop, its disk full for a while."""

    def __init__(self, job: dict[str, Any], folder: Path) -> None:
        self._job, self._folder, self._step = job, folder, 0

    def should_stop(self) -> bool:
        return self._step == self._job.get("stop_at")

    def on_step(self, run: Any, result: Any) -> None:
        self._step = result.step
        if result.step == self._job.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        full = self._job.get("full")
        if full and result.step == full["from"]:
            self._settle(run)
            fill(full["disk"], self._folder)
        if full and result.step == full["to"]:
            self._told(run)
            make_room(full["disk"], self._folder)

    def on_end(self, run: Any) -> None: ...

    @staticmethod
    def _settle(run: Any) -> None:
        """Let a save that is under way be over, however slow the machine is."""
        if run._saver._writing is not None:
            run._saver._writing.exception()

    def _told(self, run: Any) -> None:
        """Write down what is in the folder when the save that could not be written is over."""
        self._settle(run)
        names = sorted(p.name for p in (self._folder / "checkpoints").glob("step-*"))
        Path(self._job["output"] + ".full").write_text(json.dumps(names))


class DryFeed(ShardFeed):
    """Shards whose decoding process is gone after so many batches (None: never)."""

    def __init__(self, config: DataConfig, seed: int, batches: int | None) -> None:
        super().__init__(config, seed)
        self._left = batches

    def batches(self, *args: int) -> Iterator[Batch]:
        for number, batch in enumerate(super().batches(*args)):
            if number == self._left:
                raise DataWorkerError("a process that decodes data is gone")
            yield batch


def fill(disk: str, folder: Path) -> None:
    """Let nothing large be written: by a limit of this process, or with a file that takes all room."""
    if disk == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
        return
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def make_room(disk: str, folder: Path) -> None:
    """Undo `fill`."""
    if disk == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        (folder / "filler").unlink()


def mount_small_disk(folder: Path) -> None:
    """Mount a tmpfs that only this process sees (needs root)."""
    folder.mkdir(parents=True)
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, private = 0x00020000, 1 << 18 | 16384
    done = libc.unshare(new_mounts) == 0 and libc.mount(b"none", b"/", None, private, None) == 0
    if not done or libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=1500k") != 0:
        os._exit(77)


def train(job: dict[str, Any], rank: int, shards: Path) -> None:
    """Be one process of a run."""
    output = Path(job["output"])
    log = os.open(f"{job['output']}.log{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    setup_logging()
    processes = job.get("processes", 1)
    if processes > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes)
        )
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job["port"]))
    if "accident" in job:
        os._exit(health_worker.main(job["accident"], job["settings"]["arguments"]))
    if "launch" in job:
        os.environ.update(job["launch"])
        worker.main(output, job["settings"])
        return
    if job.get("full", {}).get("disk") == "tmpfs":
        mount_small_disk(output)
    window = WindowConfig(action_horizon=4)
    data = DataConfig(
        datasets={"toy": DatasetConfig(path=str(shards))}, window=window, num_workers=job.get("workers", 0)
    )
    config = tiny_config(output, data=data, **job["settings"])
    engine = start_engine(EngineConfig.of(config), Launch(num_processes=processes))
    fault = job.get("faults", {}).get(str(rank), {"point": "", "save": 0, "act": "0"})
    events = Events(job, output)
    feed = DryFeed(config.data, config.seed, job.get("dry_after", {}).get(str(rank)))
    trainer = Trainer(config, feed, engine, should_stop=events.should_stop, fault=Fault(**fault))
    trainer.run([events, hooks.CheckpointCallback(config.save_every)])
    save_file({name: value.contiguous() for name, value in weights(trainer).items()}, f"{job['output']}.end{rank}")
    engine.close()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(job: dict[str, Any], shards: Path) -> list[int]:
    """Fork the processes of a job and return how they ended; what one leaves hanging is ended too."""
    job["port"] = free_port()
    children = []
    for rank in range(job.get("processes", 1)):
        child = os.fork()
        if child == 0:
            try:
                train(job, rank, shards)
            except BaseException:  # noqa: BLE001 - it must not go on as its parent
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes, deadline = dict.fromkeys(children, 0), time.monotonic() + 500
    waiting = set(children)
    while waiting:
        for child in sorted(waiting):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
                waiting.discard(child)
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]


def main(folder: Path) -> None:
    """Make shards, then answer jobs until there are no more."""
    torch.set_num_threads(1)
    body = EmbodimentSpec(name="arm", action_dim=2, state_dim=2, views=("front",), fps=5.0, action_rate=10.0)
    shards = fake_shards(folder / "toy", [body])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        codes = run(json.loads(line), shards)
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()
    os._exit(0)  # nothing is left to do, and taking torch down takes seconds


if __name__ == "__main__":
    main(Path(sys.argv[1]))
