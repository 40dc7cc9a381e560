"""Names of tensors in the original Wan code's encoders -> names in transformers and diffusers, and their sizes by their shapes.

DreamZero's checkpoints hold them: the umt5 text encoder, the visual half of CLIP, and the VAE of Wan2.1 or Wan2.2.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from wam_video.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

UNUSED = {"text_encoder": (), "image_encoder": ("model.visual.head", "model.log_scale"), "vae": ()}
"""Tensors that DreamZero's code loads and never uses: the projection and the temperature of CLIP."""

_UMT5 = {
    r"token_embedding\.": "shared.",
    r"norm\.": "encoder.final_layer_norm.",
    r"blocks\.(\d+)\.norm1\.": r"encoder.block.\1.layer.0.layer_norm.",
    r"blocks\.(\d+)\.norm2\.": r"encoder.block.\1.layer.1.layer_norm.",
    r"blocks\.(\d+)\.attn\.(q|k|v|o)\.": r"encoder.block.\1.layer.0.SelfAttention.\2.",
    r"blocks\.(\d+)\.pos_embedding\.embedding\.": r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.",
    r"blocks\.(\d+)\.ffn\.gate\.0\.": r"encoder.block.\1.layer.1.DenseReluDense.wi_0.",
    r"blocks\.(\d+)\.ffn\.fc1\.": r"encoder.block.\1.layer.1.DenseReluDense.wi_1.",
    r"blocks\.(\d+)\.ffn\.fc2\.": r"encoder.block.\1.layer.1.DenseReluDense.wo.",
}
_CLIP = {
    r"cls_embedding$": "embeddings.class_embedding",
    r"pos_embedding$": "embeddings.position_embedding.weight",
    r"patch_embedding\.": "embeddings.patch_embedding.",
    r"pre_norm\.": "pre_layrnorm.",
    r"post_norm\.": "post_layernorm.",
    r"transformer\.(\d+)\.norm(1|2)\.": r"encoder.layers.\1.layer_norm\2.",
    r"transformer\.(\d+)\.attn\.to_qkv\.": r"encoder.layers.\1.self_attn.qkv.",
    r"transformer\.(\d+)\.attn\.proj\.": r"encoder.layers.\1.self_attn.out_proj.",
    r"transformer\.(\d+)\.mlp\.0\.": r"encoder.layers.\1.mlp.fc1.",
    r"transformer\.(\d+)\.mlp\.2\.": r"encoder.layers.\1.mlp.fc2.",
}
_RESIDUAL = {"residual.0.": "norm1.", "residual.2.": "conv1.", "residual.3.": "norm2.", "residual.6.": "conv2."}
_VAE_ENDS = {"conv1.": "conv_in.", "head.0.": "norm_out.", "head.2.": "conv_out."}
_CLIP_HEAD_DIM = 80
"""Of CLIP's ViT-H/14, whose number of heads no shape tells."""


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split()]


_WAN22: dict[str, Any] = {
    "z_dim": 48,
    "in_channels": 12,
    "out_channels": 12,
    "is_residual": True,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "temperal_downsample": [False, True, True],
    "latents_mean": _numbers(
        "-0.2289 -0.0052 -0.1323 -0.2339 -0.2799 0.0174 0.1838 0.1557 -0.1382 0.0542 0.2813 0.0891 0.157 -0.0098 0.0375 -0.1825 "
        "-0.2246 -0.1207 -0.0698 0.5109 0.2665 -0.2108 -0.2158 0.2502 -0.2055 -0.0322 0.1109 0.1567 -0.0729 0.0899 -0.2799 -0.123 "
        "-0.0313 -0.1649 0.0117 0.0723 -0.2839 -0.2083 -0.052 0.3748 0.0152 0.1957 0.1433 -0.2944 0.3573 -0.0548 -0.1681 -0.0667 "
    ),
    "latents_std": _numbers(
        "0.4765 1.0364 0.4514 1.1677 0.5313 0.499 0.4818 0.5013 0.8158 1.0344 0.5894 1.0901 0.6885 0.6165 0.8454 0.4978 "
        "0.5759 0.3523 0.7135 0.6804 0.5833 1.4146 0.8986 0.5659 0.7069 0.5338 0.4889 0.4917 0.4069 0.4999 0.6866 0.4093 "
        "0.5709 0.6065 0.6415 0.4944 0.5726 1.2042 0.5458 1.6887 0.3971 1.06 0.3943 0.5537 0.5444 0.4089 0.7468 0.7744 "
    ),
}
"""Arguments of the VAE of Wan2.2 TI2V 5B, which its weights don't tell."""


def umt5_names(name: str) -> list[str]:
    """Return the names in `UMT5EncoderModel` of a tensor of Wan's text encoder; none if it is none."""
    return [ours for ours in [_renamed(name, _UMT5)] if ours]


def clip_names(name: str) -> list[str]:
    """Return the names in `CLIPVisionModel` of a tensor of Wan's CLIP; three where queries, keys and values are one there."""
    ours = _renamed(name, _CLIP)
    if ours and ".qkv." in ours:
        return [ours.replace(".qkv.", f".{part}_proj.") for part in ("q", "k", "v")]
    return [ours] if ours else []


