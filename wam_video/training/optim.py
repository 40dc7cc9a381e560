"""Parameter groups, the optimizer, and the learning rate as a pure function of the step."""

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from wam_video.errors import ConfigError, one_of
from wam_video.models.parts import PARTS, part_of, plain_name
from wam_video.training.config import OptimConfig, TrainConfig
from wam_video.training.muon import MuonAdamW, is_block_matrix

_LEARNED_TOKENS = (
    "scale_shift_table",
    "registers",
    "no_state",
    "view_embedding",
    "shared.weight",
    "relative_attention_bias",
    "position_embedding",
)
_EMBODIMENT_TABLES = ("action_embedder", "state_embedder", "action_proj_out")
NO_DECAY = ("norm", *_LEARNED_TOKENS, *_EMBODIMENT_TABLES)
"""Parts of names that never decay: norms, learned tokens, the tables of embodiments and of the text encoder."""


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter has weight decay: matrices and convolutions, but no tables, norms or biases."""
    return parameter.ndim >= 2 and not any(part in name for part in NO_DECAY)


def weight_decays(config: OptimConfig, module: nn.Module) -> dict[str, float]:
    """Return the weight decay of each parameter; see `OptimConfig.decays`.

    Raises:
        ConfigError: A part or pattern matches nothing.
    """
    named = dict(module.named_parameters())
    rates = dict.fromkeys(named, config.weight_decay)
    for key, rate in config.decays.items():
        rates |= dict.fromkeys(_matching("optim.decays key", key, list(named)), rate)
    return {name: rates[name] if decays(name, parameter) else 0.0 for name, parameter in named.items()}


def lr_scales(config: TrainConfig, names: Sequence[str]) -> dict[str, float]:
    """Return each parameter's learning rate as a multiple of `optim.lr`; 0 is frozen.

    Args:
        config: Its `optim.groups`, applied to what its `adapter` leaves to be trained.
        names: All parameters of the network or of the trained module.

    Raises:
        ConfigError: A part or pattern matches nothing, or only what an adapter freezes, or nothing is left to train.
    """
    base = dict.fromkeys(names, 1.0)
    if config.adapter.kind != "none":
        full = {name for key in config.adapter.full for name in _matching("adapter.full entry", key, names)}
        base = {name: float(name in full or part_of(name) in ("lora", "text", "teacher")) for name in names}
    scales = dict(base)
    for key, scale in sorted(config.optim.groups.items(), key=lambda item: item[0] not in PARTS):
        found = _matching("optim.groups key", key, names)
        if scale and not any(base[name] for name in found):
            raise ConfigError(
                f"optim.groups.{key} is {scale}, but adapter.kind={config.adapter.kind} freezes all of it; "
                "name it in adapter.full too, or leave it out"
            )
        scales |= {name: base[name] * scale for name in found}
    if not any(scales.values()):
        raise ConfigError(
            f"optim.groups is {dict(config.optim.groups)}, which freezes everything; leave something above 0"
        )
    return scales


def _matching(what: str, key: str, names: Sequence[str]) -> list[str]:
    found = [name for name in names if (part_of(name) == key if key in PARTS else fnmatchcase(plain_name(name), key))]
    if not found and "." not in key and "*" not in key:
        raise ConfigError(one_of(what, key, {part_of(name) for name in names}))
    if not found:
        plain = [plain_name(name) for name in names]
        prefixes = {".".join(name.split(".")[:depth]) + ".*" for name in plain for depth in (1, 2, 3)}
        near = get_close_matches(key, sorted(prefixes), n=1, cutoff=0.4) or [f"{plain[0].split('.')[0]}.*"]
        raise ConfigError(
            f"{what} is {key!r}, which matches no parameter; allowed: parts and patterns such as {near[0]!r}"
        )
    return found


def freeze(module: nn.Module, scales: Mapping[str, float]) -> None:
    """Let exactly the parameters be trained whose multiple of the learning rate is not 0."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(scales[name] > 0)


def describe_parts(named: Iterable[tuple[str, nn.Parameter]], scales: Mapping[str, float]) -> list[str]:
    """Return a line for each part and learning rate: its parameters, and how they are trained."""
    counts: dict[tuple[str, float], int] = {}
    for name, parameter in named:
        key = part_of(name), scales[name]
        counts[key] = counts.get(key, 0) + parameter.numel()
    order = sorted(counts, key=lambda key: (PARTS.index(key[0]), -key[1]))
    return [
        f"{part:<12} {counts[part, scale]:>15,}  {f'trained, lr x {scale:g}' if scale else 'frozen'}"
        for part, scale in order
    ]


def build_optimizer(
    config: OptimConfig, module: nn.Module, scales: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer over the trainable parameters of `module`, in groups by rate and decay, Muon's matrices apart.

    Args:
        config: The optimizer.
        module: What is trained.
        scales: Multiple by parameter name, kept in the groups as `lr_scale`; None: 1 for all.
    """
    rates = weight_decays(config, module)
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            turned = config.name == "muon" and is_block_matrix(name, parameter)
            scale = 1.0 if scales is None else scales[name]
            key = turned, scale * config.muon_lr_scale if turned else scale, rates[name]
            groups.setdefault(key, []).append(parameter)
    ordered: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for turned, scale, decay in sorted(groups, reverse=True):
        group = {"params": groups[turned, scale, decay], "lr_scale": scale, "lr": config.lr * scale}
        ordered[turned].append(group | {"weight_decay": decay})
    betas = (config.betas[0], config.betas[1])
    if config.name == "muon":
        return MuonAdamW(ordered[True], ordered[False], betas=betas, eps=config.eps)
    return torch.optim.AdamW(ordered[False], lr=config.lr, betas=betas, eps=config.eps, fused=True)


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
    """Set the learning rate of every group, which is its own multiple of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
