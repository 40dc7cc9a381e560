"""`wam-video bench overhead`: what the trainer adds to a step, and what a step of each engine takes, on made-up windows.

The trainer's step and that of a plain loop (sampler, network, loss, backward, clipping, AdamW, average; no health, counts, log or
engine) take turns in one process, on the same network and windows. Then every engine trains for some steps on two processes.
"""

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wam_video.cli.command import DONE
from wam_video.errors import ConfigError
from wam_video.log import progress
from wam_video.tensors import Batch

if TYPE_CHECKING:
    from wam_video.training.config import TrainConfig
    from wam_video.training.trainer import Trainer

ENGINES = ("cpu_two_processes", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3", "fsdp2")
MODEL = {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 32, "ffn_dim": 384, "patch_size": [1, 1, 1]}
GEOMETRY = {"batch_size": 8, "frames": 4, "height": 64, "width": 64, "patch": 8, **MODEL}


def add_overhead(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `overhead` to `wam-video bench`, and the worker that it starts."""
    example = "example: wam-video bench overhead --runs 40 --engines fsdp2 deepspeed_zero3 --output overhead.json"
    parser = commands.add_parser(
        "overhead", help="the trainer's step against a plain loop; each engine", epilog=example
    )
    add = parser.add_argument
    add("--runs", type=int, default=40, help="counted pairs of steps, after three")
    add("--steps", type=int, default=12, help="of each engine, the first three not counted")
    add("--engines", nargs="*", default=list(ENGINES), help="files of launch/accelerate; run it where that folder is")
    add("--output", type=Path, help="write the figures as JSON here")
    parser.set_defaults(measure=bench_overhead, least={"runs": 1, "steps": 4})
    worker = commands.add_parser("step", help="one process of `overhead`, which starts it")
    worker.add_argument("--steps", type=int, required=True)
    worker.add_argument("--output", type=Path, required=True)
    worker.set_defaults(measure=_worker)


def bench_overhead(args: argparse.Namespace) -> dict[str, Any]:
    """Time both loops, then every engine."""
    with TemporaryDirectory(prefix="wam-video-bench-") as name:
        pairs = _pairs(Path(name), args.runs)
        engines = {engine: _engine(engine, args.steps, Path(name)) for engine in progress(args.engines, what="engines")}
    ratios = [ours / plain for ours, plain in pairs]
    return {
        "geometry": GEOMETRY,
        "torch": torch.__version__,
        "cpu_seconds": {
            "trainer": round(statistics.median(ours for ours, _ in pairs), 4),
            "plain": round(statistics.median(plain for _, plain in pairs), 4),
        },
        "ratio": {
            "of_medians": round(
                statistics.median(ours for ours, _ in pairs) / statistics.median(plain for _, plain in pairs), 4
            ),
            "median": round(statistics.median(ratios), 4),
            "quartiles": [
                round(value, 4) for value in statistics.quantiles(ratios * 2 if len(ratios) < 2 else ratios, n=4)[::2]
            ],
        },
        "engines": engines,
    }


class _Windows:
    """Made-up windows, drawn once: a feed that costs nothing."""

    def __init__(self) -> None:
        from wam_video.data.schema import EmbodimentSpec
        from wam_video.testing import TinyConfig, fake_batch, tiny_processor

        self._processor = tiny_processor(TinyConfig(size=GEOMETRY["height"]))  # type: ignore[arg-type]
        self._rows = fake_batch(SimpleNamespace(processor=self._processor), 8)  # type: ignore[arg-type]
        self.embodiments = {
            body["name"]: EmbodimentSpec.from_dict(body) for body in self._processor.config["embodiments"]
        }

    def processor(self, normalization: str) -> Any:
        return self._processor

    def batches(self, batch_size: int, start_index: int, rank: int, num_processes: int) -> Iterator[Batch]:
        first = start_index + rank * batch_size
        while True:
            taken: dict[str, Any] = {}
            for entry in fields(self._rows):
                value = getattr(self._rows, entry.name)
                whole = isinstance(value, Tensor) or (isinstance(value, tuple) and value)
                taken[entry.name] = value[:batch_size] if whole else value
            yield replace(Batch(**taken), indices=torch.arange(first, first + batch_size))
            first += batch_size * num_processes

    def validation(self, max_windows: int, batch_size: int) -> list[Batch]:
        return []


def _config(folder: Path, steps: int) -> "TrainConfig":
    from wam_video.data.loader import DataConfig
    from wam_video.data.windows import WindowConfig
    from wam_video.training.config import CodecConfig, OptimConfig, TextConfig, TrainConfig

    return TrainConfig(
        output_dir=str(folder),
        steps=steps,
        batch_size=int(GEOMETRY["batch_size"]),  # type: ignore[call-overload]
        model=dict(MODEL),
        codec=CodecConfig(patch_size=int(GEOMETRY["patch"])),  # type: ignore[call-overload]
        text=TextConfig(d_model=32, num_layers=1, num_heads=2, max_length=16),
        data=DataConfig(window=WindowConfig(action_horizon=4)),
        optim=OptimConfig(warmup_steps=2, schedule="constant"),
        trackers=[],
        mixed_precision="no",
    )


def _trainer(folder: Path, steps: int) -> "Trainer":
    from wam_video.cli.train import _launch
    from wam_video.training.engines import EngineConfig, start_engine
    from wam_video.training.trainer import Trainer

    config = _config(folder, steps)
    return Trainer(config, _Windows(), start_engine(EngineConfig.of(config), _launch()))


class _Turns:
    """A callback that does the other loop's step after each of the trainer's, and times both."""

    def __init__(self, other: Callable[[], object]) -> None:
        self._other = other
        self._since = 0.0
        self.pairs: list[tuple[float, float]] = []

    def on_step(self, run: Any, result: Any) -> None:
        """Take the time of the trainer's step, and of the other's."""
        ours = time.process_time() - self._since
        start = time.process_time()
        self._other()
        self.pairs.append((ours, time.process_time() - start))
        self._since = time.process_time()

    def on_end(self, run: Any) -> None:
        """Nothing: all was timed."""


def _pairs(folder: Path, runs: int) -> list[tuple[float, float]]:
    """Return the processor seconds of the trainer's step and of the plain one, in turns."""
    from wam_video.training.callbacks import LogCallback

    turns = _Turns(_plain_step(_trainer(folder / "plain", 1)))
    _trainer(folder / "ours", runs + 3).run([LogCallback(20), turns])
    return turns.pairs[3:]


def _plain_step(trainer: "Trainer") -> Callable[[], object]:
    """Return a step as one writes it who has the parts and nothing else."""
    from wam_video.flow.loss import loss_terms
    from wam_video.tensors import Prediction
    from wam_video.training.optim import build_optimizer, lr_scales
    from wam_video.training.sample import is_video_absent

    module, sampler, config = trainer.engine.module, trainer.sampler, trainer.config
    scales = lr_scales(config, [name for name, _ in module.named_parameters()])
    optimizer = build_optimizer(config.optim, module, scales=scales)
    weights = [p for p in module.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in weights]
    batches = _Windows().batches(config.batch_size, 0, 0, 1)
    steps = iter(range(1 << 30))

    def step() -> None:
        absent = is_video_absent(config.density, config.seed, next(steps))
        sample = sampler(next(batches), torch.device("cpu"), absent_video=absent)
        video, actions, *_ = module(sample, taught=False)
        terms = loss_terms(
            config.loss, Prediction(video=video, actions=actions), sample.noisy, trainer.prediction_kinds, sample.num_context
        )  # fmt: skip
        loss = config.loss.video_weight * terms.video_sum.sum() / sample.video_count.sum().clamp(min=1)
        loss = loss + config.loss.action_weight * terms.action_sum.sum() / sample.action_count.sum().clamp(min=1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, config.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in weights], 0.01)

    return step


def _engine(name: str, steps: int, folder: Path) -> dict[str, Any]:
    """Return what a step of one engine takes on two processes of this machine.

    Raises:
        ConfigError: There is no such file, or it does not run.
    """
    file, output = Path("launch/accelerate") / f"{name}.yaml", folder / f"{name}.json"
    if not file.is_file():
        raise ConfigError(f"engine {name!r}: {str(file)!r} is not there; run this in the root of the repository")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), "--num_processes", "2"),
        *("--main_process_port", str(port), "--mixed_precision", "no", "-m", "wam_video.cli.bench", "step"),
        *("--steps", str(steps), "--output", str(output)),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise ConfigError(f"engine {name!r} does not run here: {told}")
    return json.loads(output.read_text())


def _worker(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    trainer = _trainer(args.output.with_suffix(".run"), args.steps)
    before = _peak_mib()
    clock = _Clock()
    trainer.run([clock])
    figures = {
        "engine": trainer.engine.kind,
        "processes": trainer.engine.num_processes,
        "cpu_seconds": round(statistics.median(clock.cpu[3:]), 4),
        "seconds": round(statistics.median(clock.wall[3:]), 4),
        "peak_mib": round(_peak_mib(), 1),
        "peak_mib_before": round(before, 1),
    }
    if trainer.engine.is_main:
        args.output.write_text(json.dumps(figures))
    trainer.engine.close()
    if trainer.engine.num_processes > 1:
        from wam_video.training.engines import leave

        leave(DONE)
    return {}


class _Clock:
    """A callback that notes how long each step took."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self._since = (time.process_time(), time.perf_counter())

    def on_step(self, run: Any, result: Any) -> None:
        """Note one step of this process."""
        now = (time.process_time(), time.perf_counter())
        self.cpu.append(now[0] - self._since[0])
        self.wall.append(now[1] - self._since[1])
        self._since = now

    def on_end(self, run: Any) -> None:
        """Nothing: all was noted."""


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
