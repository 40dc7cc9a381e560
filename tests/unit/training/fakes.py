"""A run small enough for tests: made-up windows that are a pure function of their index, one tiny network."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from wam_video.data.loader import DataConfig
from wam_video.data.processor import WAMProcessor
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.windows import WindowConfig
from wam_video.tensors import Batch
from wam_video.testing import TinyConfig, fake_batch, tiny_processor
from wam_video.training.config import CodecConfig, OptimConfig, TextConfig, TrainConfig
from wam_video.training.engines import EngineConfig, Launch, start_engine
from wam_video.training.trainer import Trainer

MODEL = {
    **{"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "ffn_dim": 32, "num_registers": 1},
    **{"patch_size": [1, 1, 1], "freq_dim": 16, "video_prediction": "sample"},
}


def rows_of(batch: Batch, rows: list[int], indices: list[int]) -> Batch:
    """Return some windows of a batch, under other global indices."""
    taken = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        taken[field.name] = value[rows] if isinstance(value, torch.Tensor) else value
        if isinstance(value, tuple) and value:
            taken[field.name] = tuple(value[row] for row in rows)
    return replace(Batch(**taken), indices=torch.tensor(indices))


class FakeFeed:
    """Endless windows: index i is row i % 32 of one made-up batch."""

    def __init__(self) -> None:
        self._processor = tiny_processor(TinyConfig())
        self._rows = fake_batch(SimpleNamespace(processor=self._processor), 32)
        self.embodiments = {body["name"]: EmbodimentSpec.from_dict(body) for body in self._processor.config.embodiments}

    def processor(self, normalization: str) -> WAMProcessor:
        return self._processor

    def batch(self, indices: list[int]) -> Batch:
        return rows_of(self._rows, [i % 32 for i in indices], indices)

    def batches(self, batch_size: int, start_index: int, rank: int, num_processes: int) -> Iterator[Batch]:
        first = start_index + rank * batch_size
        while True:
            yield self.batch(list(range(first, first + batch_size)))
            first += batch_size * num_processes

    def validation(self, max_windows: int, batch_size: int) -> list[Batch]:
        return [self.batch(list(range(10_000, 10_000 + max_windows)))]


def tiny_config(folder: Path, **changes: Any) -> TrainConfig:
    """Return a configuration of a few steps."""
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "steps": 4,
        "batch_size": 4,
        "model": MODEL,
        "codec": CodecConfig(patch_size=8),
        "text": TextConfig(d_model=16, num_layers=1, num_heads=2, max_length=16, prompt_dropout=0.3),
        "data": DataConfig(window=WindowConfig(action_horizon=4)),
        "trackers": [],
        "eval_windows": 4,
    }
    values["optim"] = OptimConfig(lr=1e-3, warmup_steps=2, schedule="constant")
    return TrainConfig(**(values | changes))


def tiny_trainer(config: TrainConfig, feed: Any = None, **options: Any) -> Trainer:
    """Return a trainer in this process."""
    return Trainer(config, feed or FakeFeed(), start_engine(EngineConfig.of(config), Launch()), **options)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return copies of everything that the next steps depend on: weights, average and optimizer state."""
    module, optimizer = trainer.engine.module, trainer.engine.optimizer
    found = {name: p.detach().clone() for name, p in module.named_parameters()}
    found |= {f"ema {name}": p.clone() for name, p in trainer.ema.state_dict().items()}
    for name, parameter in module.named_parameters():
        entries = optimizer.state.get(parameter, {})
        found |= {f"{key} {name}": value.clone() for key, value in entries.items()}
    return found


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Return the names under which two sets of tensors are not the same to the bit."""
    return [
        name
        for name in sorted(a.keys() | b.keys())
        if name not in a or name not in b or not torch.equal(a[name], b[name])
    ]


def moved(trainer: Trainer, before: dict[str, torch.Tensor]) -> set[str]:
    """Return the parameters that are not what they were, to the bit."""
    after = dict(trainer.engine.module.named_parameters())
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def snapshot(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return copies of all parameters."""
    return {name: value.detach().clone() for name, value in trainer.engine.module.named_parameters()}
