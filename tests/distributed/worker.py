"""One process of a distributed test: train a tiny model and write down what really ran."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tests.unit.training.fakes import FakeFeed, tiny_config
from wam_video.cli.train import _launch
from wam_video.training import callbacks as hooks
from wam_video.training.config import AdapterConfig, OptimConfig
from wam_video.training.engines import EngineConfig, start_engine
from wam_video.training.metrics import JsonLines
from wam_video.training.trainer import Trainer

PARTS = {"adapter": AdapterConfig, "optim": OptimConfig}


def main(folder: Path, settings: dict[str, Any]) -> None:
    """Train for the given steps in all, and save the weights and the facts of this process."""
    folder.mkdir(exist_ok=True)
    parts = {key: kind(**settings.pop(key)) for key, kind in PARTS.items() if key in settings}
    config = tiny_config(folder, **settings, **parts)
    engine = start_engine(EngineConfig.of(config), _launch())
    trainer = Trainer(config, FakeFeed(), engine)
    first_step = trainer.progress.step
    trackers = [JsonLines(folder / "metrics.jsonl", from_step=first_step)] if engine.is_main else []
    trainer.run(
        [hooks.LogCallback(1), hooks.ValidateCallback(config.eval_every), hooks.CheckpointCallback(100)], trackers
    )
    named = {} if engine.kind == "fsdp" else dict(engine.module.named_parameters())  # in pieces; ZeRO 3's are empty
    whole = {name: p.detach().contiguous() for name, p in named.items() if p.numel()}
    save_file(whole, folder / f"weights-{engine.rank}.safetensors")
    with trainer.whole.filled(engine, trainer.ema) as made:
        if made is not None:
            averages = {n: p.detach().contiguous() for n, p in made.transformer.named_parameters()}
            save_file(averages, folder / "averages.safetensors")
    facts = {
        "kind": engine.kind,
        "num_processes": engine.num_processes,
        "is_main": engine.is_main,
        "first_step": first_step,
    }
    (folder / f"facts-{engine.rank}.json").write_text(json.dumps(facts | {"last_step": trainer.progress.step}))
    engine.close()
