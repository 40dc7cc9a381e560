"""Names of tensors in published checkpoints -> names here.

DreamZero keeps the names of the original Wan code, which diffusers changed, and adds its maps of actions and state; their
tables have one row, for the release does not tell bodies apart.
"""

import re
from collections.abc import Iterable

from wam_video.errors import CheckpointError

DREAMZERO_OPTIONS: dict[str, object] = {
    "num_registers": 0,
    "action_embedding": "mlp_time",
    "action_rope": "index",
    "state_clock": "action",
    "action_norm_out": False,
}
"""Settings of `WAMTransformer` in which DreamZero's network differs from the defaults, whatever its size."""
DREAMZERO_ATTENTION: dict[str, object] = {"pattern": "causal", "state_sees": "self"}
"""Its rule, but for `chunk_frames`, which its configuration calls `num_frame_per_block`."""

_WAN = {
    r"text_embedding\.0\.": "condition_embedder.text_embedder.linear_1.",
    r"text_embedding\.2\.": "condition_embedder.text_embedder.linear_2.",
    r"time_embedding\.0\.": "condition_embedder.time_embedder.linear_1.",
    r"time_embedding\.2\.": "condition_embedder.time_embedder.linear_2.",
    r"time_projection\.1\.": "condition_embedder.time_proj.",
    r"img_emb\.proj\.0\.": "condition_embedder.image_embedder.norm1.",
    r"img_emb\.proj\.1\.": "condition_embedder.image_embedder.ff.net.0.proj.",
    r"img_emb\.proj\.3\.": "condition_embedder.image_embedder.ff.net.2.",
    r"img_emb\.proj\.4\.": "condition_embedder.image_embedder.norm2.",
    r"patch_embedding\.": "patch_embedding.",
    r"head\.head\.": "proj_out.",
    r"head\.modulation$": "scale_shift_table",
    r"blocks\.(\d+)\.modulation$": r"blocks.\1.scale_shift_table",
    r"blocks\.(\d+)\.norm3\.": r"blocks.\1.norm2.",
    r"blocks\.(\d+)\.ffn\.0\.": r"blocks.\1.ffn.net.0.proj.",
    r"blocks\.(\d+)\.ffn\.2\.": r"blocks.\1.ffn.net.2.",
    r"blocks\.(\d+)\.self_attn\.(q|k|v)\.": r"blocks.\1.attn1.to_\2.",
    r"blocks\.(\d+)\.self_attn\.o\.": r"blocks.\1.attn1.to_out.0.",
    r"blocks\.(\d+)\.self_attn\.(norm_q|norm_k)\.": r"blocks.\1.attn1.\2.",
    r"blocks\.(\d+)\.cross_attn\.(q|k|v)\.": r"blocks.\1.attn2.to_\2.",
    r"blocks\.(\d+)\.cross_attn\.o\.": r"blocks.\1.attn2.to_out.0.",
    r"blocks\.(\d+)\.cross_attn\.(norm_q|norm_k)\.": r"blocks.\1.attn2.\2.",
    r"blocks\.(\d+)\.cross_attn\.(k|v)_img\.": r"blocks.\1.attn2.add_\2_proj.",
    r"blocks\.(\d+)\.cross_attn\.norm_k_img\.": r"blocks.\1.attn2.norm_added_k.",
}
"""Start of a name in the original Wan code -> its start in diffusers, which is ours."""
_TABLES = {
    r"action_encoder\.W(\d)\.": r"action_embedder.layer\1.",
    r"state_encoder\.layer(\d)\.": r"state_embedder.layer\1.",
    r"action_decoder\.layer(\d)\.": r"action_proj_out.layer\1.",
}
_LEAVES = {"W": "weight", "b": "bias"}


def dreamzero_key(name: str) -> str:
    """Return our name of a tensor of DreamZero's network.

    Raises:
        CheckpointError: It is none of its tensors.
    """
    for pattern, ours in _WAN.items():
        if re.match(pattern, name):
            return re.sub("^" + pattern, ours, name)
    for pattern, ours in _TABLES.items():
        if re.match(pattern, name):
            start, _, leaf = re.sub("^" + pattern, ours, name).rpartition(".")
            if leaf in _LEAVES:
                return f"{start}.{_LEAVES[leaf]}"
    raise CheckpointError(f"{name!r} is no tensor of DreamZero's network; give the weights of its diffusion model")


def dreamzero_keys(names: Iterable[str]) -> dict[str, str]:
    """Return our name of each tensor.

    Raises:
        CheckpointError: A name is unknown, or two have the same name here.
    """
    ours: dict[str, str] = {name: dreamzero_key(name) for name in names}
    if len(set(ours.values())) != len(ours):
        raise CheckpointError(
            "two tensors have the same name here; the checkpoint is of another network than DreamZero's"
        )
    return ours
