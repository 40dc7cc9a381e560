"""Building the parts of `WAMTransformer` from its configuration, in an order that the random numbers of a seed depend on."""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from diffusers.models.normalization import FP32LayerNorm
from torch import nn

from wam_video.errors import ConfigError
from wam_video.models.blocks import WAMBlock
from wam_video.models.embodiments import TimedActionEmbedder, embodiment_map
from wam_video.models.expert import ActionExpert, ExpertConfig
from wam_video.models.layers import ConditionEmbedder, EmbodimentLinear
from wam_video.models.masks import AttentionConfig
from wam_video.models.options import (
    ActionCoupling,
    ActionEmbedding,
    ActionRope,
    StateClock,
    check_choice,
    check_image_width,
    check_predictions,
)
from wam_video.models.running import RunsBlocks


def check_settings(config: Mapping[str, Any]) -> AttentionConfig:
    """Refuse settings that no network has; return who sees whom.

    Raises:
        ConfigError: It names the setting.
    """
    check_predictions(
        config["video_prediction"], config["action_prediction"], config["residual_video"], config["attention_head_dim"]
    )
    check_choice("action_coupling", config["action_coupling"], ActionCoupling)
    check_choice("action_embedding", config["action_embedding"], ActionEmbedding)
    check_choice("action_rope", config["action_rope"], ActionRope)
    check_choice("state_clock", config["state_clock"], StateClock)
    check_image_width(config["image_dim"], config["added_kv_proj_dim"], _width(config))
    rule = AttentionConfig.read(config["attention"])
    if rule.action_history and config["action_coupling"] == "gated":
        raise ConfigError(
            "model.attention.action_history is true and model.action_coupling 'gated'; allowed with it: 'full', for "
            "video would see old actions without a gate"
        )
    return rule


def add_inputs(model: RunsBlocks, config: Mapping[str, Any]) -> None:
    """Add what makes tokens and conditions."""
    dim, patch = _width(config), tuple(config["patch_size"])
    expert = ExpertConfig.read(config["expert"], dim)
    side = dim if expert is None else expert.dim
    features = 1 + 2 * config["input_octaves"]
    actions, states = ([features * size for size in _sizes(config, key)] for key in ("action_dim", "state_dim"))
    widths = [side] * len(config["embodiments"])
    channels = config["in_channels"] + config["condition_channels"]
    model.patch_embedding = nn.Conv3d(channels, dim, patch, patch)
    model.condition_embedder = ConditionEmbedder(dim, config["freq_dim"], config["text_dim"], config["image_dim"])
    timed = config["action_embedding"] == "mlp_time"
    model.action_embedder = TimedActionEmbedder(actions, side) if timed else EmbodimentLinear(actions, widths)
    model.state_embedder = embodiment_map(states, config["embodiment_hidden_dim"], widths)
    model.no_state = nn.Parameter(torch.zeros(side))
    model.view_embedding = nn.Parameter(torch.zeros(config["num_views"], dim))
    model.registers = nn.Parameter(torch.randn(config["num_registers"], side) / side**0.5)


def add_blocks(model: RunsBlocks, config: Mapping[str, Any]) -> None:
    """Add the trunk, and what reads tokens out."""
    dim, sizes = _width(config), (config["num_attention_heads"], config["attention_head_dim"])
    options = {name: config[name] for name in ("cross_attn_norm", "eps", "added_kv_proj_dim")}
    options["gated"] = config["action_coupling"] == "gated"
    layers = range(config["num_layers"])
    model.blocks = nn.ModuleList([WAMBlock(dim, config["ffn_dim"], *sizes, **options) for _ in layers])
    model.norm_out = FP32LayerNorm(dim, config["eps"], elementwise_affine=False)
    model.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
    channels = config["out_channels"] or config["in_channels"]
    model.proj_out = nn.Linear(dim, channels * prod(config["patch_size"]))
    expert = ExpertConfig.read(config["expert"], dim)
    widths = [dim if expert is None else expert.dim] * len(config["embodiments"])
    hidden, actions = config["embodiment_hidden_dim"], _sizes(config, "action_dim")
    model.action_proj_out = embodiment_map(widths, hidden, actions, zero_init=True)
    if config["residual_video"]:
        nn.init.zeros_(model.proj_out.weight)
        nn.init.zeros_(model.proj_out.bias)


def add_expert(model: RunsBlocks, config: Mapping[str, Any]) -> None:
    """Add the tower of actions, state and registers, if there is one."""
    tower = ExpertConfig.read(config["expert"], _width(config))
    if tower is None:
        return
    module = ActionExpert(
        tower,
        layers=config["num_layers"],
        heads=config["num_attention_heads"],
        head_dim=config["attention_head_dim"],
        conditions=(config["freq_dim"], config["text_dim"], config["image_dim"]),
        block={name: config[name] for name in ("cross_attn_norm", "eps")},
        norm_out=config["action_norm_out"],
    )
    if tower.init == "interpolate" and not model.no_state.is_meta:
        module.reset_parameters(model)
    model._modules["expert"] = module  # add_module refuses the name, which the configuration has too


def _width(config: Mapping[str, Any]) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]


def _sizes(config: Mapping[str, Any], key: str) -> list[int]:
    return [max(body[key], 1) for body in config["embodiments"]]
