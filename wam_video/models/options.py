"""What the options of `WAMTransformer` may be."""

from typing import Any, Literal, get_args

from wam_video.errors import ConfigError, one_of
from wam_video.tensors import PredictionType

ActionCoupling = Literal["full", "gated"]
ActionEmbedding = Literal["linear", "mlp_time"]
ActionRope = Literal["time", "index"]
StateClock = Literal["given", "action"]


def check_choice(name: str, value: str, kind: Any) -> None:
    """Refuse a value that is none of a `Literal`'s.

    Raises:
        ConfigError: It names the option, the value and what is allowed.
    """
    if value not in get_args(kind):
        raise ConfigError(one_of(f"model.{name}", value, get_args(kind)))


def check_predictions(video_kind: str, action_kind: str, residual: bool, head_dim: int) -> None:
    """Refuse kinds of prediction, and heads, that there are not.

    Raises:
        ConfigError: It names the option.
    """
    check_choice("video_prediction", video_kind, PredictionType)
    check_choice("action_prediction", action_kind, PredictionType)
    if residual and video_kind != "sample":
        raise ConfigError(f"model.residual_video needs video_prediction 'sample', not {video_kind!r}")
    if head_dim % 2 or head_dim < 6:
        raise ConfigError(
            f"model.attention_head_dim is {head_dim}; allowed: even, 6 or more (rotary pairs on three axes)"
        )


def check_image_width(image_dim: int | None, added_kv_proj_dim: int | None, dim: int) -> None:
    """Refuse an image context whose keys are not as wide as the network.

    Raises:
        ConfigError: It names both.
    """
    if added_kv_proj_dim != (None if image_dim is None else dim):
        raise ConfigError(
            f"model.added_kv_proj_dim is {added_kv_proj_dim}; allowed: the width ({dim}) with an image_dim, null without "
            f"(image_dim is {image_dim})"
        )
