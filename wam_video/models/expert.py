"""A narrow action expert beside the video trunk: a mixture of transformers (Liang et al. 2024, "Mixture-of-Transformers").

Video goes through the trunk; actions, state and registers go through the expert, which is a Wan of the same depth and the
same heads with a narrower residual stream, and with time and text embedders of its own. The two meet in self-attention,
where `masks.visible` says who sees whom. State and registers are the expert's, so that the trunk stays a video network, as
Motus has it; FastWAM hands the state to both towers as one more word of the prompt.

Sources: FastWAM (arXiv 2603.16666; 30 layers, 1024 wide beside 3072), LingBot-VA (arXiv 2601.21998; 768 wide), Motus (arXiv
2512.13030). FastWAM's expert reads the prompt, Motus' does not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal, get_args

import torch
from diffusers.models.normalization import FP32LayerNorm
from jaxtyping import Float
from torch import Tensor, nn

from wam_video.errors import ConfigError, one_of
from wam_video.models.blocks import Tower
from wam_video.models.layers import ConditionEmbedder

ExpertInit = Literal["random", "interpolate"]


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """The tower of actions, state and registers; its depth and heads are the trunk's."""

    dim: int
    """Width of its tokens; even. In a mapping `width` may stand for it: a share of the trunk's, which fits any trunk."""
    ffn_dim: int
    """Hidden width of its feed-forward layers; in a mapping it may be left out: four times `dim`."""
    init: str = "random"
    """`random`, or `interpolate`: narrowed from the trunk's weights (`ActionExpert.reset_parameters`)."""
    cross_attention: bool = True
    """Whether it reads the prompt itself (FastWAM), or hears of it through the video only (Motus)."""

    def __post_init__(self) -> None:
        for name in ("dim", "ffn_dim"):
            if getattr(self, name) < 2 or getattr(self, name) % 2:
                raise ConfigError(f"model.expert.{name} is {getattr(self, name)}; allowed: even, 2 or more")
        if self.init not in get_args(ExpertInit):
            raise ConfigError(one_of("model.expert.init", self.init, get_args(ExpertInit)))

    @classmethod
    def read(cls, settings: Mapping[str, Any] | None, trunk: int) -> "ExpertConfig | None":
        """Return the configuration of a mapping, such as `expert` of a network's config.json; None: there is no expert.

        Args:
            settings: Fields of this class; or `width`, a share of the trunk's, instead of `dim`.
            trunk: Width of the trunk.

        Raises:
            ConfigError: A key is unknown or missing, or a value not allowed.
        """
        if settings is None:
            return None
        values, allowed = dict(settings), [*signature(cls).parameters, "width"]
        for key in values:
            if key not in allowed:
                raise ConfigError(one_of("configuration key under model.expert.", key, allowed))
        if ("dim" in values) == ("width" in values):
            raise ConfigError(
                f"model.expert has {'both' if 'dim' in values else 'neither'} dim and width; set one: dim (FastWAM: 1024), or "
                "width, its share of the trunk's"
            )
        if "width" in values:
            width = values.pop("width")
            if not 0 < width <= 1:
                raise ConfigError(f"model.expert.width is {width}; allowed: above 0 to 1, as a share of the trunk's")
            values["dim"] = max(2 * round(trunk * width / 2), 2)
        values.setdefault("ffn_dim", 4 * values["dim"])
        return cls(**values)


class ActionExpert(nn.Module):
    """The layers of the expert, named as the trunk's are: `condition_embedder`, `blocks`, `scale_shift_table`.

    Args:
        config: Its sizes.
        layers: Blocks of the trunk.
        heads: Heads of the trunk.
        head_dim: Channels of a head.
        conditions: `freq_dim`, `text_dim` and `image_dim` of the trunk.
        block: `cross_attn_norm` and `eps` of the trunk's blocks.
        norm_out: Whether actions are normalised and modulated before they are read out.
    """

    def __init__(
        self,
        config: ExpertConfig,
        *,
        layers: int,
        heads: int,
        head_dim: int,
        conditions: tuple[int, int, int | None],
        block: Mapping[str, Any],
        norm_out: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        freq_dim, text_dim, image_dim = conditions
        reads = config.cross_attention
        self.condition_embedder = ConditionEmbedder(
            config.dim, freq_dim, text_dim if reads else None, image_dim if reads else None
        )
        added = config.dim if image_dim is not None else None
        towers = [
            Tower(config.dim, config.ffn_dim, heads, head_dim, **block, added_kv_proj_dim=added, cross_attention=reads)
            for _ in range(layers)
        ]
        self.blocks = nn.ModuleList(towers)
        self.norm_out = self.scale_shift_table = None
        if norm_out:
            self.norm_out = FP32LayerNorm(config.dim, block["eps"], elementwise_affine=False)
            self.scale_shift_table = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    @torch.no_grad()
    def reset_parameters(self, trunk: nn.Module | None = None, generator: torch.Generator | None = None) -> None:
        """Draw the weights, or (with a trunk) narrow those of the same name; see `narrowed`.

        Drawn are linear maps and biases in +-1 / sqrt(input width), as torch does, and modulations with variance 1 / width.
        """
        if trunk is not None:
            wide = dict(trunk.named_parameters())
            for name, value in self.named_parameters():
                value.copy_(narrowed(name, wide[name], value.shape))
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                for value in module.parameters(recurse=False):
                    value.uniform_(-bound, bound, generator=generator)
            else:
                for name, value in module.named_parameters(recurse=False):
                    if name == "scale_shift_table":
                        value.normal_(std=value.shape[-1] ** -0.5, generator=generator)
                    else:  # norms
                        value.fill_(float(name == "weight"))


def narrowed(name: str, source: Float[Tensor, "..."], shape: torch.Size) -> Float[Tensor, "..."]:
    """Return a parameter of the trunk in the shape of the expert's: interpolated linearly along rows and columns.

    The procedure is FastWAM's and LingBot-VA's: ends fall on ends, and a matrix with fewer inputs is multiplied by
    sqrt(dv / da), which keeps the variance of what it puts out. Beyond it, mean and standard deviation of the entries are made
    those of the source, for averaging neighbours takes up to half of the variance away. Nothing is resized inside attention,
    where both towers meet: queries, keys and values keep the trunk's width.
    """
    target = tuple(shape)
    parts = 6 if "time_proj." in name else 1  # six vectors side by side, each of which is a width of its own
    x = source.float().unflatten(0, (parts, -1))
    for axis, size in enumerate((parts, target[0] // parts, *target[1:])):
        if x.shape[axis] != size:
            x = _resized(x, axis, size)
    x = x.flatten(0, 1)
    if x.shape == source.shape:
        return source
    if x.std() > 0 and source.numel() > 1:
        x = (x - x.mean()) / x.std() * source.float().std() + source.float().mean()
    return x * (source.shape[-1] / target[-1]) ** 0.5 if name.endswith(".weight") and x.ndim > 1 else x


def _resized(x: Tensor, axis: int, size: int) -> Tensor:
    rows = x.movedim(axis, -1)
    flat = rows.reshape(1, -1, rows.shape[-1])
    flat = torch.nn.functional.interpolate(flat, size=size, mode="linear", align_corners=True)
    return flat.reshape(*rows.shape[:-1], size).movedim(-1, axis)