def vae_names(name: str) -> list[str]:
    """Return the names in `AutoencoderKLWan` of a tensor of Wan's VAE, that of Wan2.1 or of Wan2.2; none if it is none."""
    for theirs, ours in (("conv1.", "quant_conv."), ("conv2.", "post_quant_conv.")):
        if name.startswith(theirs):
            return [ours + name.removeprefix(theirs)]
    half, _, rest = name.partition(".")
    if half not in ("encoder", "decoder"):
        return []
    for theirs, ours in _VAE_ENDS.items():
        if rest.startswith(theirs):
            return [f"{half}.{ours}{rest.removeprefix(theirs)}"]
    if found := re.match(r"middle\.(0|1|2)\.(.*)", rest):
        place, tail = int(found[1]), found[2]
        kind = "attentions.0" if place == 1 else f"resnets.{place // 2}"
        return [f"{half}.mid_block.{kind}.{_residual(tail)}"]
    found = re.match(r"(down|up)samples\.(\d+)\.(.*)", rest)
    return [_level(half, found[1], int(found[2]), found[3])] if found else []


def _level(half: str, way: str, place: int, tail: str) -> str:
    """Return the name of a tensor in a level: Wan2.2 has lists of lists; Wan2.1 one, in the decoder three blocks and a step up."""
    if inner := re.match(r"(?:down|up)samples\.(\d+)\.(.*)", tail):
        block = f"{half}.{way}_blocks.{place}"
        if inner[2].startswith(("resample.", "time_conv.")):
            return f"{block}.{way}sampler.{inner[2]}"
        return f"{block}.resnets.{inner[1]}.{_residual(inner[2])}"
    if way == "down":
        return f"{half}.down_blocks.{place}.{_residual(tail)}"
    block, index = divmod(place, 4)
    return f"{half}.up_blocks.{block}." + (
        f"upsamplers.0.{tail}" if index == 3 else f"resnets.{index}.{_residual(tail)}"
    )


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    for pattern, ours in table.items():
        if re.match(pattern, name):
            return re.sub("^" + pattern, ours, name)
    return None


def _residual(tail: str) -> str:
    for theirs, ours in _RESIDUAL.items():
        if tail.startswith(theirs):
            return ours + tail.removeprefix(theirs)
    return tail.replace("shortcut.", "conv_shortcut.") if tail.startswith("shortcut.") else tail


def split(name: str, value: Float[Tensor, "..."]) -> list[Float[Tensor, "..."]]:
    """Return the values of the tensors that `clip_names` (or another of these) makes of one, in its order."""
    if ".attn.to_qkv." in name and name.startswith("transformer."):
        return list(value.chunk(3))
    if name in ("cls_embedding", "pos_embedding"):
        return [value.reshape(value.shape[-1] if name == "cls_embedding" else value.shape[1:])]
    return [value]


def umt5(shapes: Shapes) -> UMT5EncoderModel:
    """Return the text encoder of these sizes, without memory for its weights."""
    vocabulary, width = shapes["token_embedding.weight"]
    buckets, heads = shapes["blocks.0.pos_embedding.embedding.weight"]
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=shapes["blocks.0.attn.q.weight"][0] // heads,
        d_ff=shapes["blocks.0.ffn.fc1.weight"][0],
        num_layers=_depth(shapes, "blocks"),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
    )
    return UMT5EncoderModel(config)


def clip(shapes: Shapes) -> CLIPVisionModel:
    """Return the image encoder of these sizes, without memory for its weights."""
    width, _, patch, _ = shapes["patch_embedding.weight"]
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=shapes["transformer.0.mlp.0.weight"][0],
        num_hidden_layers=_depth(shapes, "transformer"),
        num_attention_heads=max(width // _CLIP_HEAD_DIM, 1),
        image_size=round((shapes["pos_embedding"][1] - 1) ** 0.5) * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    )
    return CLIPVisionModel(config)


def vae(shapes: Shapes) -> AutoencoderKLWan:
    """Return the VAE of these sizes, without memory for its weights.

    Raises:
        CheckpointError: It has the width of neither Wan2.1's latents nor Wan2.2's, whose scales are known.
    """
    channels, width = shapes["conv2.weight"][0], shapes["encoder.conv1.weight"][0]
    if channels == 16:
        return AutoencoderKLWan(base_dim=width)
    if channels != len(_WAN22["latents_mean"]):
        raise CheckpointError(f"the VAE has {channels} latent channels; allowed: 16 (Wan2.1) or 48 (Wan2.2)")
    return AutoencoderKLWan(
        base_dim=width, decoder_base_dim=shapes["decoder.middle.0.residual.0.gamma"][0] // 4, **_WAN22
    )


def _depth(shapes: Shapes, name: str) -> int:
    return 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith(f"{name}."))


Names = Callable[[str], list[str]]
ENCODERS: dict[str, tuple[str, Names, Callable[[Shapes], nn.Module]]] = {
    "text_encoder": ("", umt5_names, umt5),
    "image_encoder": ("model.visual.", clip_names, clip),
    "vae": ("model.", vae_names, vae),
}
"""Part -> what its names start with, the map of the rest, and what makes the empty module from their shapes."""


def empty(part: str, shapes: Shapes) -> nn.Module:
    """Return the module of a part of these sizes on the meta device."""
    with torch.device("meta"):
        return ENCODERS[part][2](shapes)
