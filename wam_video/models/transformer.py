"""The joint video-action diffusion transformer: one stream of video, state, action and register tokens, a clock for each.

`f(x_video, x_action, t_video, t_action, context)`; blocks and conditioning have Wan's shapes and names, so that Wan weights
load by key. It predicts what its config says (velocity or clean sample); `flow.path` converts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.normalization import FP32LayerNorm
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wam_video.errors import ConfigError, one_of
from wam_video.models.blocks import Stream, WAMBlock, gather_slots
from wam_video.models.layers import ConditionEmbedder, EmbodimentLinear, octave_features
from wam_video.models.rope import rotary_angles, sinusoids
from wam_video.models.tokens import TokenLayout
from wam_video.tensors import Prediction, PredictionType

ActionCoupling = Literal["full", "gated"]

NO_BODY: tuple[dict[str, Any], ...] = ({"name": "none", "action_dim": 0, "state_dim": 0},)
"""The embodiments of a network that has only video."""


class WAMTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin, AttentionMixin, CacheMixin):
    """Denoise video latents and action chunks together.

    Args:
        embodiments: `{"name", "action_dim", "state_dim"}` of each body, in the order of their ids.
        num_views: Most cameras that a sample has; each gets a learned vector.
        in_channels: Channels of a video latent.
        out_channels: Channels predicted; None: as many as `in_channels`.
        condition_channels: Channels beside the latent that are given and not predicted: 20 for Wan's image-to-video shape
            (`video_codec.first_frame_condition`).
        patch_size: Latent frames, rows and columns in a token.
        num_layers: Blocks.
        num_attention_heads: Heads of each attention.
        attention_head_dim: Channels of a head; the width is heads times this.
        ffn_dim: Hidden width of the feed-forward layers.
        freq_dim: Sinusoids of the time embedding.
        text_dim: Channels of the text embeddings.
        image_dim: Channels of the image context (`image_encoder.encode_image`), 1280 for Wan's; None: there is none.
        added_kv_proj_dim: Channels of the image context inside, which has keys and values of its own: the width.
        input_octaves: Octaves of sinusoids beside each action and state value (`layers.octave_features`); 0: none.
        num_registers: Learned tokens without content (Darcet et al. 2023).
        cross_attn_norm: LayerNorm before cross-attention.
        rope_theta: Base of the rotary angles.
        rope_rate: Temporal positions a second. Wan's own: latent frames a second.
        absolute_positions: Also add fixed sinusoids of time, height and width to the tokens. Rotary positions are
            relative; a small model that has to read where something is, in the robot's coordinates, learns it sooner so.
        video_prediction: What is put out for video: "velocity" or "sample".
        action_prediction: The same for actions.
        residual_video: Add the last context frame to a video prediction of kind "sample", so that an untrained network
            copies that frame and training spends itself on what changes.
        action_coupling: How video tokens see state, actions and registers. "full": as they see each other. "gated": through
            a gate of each head that starts at zero (`attention.WAMSelfAttention`), so that a pretrained video network
            stays what it was, to the bit, until training opens the gate. The others always see everything.
        eps: Of the norms.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["WAMBlock"]
    _repeated_blocks = ["WAMBlock"]
    _skip_layerwise_casting_patterns = ["patch_embedding", "condition_embedder", "norm"]
    _keep_in_fp32_modules = ["time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"]

    @register_to_config
    def __init__(  # noqa: PLR0913 - diffusers turns the arguments into config.json, one by one
        self,
        embodiments: Sequence[dict[str, Any]] = NO_BODY,
        num_views: int = 1,
        in_channels: int = 16,
        out_channels: int | None = None,
        condition_channels: int = 0,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_layers: int = 4,
        num_attention_heads: int = 4,
        attention_head_dim: int = 32,
        ffn_dim: int = 512,
        freq_dim: int = 256,
        text_dim: int = 64,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        input_octaves: int = 0,
        num_registers: int = 4,
        cross_attn_norm: bool = True,
        rope_theta: float = 10000.0,
        rope_rate: float = 4.0,
        absolute_positions: bool = False,
        video_prediction: PredictionType = "velocity",
        action_prediction: PredictionType = "velocity",
        residual_video: bool = False,
        action_coupling: ActionCoupling = "full",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        _check_options(video_prediction, action_prediction, residual_video, attention_head_dim)
        dim = num_attention_heads * attention_head_dim
        _check_couplings(action_coupling, image_dim, added_kv_proj_dim, dim)
        action_dims = [max(e["action_dim"], 1) for e in embodiments]
        state_dims = [max(e["state_dim"], 1) for e in embodiments]
        features = 1 + 2 * input_octaves
        widths = [dim] * len(embodiments)
        patch = tuple(patch_size)
        self.patch_embedding = nn.Conv3d(in_channels + condition_channels, dim, patch, patch)
        self.condition_embedder = ConditionEmbedder(dim, freq_dim, text_dim, image_dim)
        self.action_embedder = EmbodimentLinear([features * n for n in action_dims], widths)
        self.state_embedder = EmbodimentLinear([features * n for n in state_dims], widths)
        self.no_state = nn.Parameter(torch.zeros(dim))
        self.view_embedding = nn.Parameter(torch.zeros(num_views, dim))
        self.registers = nn.Parameter(torch.randn(num_registers, dim) / dim**0.5)
        block = {"cross_attn_norm": cross_attn_norm, "eps": eps, "added_kv_proj_dim": added_kv_proj_dim}
        block["gated"] = action_coupling == "gated"
        self.blocks = nn.ModuleList([WAMBlock(dim, ffn_dim, num_attention_heads, **block) for _ in range(num_layers)])
        self.norm_out = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.proj_out = nn.Linear(dim, (out_channels or in_channels) * patch_size[0] * patch_size[1] * patch_size[2])
        self.action_proj_out = EmbodimentLinear(widths, action_dims, zero_init=True)
        self.gradient_checkpointing = False
        if residual_video:
            nn.init.zeros_(self.proj_out.weight)
            nn.init.zeros_(self.proj_out.bias)

    @classmethod
    def from_wan(
        cls,
        repo_or_folder: str | Path,
        *,
        embodiments: Sequence[dict[str, Any]] = NO_BODY,
        num_views: int = 1,
        subfolder: str | None = "transformer",
        torch_dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Self:
        """Start from a pretrained Wan video transformer in diffusers' format; see `backbones.load_wan`."""
        # Imported here, for that module reads checkpoints and the network itself does not.
        from wam_video.models.backbones import load_wan

        options |= {"embodiments": [dict(body) for body in embodiments], "num_views": num_views}
        return load_wan(cls, repo_or_folder, options, subfolder=subfolder, torch_dtype=torch_dtype, generator=generator)

    @property
    def prediction_kinds(self) -> tuple[PredictionType, PredictionType]:
        """What is put out for video and for actions."""
        return self.config["video_prediction"], self.config["action_prediction"]

    def forward(  # noqa: PLR0913 - each tensor of a sample by its name; they belong together only here
        self,
        *,
        latents: Float[Tensor, "b v c t h w"],
        t_video: Float[Tensor, "b t"],
        latent_times: Float[Tensor, "b t"],
        text_embeds: Float[Tensor, "b s dt"],
        embodiment: Int[Tensor, " b"],
        actions: Float[Tensor, "b ta da"] | None = None,
        t_action: Float[Tensor, "b ta"] | None = None,
        action_times: Float[Tensor, "b ta"] | None = None,
        state: Float[Tensor, "b ds"] | None = None,
        state_mask: Bool[Tensor, "b ds"] | None = None,
        view_mask: Bool[Tensor, "b v"] | None = None,
        condition: Float[Tensor, "b v cc t h w"] | None = None,
        image_embeds: Float[Tensor, "b i di"] | None = None,
        num_context: int = 1,
    ) -> Prediction:
        """Predict every latent frame and action of a noisy sample.

        Args:
            latents: Noisy or given latent frames; leave the future frames out where video is absent.
            t_video: Flow time of each latent frame in [0, 1]; 0 is given.
            latent_times: Seconds of each latent frame.
            text_embeds: Encoded prompt, zero past its end.
            embodiment: Id of each sample's body.
            actions: Noisy or given actions, normalised, padded to the widest embodiment; None: absent.
            t_action: Flow time of each action in [0, 1].
            action_times: Seconds of each action.
            state: Normalised proprioception at time 0; None: unknown.
            state_mask: Real dimensions of `state`; a sample without any has no state.
            view_mask: False for cameras that a sample does not have; their tokens are not attended to.
            condition: What the network reads beside the latents, if it has `condition_channels`.
            image_embeds: Image context, if the network has an `image_dim`.
            num_context: Latent frames that are context; the last one is what `residual_video` adds.

        Raises:
            ConfigError: `condition` or `image_embeds` is missing or superfluous, or of the wrong width.
        """
        self._check_conditions(condition, image_embeds)
        batch, views, _, frames, height, width = latents.shape
        if actions is None or t_action is None or action_times is None:
            actions = None
            t_action = action_times = t_video.new_zeros(batch, 0)
        patch = self.config["patch_size"]
        layout = TokenLayout(
            views=views,
            frames=frames // patch[0],
            height=height // patch[1],
            width=width // patch[2],
            state=1,
            actions=t_action.shape[1],
            registers=self.config["num_registers"],
        )
        pixels = latents if condition is None else torch.cat([latents, condition.to(latents)], dim=2)
        parts = self._embed(pixels, actions, state, state_mask, embodiment)
        separate = self.config["action_coupling"] == "gated"
        xs = list(parts) if separate else [torch.cat(parts, dim=1)]
        slots = [each.to(latents.device) for each in layout.stream_slots(separate=separate)]
        clocks = layout.stream_times(t_video, t_action, separate=separate)
        positions = layout.positions(latent_times, action_times, self.config["rope_rate"])
        positions = positions.split([x.shape[1] for x in xs], dim=1)
        if self.config["absolute_positions"]:
            xs = [x + sinusoids(at, x.shape[-1]).type_as(x) for x, at in zip(xs, positions, strict=True)]
        times, text, image = self.condition_embedder(clocks, text_embeds, image_embeds)
        rotaries = [rotary_angles(at, self.config["attention_head_dim"], self.config["rope_theta"]) for at in positions]
        streams = [Stream(time[1], at, rotary) for time, at, rotary in zip(times, slots, rotaries, strict=True)]
        mask = _view_attention_mask(layout, view_mask)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                xs = self._gradient_checkpointing_func(block, xs, streams, text, image, mask)
            else:
                xs = block(xs, streams, text, image, mask)
        outs = [self._modulate_out(x, time[0], at) for x, time, at in zip(xs, times, slots, strict=True)]
        return self._read_out(outs, layout, latents, embodiment, num_context)

    def _check_conditions(self, condition: Tensor | None, image_embeds: Tensor | None) -> None:
        channels, width = self.config["condition_channels"], self.config["image_dim"] or 0
        given = 0 if condition is None else condition.shape[2]
        if given != channels:
            raise ConfigError(
                f"condition has {given} channels; this network reads {channels} beside the latents "
                "(video_codec.first_frame_condition makes Wan's)"
            )
        given = 0 if image_embeds is None else image_embeds.shape[-1]
        if given != width:
            raise ConfigError(
                f"image_embeds is {given} wide; this network reads {width} (image_encoder.encode_image makes Wan's)"
            )

    def _embed(
        self,
        latents: Float[Tensor, "b v c t h w"],
        actions: Float[Tensor, "b ta da"] | None,
        state: Float[Tensor, "b ds"] | None,
        state_mask: Bool[Tensor, "b ds"] | None,
        embodiment: Int[Tensor, " b"],
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """Return the video tokens and the others."""
        batch, views = latents.shape[:2]
        x = self.patch_embedding(rearrange(latents, "b v c t h w -> (b v) c t h w"))
        x = rearrange(x, "(b v) d t h w -> b t v (h w) d", v=views)
        x = rearrange(x + self.view_embedding[:views, None], "b t v n d -> b (t v n) d")
        if state is None or state_mask is None:
            state_token = self.no_state.to(x).expand(batch, 1, -1)
        else:
            token = self.state_embedder(octave_features(state[:, None].to(x), self.config["input_octaves"]), embodiment)
            state_token = torch.where(state_mask.any(-1)[:, None, None], token, self.no_state.to(x))
        others = [state_token]
        if actions is not None:
            features = octave_features(actions.to(x), self.config["input_octaves"])
            others.append(self.action_embedder(features, embodiment))
        return x, torch.cat([*others, self.registers.to(x).expand(batch, -1, -1)], dim=1)

    def _modulate_out(
        self, x: Float[Tensor, "b n d"], time: Float[Tensor, "b m d"], slots: Int[Tensor, " n"]
    ) -> Float[Tensor, "b n d"]:
        shift, scale = (self.scale_shift_table[:, None] + time.float()[:, :, None]).type_as(x).unbind(2)
        return torch.addcmul(gather_slots(shift, slots), self.norm_out(x), gather_slots(1 + scale, slots))

    def _read_out(
        self,
        outs: list[Float[Tensor, "b n d"]],
        layout: TokenLayout,
        latents: Float[Tensor, "b v c t h w"],
        embodiment: Int[Tensor, " b"],
        num_context: int,
    ) -> Prediction:
        x = torch.cat(outs, dim=1)
        pt, ph, pw = self.config["patch_size"]
        video = rearrange(
            self.proj_out(x[:, : layout.num_video]),
            "b (t v h w) (pt ph pw c) -> b v c (t pt) (h ph) (w pw)",
            v=layout.views,
            h=layout.height,
            w=layout.width,
            pt=pt,
            ph=ph,
            pw=pw,
        )
        if self.config["residual_video"]:
            video = video + latents[:, :, :, num_context - 1 : num_context]
        actions = None
        if layout.actions:
            actions = self.action_proj_out(x[:, layout.action_slice], embodiment)
        return Prediction(video=video, actions=actions)


def _view_attention_mask(layout: TokenLayout, view_mask: Bool[Tensor, "b v"] | None) -> Bool[Tensor, "b 1 1 n"] | None:
    """Hide the tokens of absent cameras from everyone; None (the fast path) if every sample has every camera."""
    if view_mask is None:
        return None
    sites = layout.height * layout.width
    video = view_mask[:, None, :, None].expand(-1, layout.frames, -1, sites).flatten(1)
    rest = video.new_ones(video.shape[0], layout.num_tokens - layout.num_video)
    return torch.cat([video, rest], dim=1)[:, None, None]


def _check_options(video_kind: str, action_kind: str, residual: bool, head_dim: int) -> None:
    for what, kind in (("video_prediction", video_kind), ("action_prediction", action_kind)):
        if kind not in PredictionType.__args__:
            raise ConfigError(one_of(f"model.{what}", kind, PredictionType.__args__))
    if residual and video_kind != "sample":
        raise ConfigError(f"model.residual_video needs video_prediction 'sample', not {video_kind!r}")
    if head_dim % 2 or head_dim < 6:
        raise ConfigError(
            f"model.attention_head_dim is {head_dim}; allowed: even, 6 or more (rotary pairs on three axes)"
        )


def _check_couplings(coupling: str, image_dim: int | None, added_kv_proj_dim: int | None, dim: int) -> None:
    if coupling not in ActionCoupling.__args__:
        raise ConfigError(one_of("model.action_coupling", coupling, ActionCoupling.__args__))
    if added_kv_proj_dim != (None if image_dim is None else dim):
        raise ConfigError(
            f"model.added_kv_proj_dim is {added_kv_proj_dim}; allowed: the width ({dim}) with an image_dim, null without "
            f"(image_dim is {image_dim})"
        )
