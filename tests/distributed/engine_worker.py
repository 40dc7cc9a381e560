"""One process of a test of an engine: go on from a checkpoint if there is one, train, save, export; say what really ran."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.unit.training.fakes import FakeFeed, tiny_config
from wam_video.cli.train import _launch
from wam_video.tensors import Batch
from wam_video.training import callbacks as hooks
from wam_video.training import state
from wam_video.training.build import Parts
from wam_video.training.config import AdapterConfig, FSDPConfig, OptimConfig, TextConfig, TrainConfig
from wam_video.training.engines import EngineConfig, leave, start_engine
from wam_video.training.run import Run, StepResult
from wam_video.training.tally import TERMS
from wam_video.training.trainer import Trainer

PARTS = {"fsdp": FSDPConfig, "optim": OptimConfig, "adapter": AdapterConfig, "text": TextConfig}


class PoisonedFeed(FakeFeed):
    """Has a window whose actions are no numbers."""

    def __init__(self, poisoned: int) -> None:
        super().__init__()
        self._poisoned = poisoned

    def batches(self, batch_size: int, start_index: int, rank: int, num_processes: int) -> Iterator[Batch]:
        for batch in super().batches(batch_size, start_index, rank, num_processes):
            actions = batch.actions.clone()
            actions[batch.indices == self._poisoned] = float("nan")
            yield replace(batch, actions=actions)


class Record:
    """Notes the losses of every step over all processes, and what is validated."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.validation: dict[str, float] = {}

    def on_step(self, run: Run, result: StepResult) -> None:
        means = run.tally.means(run.engine.sum(result.sums.clone()))
        losses = {name: means[name] for name in TERMS if name in means}
        self.steps.append({"step": result.step, "applied": result.applied, "norm": result.grad_norm, **losses})

    def on_end(self, run: Run) -> None:
        pass

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.validation |= {name: value for name, value in values.items() if name.startswith("val_")}

    def close(self) -> None:
        pass


def export(folder: Path, parts: Parts, config: TrainConfig) -> None:
    """Write the weights that an exporter is handed."""
    folder.mkdir(parents=True)
    save_file({n: p.detach().contiguous() for n, p in parts.transformer.named_parameters()}, folder / "w.safetensors")


def again(trainer: Trainer, folder: Path) -> None:
    """Write down at once what was loaded."""
    folder.mkdir(exist_ok=True)
    for name, contents in state.snapshot(trainer.engine, trainer.ema, trainer.progress, {}).items():
        if name.endswith(".safetensors"):
            save_file(dict(contents), folder / name)


def main(folder: Path, settings: dict[str, Any]) -> None:
    """Train for the given steps in all."""
    torch.set_num_threads(1)
    poisoned = settings.pop("poisoned", -1)
    parts = {key: kind(**settings.pop(key)) for key, kind in PARTS.items() if key in settings}
    config = tiny_config(folder, keep_last=0, **settings, **parts)
    engine = start_engine(EngineConfig.of(config), _launch())
    trainer = Trainer(config, PoisonedFeed(poisoned), engine)
    first_step = trainer.progress.step
    if first_step:
        again(trainer, folder / "again")
    record = Record()
    chain = [record, hooks.ValidateCallback(100), hooks.CheckpointCallback(config.save_every)]
    trainer.run([*chain, hooks.ExportCallback(export, folder / "model", 0)], [record])
    facts = {
        **{"kind": engine.kind, "about": engine.describe(), "num_processes": engine.num_processes},
        **{"first_step": first_step, "steps": record.steps, "validation": record.validation},
        "held": sum(fragment.numel for fragment in engine.weights.trained),
    }
    (folder / f"facts-{engine.rank}.json").write_text(json.dumps(facts))
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
    leave(0)
