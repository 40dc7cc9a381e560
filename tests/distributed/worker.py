"""One process of a distributed test: train a tiny model and write down what really ran. Started by a launcher."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.unit.training.fakes import FakeFeed, tiny_config
from wam_video.cli.train import _launch
from wam_video.training import callbacks as hooks
from wam_video.training.config import AdapterConfig, OptimConfig
from wam_video.training.engines import EngineConfig, leave, start_engine
from wam_video.training.trainer import Trainer

PARTS = {"adapter": AdapterConfig, "optim": OptimConfig}


def main(folder: Path, settings: dict[str, Any]) -> None:
    """Train for the given steps in all, and save the weights and the facts of this process."""
    torch.set_num_threads(1)
    parts = {key: kind(**settings.pop(key)) for key, kind in PARTS.items() if key in settings}
    config = tiny_config(folder, **settings, **parts)
    engine = start_engine(EngineConfig.of(config), _launch())
    trainer = Trainer(config, FakeFeed(), engine)
    first_step = trainer.progress.step
    trainer.run([hooks.LogCallback(1), hooks.ValidateCallback(100), hooks.CheckpointCallback(100)])
    weights = {name: p.detach().contiguous() for name, p in engine.module.named_parameters()}
    save_file(weights, folder / f"weights-{engine.rank}.safetensors")
    facts = {
        "kind": engine.kind,
        "num_processes": engine.num_processes,
        "is_main": engine.is_main,
        "first_step": first_step,
    }
    (folder / f"facts-{engine.rank}.json").write_text(json.dumps(facts | {"last_step": trainer.progress.step}))
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
    leave(0)
