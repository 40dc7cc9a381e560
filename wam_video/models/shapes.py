"""The sizes of a network that its costs depend on, read off its configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from wam_video.errors import ConfigError
from wam_video.models.expert import ExpertConfig
from wam_video.models.masks import AttentionConfig
from wam_video.models.tokens import TokenLayout


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """The sizes of a tower (`blocks.Tower`)."""

    dim: int
    ffn_dim: int
    reads: bool = True
    """Whether it has cross-attention."""

    def weights(self, inner: int, *, text_cached: bool = False) -> int:
        """Return the weights of a block's matrix products, `inner` wide inside attention; `text_cached`: but the prompt's."""
        cross = 0 if not self.reads else 2 if text_cached else 4
        return (4 + cross) * self.dim * inner + 2 * self.dim * self.ffn_dim


@dataclass(frozen=True, kw_only=True)
class NetworkShape:
    """The sizes of a `WAMTransformer` that its costs depend on."""

    layers: int
    heads: int
    dim: int
    """Width: heads times head dim."""
    ffn_dim: int
    freq_dim: int
    text_dim: int
    image_dim: int
    """Of the image context; 0: there is none."""
    patch_in: int
    """Numbers in a patch of latents and of what is given beside them."""
    patch_out: int
    action_dim: int
    """Of the widest embodiment, to which all are padded."""
    state_dim: int
    features: int
    """Numbers that each action and state value becomes (`layers.octave_features`)."""
    registers: int
    patch_size: tuple[int, int, int]
    gated: bool
    """Whether video tokens see the others through a gate, in an attention of its own."""
    hidden_dim: int = 0
    """Hidden width of the maps of states in and of actions out; 0: they are linear."""
    timed_actions: bool = False
    """Whether actions are embedded by three maps that are told the clock."""
    expert: TowerShape | None = None
    """The tower of all tokens but video; None: they go through the trunk."""
    blind: bool = False
    """Whether video tokens have an attention of their own, because they see none of the others."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "NetworkShape":
        """Read the sizes off a transformer's `config`."""
        patch = tuple(config["patch_size"])
        bodies = config["embodiments"]
        settings = ExpertConfig.read(config.get("expert"), config["num_attention_heads"] * config["attention_head_dim"])
        tower = None
        if settings is not None:
            tower = TowerShape(dim=settings.dim, ffn_dim=settings.ffn_dim, reads=settings.cross_attention)
        apart = tower is not None or config.get("action_coupling") == "gated"
        return cls(
            layers=config["num_layers"],
            heads=config["num_attention_heads"],
            dim=config["num_attention_heads"] * config["attention_head_dim"],
            ffn_dim=config["ffn_dim"],
            freq_dim=config["freq_dim"],
            text_dim=config["text_dim"],
            image_dim=config.get("image_dim") or 0,
            patch_in=(config["in_channels"] + config.get("condition_channels", 0)) * prod(patch),
            patch_out=(config["out_channels"] or config["in_channels"]) * prod(patch),
            action_dim=max(max(body["action_dim"], 1) for body in bodies),
            state_dim=max(max(body["state_dim"], 1) for body in bodies),
            features=1 + 2 * config["input_octaves"],
            registers=config["num_registers"],
            patch_size=patch,
            gated=config.get("action_coupling") == "gated",
            hidden_dim=config.get("embodiment_hidden_dim") or 0,
            timed_actions=config.get("action_embedding") == "mlp_time",
            expert=tower,
            blind=apart and not AttentionConfig.read(config.get("attention")).video_sees_actions,
        )

    def layout(self, *, views: int, grid: tuple[int, int, int], actions: int) -> TokenLayout:
        """Return the tokens of a call on latents of `grid` (frames, rows, columns) a view.

        Raises:
            ConfigError: The latents do not fill whole patches.
        """
        if any(side < 1 or side % cell for side, cell in zip(grid, self.patch_size, strict=True)):
            raise ConfigError(
                f"the latent grid is {list(grid)}; allowed: multiples of model.patch_size {list(self.patch_size)} "
                "(frames, rows, columns of latents, before patches)"
            )
        frames, height, width = (side // cell for side, cell in zip(grid, self.patch_size, strict=True))
        return TokenLayout(
            views=views,
            frames=frames,
            height=height,
            width=width,
            state=1,
            actions=actions,
            registers=self.registers,
        )

    @property
    def action_weights(self) -> tuple[int, int]:
        """Weights that an action meets on its way in, and on its way out."""
        dim, hidden = self.side_dim, self.hidden_dim
        into = self.features * self.action_dim * dim + (3 * dim**2 if self.timed_actions else 0)
        return into, hidden * (dim + self.action_dim) if hidden else dim * self.action_dim

    @property
    def state_weights(self) -> int:
        """Weights that a state meets on its way in."""
        inputs, hidden = self.features * self.state_dim, self.hidden_dim
        return hidden * (inputs + self.side_dim) if hidden else inputs * self.side_dim

    @property
    def side_dim(self) -> int:
        """Width of actions, state and registers."""
        return self.dim if self.expert is None else self.expert.dim

    @property
    def trunk(self) -> TowerShape:
        """The tower of video, and without an expert of all."""
        return TowerShape(dim=self.dim, ffn_dim=self.ffn_dim)

    @property
    def block_weights(self) -> int:
        """Weights of a trunk block's matrix products: two attentions of four each, and the feed-forward pair."""
        return self.trunk.weights(self.dim)
