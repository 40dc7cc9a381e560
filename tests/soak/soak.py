"""Kill a training run again and again, start it again each time, and compare it with one that was left alone.

    python tests/soak/soak.py --kills 200 --shards shards/pusht --output soak.json

Each start is a fork of one process that has imported everything, so that it costs a fraction of a second. It is killed (SIGKILL)
at a random moment: while it starts, within a step, or while a checkpoint is being written. In the end weights, average and
optimizer must be those of the undisturbed run to the bit, and the samples that the final weights have seen must be the same, in
the same order: none lost, none twice.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors import safe_open

from tests.unit.training.fakes import tiny_config
from wam_video.data.loader import DataConfig, DatasetConfig, WindowConfig
from wam_video.tensors import Batch
from wam_video.training import callbacks as hooks
from wam_video.training.config import EMAConfig, TrainConfig
from wam_video.training.engines import EngineConfig, Launch, start_engine
from wam_video.training.feed import ShardFeed
from wam_video.training.run import Run, StepResult
from wam_video.training.trainer import Trainer

BATCH = 4
SAVE_EVERY = 2


class LoggingFeed(ShardFeed):
    """The shards, and the keys of the last batch."""

    keys: list[str]

    def batches(self, *args: Any, **named: Any) -> Iterator[Batch]:
        for batch in super().batches(*args, **named):
            self.keys = [f"{i}:{key}" for i, key in zip(batch.indices.tolist(), batch.keys, strict=True)]
            yield batch


class SampleLog:
    """Writes each step's samples, and where this start began, in one write each, so that a kill tears no line."""

    def __init__(self, path: Path, feed: LoggingFeed, start: int) -> None:
        self._feed = feed
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._write({"start": start})

    def on_step(self, run: Run, result: StepResult) -> None:
        self._write({"step": result.step, "samples": self._feed.keys})

    def on_end(self, run: Run) -> None:
        """Nothing: every step was written."""

    def _write(self, content: dict[str, Any]) -> None:
        os.write(self._file, (json.dumps(content) + "\n").encode())


def make_config(folder: Path, shards: Path, steps: int, *, async_save: bool) -> TrainConfig:
    data = DataConfig(
        datasets={"d": DatasetConfig(path=str(shards))},
        window=WindowConfig(action_horizon=4, height=16, width=16),
        cache_mb=64,
    )
    changes: dict[str, Any] = {"data": data, "save_every": SAVE_EVERY, "keep_last": 2, "async_save": async_save}
    return tiny_config(folder, steps=steps, batch_size=BATCH, ema=EMAConfig(decay=0.9), eval_every=0, **changes)


def train(config: TrainConfig) -> None:
    """Do what `wam-video train` does, with a log of samples; ends when the run does."""
    engine = start_engine(EngineConfig.of(config), Launch())
    feed = LoggingFeed(config.data, config.seed)
    trainer = Trainer(config, feed, engine)
    log = SampleLog(Path(config.output_dir) / "samples.jsonl", feed, trainer.start_step)
    trainer.run([log, hooks.CheckpointCallback(config.save_every)])


