"""Parameter groups, the optimizer, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from wam_video.training.config import OptimConfig

_LEARNED_TOKENS = (
    "scale_shift_table",
    "registers",
    "no_state",
    "view_embedding",
    "shared.weight",
    "relative_attention_bias",
)
_EMBODIMENT_TABLES = ("action_embedder", "state_embedder", "action_proj_out")
NO_DECAY = ("norm", *_LEARNED_TOKENS, *_EMBODIMENT_TABLES)
"""Parts of names that never decay: norms, learned tokens, the tables of embodiments and of the text encoder."""


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter has weight decay: matrices and convolutions, but no tables, norms or biases."""
    return parameter.ndim >= 2 and not any(part in name for part in NO_DECAY)


def build_optimizer(config: OptimConfig, module: nn.Module) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters of `module`, in two groups."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=True)


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of step `step` (0 is the first) of `total_steps`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    low = config.lr * config.min_lr_ratio
    if config.schedule == "cosine":
        progress = min((step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1), 1.0)
        return low + (config.lr - low) * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "wsd":
        decay_steps = max(int(config.decay_share * total_steps), 1)
        left = min(max((total_steps - step) / decay_steps, 0.0), 1.0)
        return low + (config.lr - low) * left
    return config.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
