"""LoRA in a training run: into the network before the optimizer is made, and its dropout from step to step."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from wam_video.errors import ConfigError, one_of
from wam_video.models import adapters
from wam_video.models.diffusion_policy import DiffusionPolicyTransformer
from wam_video.models.transformer import WAMTransformer
from wam_video.training.config import AdapterConfig, TrainConfig

_SEED = 1
"""Added to the run's: the adapter's matrices and the network's are drawn apart."""


def add_adapter(transformer: WAMTransformer | DiffusionPolicyTransformer, config: AdapterConfig, seed: int) -> None:
    """Put LoRA layers into a network, which change nothing yet; a network on the meta device stays there.

    Args:
        transformer: Without an adapter.
        config: Its kind `none` does nothing.
        seed: Of the run.

    Raises:
        ConfigError: A target names no linear layer.
        MissingDependencyError: PEFT is not installed.
    """
    if config.kind == "none" or not isinstance(transformer, WAMTransformer):
        return
    adapters.needs_peft()
    from peft import LoraConfig

    _check_targets(transformer, config.target_modules)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.rank if config.alpha is None else config.alpha,  # type: ignore[arg-type] - a float will do
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        init_lora_weights=True if config.init == "kaiming" else "gaussian",
    )
    with torch.random.fork_rng(), torch.device(next(transformer.parameters()).device):
        torch.manual_seed(seed + _SEED)
        transformer.add_adapter(lora, adapter_name=adapters.NAME)


def seed_dropout(config: TrainConfig, step: int, rank: int) -> None:
    """Tie dropout (of an adapter or the baseline) to seed, step and process, so that a resumed run draws the same."""
    if config.network != "wam" or (config.adapter.kind != "none" and config.adapter.dropout):
        torch.manual_seed(int(np.random.SeedSequence([config.seed, step, rank]).generate_state(1)[0]))


def _check_targets(transformer: nn.Module, targets: Sequence[str]) -> None:
    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            names = {".".join(step for step in name.split(".")[2:]) for name in linear if name.startswith("blocks.")}
            names |= {name for name in linear if not name.startswith("blocks.")}
            raise ConfigError(one_of("adapter.target_modules entry", target, names))