def fork(work: Callable[[], None], output: Path) -> int:
    """Run `work` in a child and return its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - a child must never return into its parent's stack
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def supervise(config: TrainConfig, kills: int, seed: int) -> Counter[str]:
    """Start the run until it ends, killing it `kills` times; return the kills by what it was doing."""
    rng, folder, met = random.Random(seed), Path(config.output_dir), Counter[str]()
    start_s = step_s = 0.3
    while True:
        log = folder / "samples.jsonl"
        before = _lines(log)
        began = time.monotonic()
        child = fork(lambda: train(config), folder / "output.txt")
        if met.total() < kills:
            # A sixth of the kills come while the process starts; the others some steps later, anywhere within a step.
            in_start, target = rng.random() < 1 / 6, rng.randint(1, 6)
            deadline = time.monotonic() + rng.uniform(0, start_s) if in_start else float("inf")
            while (gone := os.waitpid(child, os.WNOHANG)[0]) == 0 and time.monotonic() < deadline:
                done = _lines(log) - before
                if done and deadline == float("inf") and not in_start and done > target:
                    deadline = time.monotonic() + rng.uniform(0, 1.5 * step_s)
                if done == 1:
                    start_s = time.monotonic() - began
                elif done > 1:
                    step_s = (time.monotonic() - began - start_s) / (done - 1)
                time.sleep(0.001)
            if gone == 0:
                saving = any(folder.glob("checkpoints/*.tmp"))
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                met["saving" if saving else "starting" if _lines(log) == before else "stepping"] += 1
                continue
            raise SystemExit(f"the run ended after {met.total()} of {kills} kills; see {folder / 'output.txt'}")
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"the run failed; see {folder / 'output.txt'}")
        return met


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def history(path: Path) -> tuple[list[list[str]], int, bool]:
    """Return the samples of the steps that the final weights are made of, all steps that were done, and whether any step that was done again saw others."""
    steps: list[list[str]] = []
    done, same = 0, True
    ever: dict[int, list[str]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if "start" in entry:
            del steps[entry["start"] :]
            continue
        steps.append(entry["samples"])
        done += 1
        same &= len(steps) == entry["step"] and ever.setdefault(entry["step"], entry["samples"]) == entry["samples"]
    return steps, done, same


def differing_tensors(one: Path, other: Path) -> tuple[list[str], int]:
    """Return the tensors of two checkpoints that differ in a bit, and how many there are."""
    names = {p.name for folder in (one, other) for p in folder.glob("*.safetensors")}
    wrong, count = [], 0
    for name in sorted(names):
        with safe_open(one / name, "pt") as a, safe_open(other / name, "pt") as b:  # type: ignore[no-untyped-call]
            for key in sorted(set(a.keys()) | set(b.keys())):
                count += 1
                if key not in a.keys() or key not in b.keys() or not torch.equal(a.get_tensor(key), b.get_tensor(key)):  # noqa: SIM118
                    wrong.append(f"{name}:{key}")
    return wrong, count


def soak(folder: Path, shards: Path, kills: int, *, seed: int = 0, async_save: bool = False) -> dict[str, Any]:
    """Train undisturbed and killed, and return what was found."""
    torch.set_num_threads(1)
    steps = 4 * kills + 8  # more than the starts together can do
    configs = {name: make_config(folder / name, shards, steps, async_save=async_save) for name in ("calm", "killed")}
    for config in configs.values():
        Path(config.output_dir).mkdir(parents=True)
    supervise(configs["calm"], 0, seed)
    began = time.monotonic()
    met = supervise(configs["killed"], kills, seed)
    seconds = time.monotonic() - began
    calm, _, _ = history(folder / "calm" / "samples.jsonl")
    killed, done, same = history(folder / "killed" / "samples.jsonl")
    last = f"checkpoints/step-{steps:07d}"
    wrong, tensors = differing_tensors(folder / "calm" / last, folder / "killed" / last)
    seen = Counter(sample.partition(":")[0] for step in killed for sample in step)
    return {
        "kills": met.total(),
        "killed_while": dict(met),
        "steps": steps,
        "steps_done_in_all": done,
        "samples": sum(seen.values()),
        "samples_lost": len(set(map(str, range(steps * BATCH))) - set(seen)),
        "samples_twice": sum(count - 1 for count in seen.values()),
        "same_samples_at_every_step": same and calm == killed,
        "tensors_compared": tensors,
        "tensors_that_differ": wrong,
        "async_save": async_save,
        "seconds": round(seconds, 1),
    }


def is_sound(found: dict[str, Any]) -> bool:
    """Say whether nothing was lost."""
    same = found["same_samples_at_every_step"] and found["tensors_compared"] > 0 and not found["tensors_that_differ"]
    return same and found["samples_lost"] == found["samples_twice"] == 0


def main() -> int:
    """Run the soak and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--async-save", action="store_true")
    parser.add_argument("--output", type=Path, help="JSON of what was found")
    arguments = parser.parse_args()
    folder = Path(mkdtemp(prefix="wam-video-soak-"))
    found = soak(folder, arguments.shards, arguments.kills, seed=arguments.seed, async_save=arguments.async_save)
    text = json.dumps(found, indent=2)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    sys.stdout.write(text + "\n")
    if not is_sound(found):
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
