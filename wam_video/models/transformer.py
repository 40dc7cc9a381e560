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
from wam_video.models.attention import uses_flex
from wam_video.models.blocks import Stream, Surroundings, WAMBlock, gather_slots
from wam_video.models.chunks import Call, History, chunk_ids, chunk_times, state_rows
from wam_video.models.layers import ConditionEmbedder, EmbodimentLinear, octave_features
from wam_video.models.masks import AttentionConfig, Modality, TokenMeta, make_masks
from wam_video.models.rope import rotary_angles, sinusoids
from wam_video.models.tokens import TokenGroup, join, side_meta, side_positions, video_meta, video_positions
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
        residual_video: Add the last clean frame before a chunk (the last context frame, where there are none) to its video
            prediction of kind "sample", so that an untrained network copies that frame and training spends itself on what
            changes.
        action_coupling: How video tokens see state, actions and registers. "full": as they see each other. "gated": through
            a gate of each head that starts at zero (`attention.WAMSelfAttention`), so that a pretrained video network
            stays what it was, to the bit, until training opens the gate. The others always see everything.
        attention: Who sees whom, as `masks.AttentionConfig` has it; None: everyone everyone.
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
        attention: dict[str, Any] | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        _check_options(video_prediction, action_prediction, residual_video, attention_head_dim)
        dim = num_attention_heads * attention_head_dim
        _check_couplings(action_coupling, image_dim, added_kv_proj_dim, dim)
        self.attention = AttentionConfig.read(attention)
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
        state: Float[Tensor, "b *s ds"] | None = None,
        state_mask: Bool[Tensor, "b *s ds"] | None = None,
        view_mask: Bool[Tensor, "b v"] | None = None,
        condition: Float[Tensor, "b v cc t h w"] | None = None,
        image_embeds: Float[Tensor, "b i di"] | None = None,
        num_context: int = 1,
        history: History | None = None,
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
            state: Normalised proprioception at time 0, or at the start of each chunk; None: unknown.
            state_mask: Real dimensions of `state`; a sample without any has no state.
            view_mask: False for cameras that a sample does not have; their tokens are not attended to.
            condition: What the network reads beside the latents, if it has `condition_channels`.
            image_embeds: Image context, if the network has an `image_dim`.
            num_context: Latent frames that are context: chunk 0, where there are chunks.
            history: Clean copies of the frames and actions that later chunks read (`attention` of pattern causal).

        Raises:
            ConfigError: `condition` or `image_embeds` is missing or superfluous, or of the wrong width.
        """
        self._check_conditions(condition, image_embeds)
        if actions is None or t_action is None or action_times is None:
            actions = None
            t_action = action_times = t_video.new_zeros(t_video.shape[0], 0)
        count = actions.shape[1] if actions is not None else 0
        ids = chunk_ids(
            self.attention, frames=latents.shape[3], num_context=num_context, actions=count, history=history
        ).to(latents.device)
        call = Call(
            latents=latents,
            t_video=t_video,
            latent_times=latent_times,
            embodiment=embodiment,
            actions=actions,
            t_action=t_action,
            action_times=action_times,
            state=state_rows(state, state_mask, ids.count),
            view_mask=view_mask,
            condition=condition,
            num_context=num_context,
            history=history,
            ids=ids,
        )
        text, image = self.condition_embedder.context(text_embeds, image_embeds)
        groups = self._groups(call)
        outs = self._blocks(groups, Surroundings(text, image), hides=view_mask is not None)
        return self._read_out(outs, call)

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

    def _groups(self, call: Call) -> dict[str, TokenGroup]:
        """Return the tokens of a call by kind, in their order."""
        video = self._video(call)
        return {"video": video} | self._side(call, like=video.tokens)

    def _video(self, call: Call) -> TokenGroup:
        """Return the video tokens: clean copies, then the call's frames."""
        latents, clocks, times, condition = call.frames()
        views, ids = latents.shape[1], call.ids
        pixels = latents if condition is None else torch.cat([latents, condition.to(latents)], dim=2)
        x = self.patch_embedding(rearrange(pixels, "b v c t h w -> (b v) c t h w"))
        height, width = x.shape[-2:]
        x = rearrange(x, "(b v) d t h w -> b t v (h w) d", v=views)
        x = rearrange(x + self.view_embedding[:views, None], "b t v n d -> b (t v n) d")
        sites = height * width
        chunk = torch.cat([ids.history_frames, ids.frames], dim=1)
        noisy = torch.cat([torch.zeros_like(ids.history_frames[:1]), ids.noisy], dim=1).expand_as(chunk)
        return self._group(
            x,
            clocks,
            torch.arange(clocks.shape[1], device=x.device).repeat_interleave(views * sites),
            video_positions(times * self.config["rope_rate"], views, height, width),
            video_meta(chunk, noisy, call.view_mask, sites, views),
        )

    def _side(self, call: Call, like: Tensor) -> dict[str, TokenGroup]:
        """Return the tokens of state, clean actions, actions and registers."""
        ids, device = call.ids, like.device
        starts = chunk_times(ids, self.attention, call.num_context, call.latent_times, call.action_times)
        rate, batch, count = self.config["rope_rate"], like.shape[0], ids.count
        slots, zero = torch.arange(count, device=device), starts.new_zeros(batch, 1)
        here = side_positions(starts * rate)
        meta = side_meta(ids.chunks, Modality.STATE)
        groups = {"state": self._group(self._state_tokens(call, like), zero.expand(-1, count), slots, here, meta)}
        if call.actions is not None:
            for name, (actions, clocks, chunk) in call.action_streams().items():
                meta = side_meta(chunk, Modality.ACTION, noisy=name == "actions")
                slots = torch.arange(clocks.shape[1], device=device)
                at = side_positions(call.action_times[:, : clocks.shape[1]] * rate)
                groups[name] = self._group(self._action_tokens(call, actions, like), clocks, slots, at, meta)
        registers = self.config["num_registers"]
        if registers:
            tokens = self.registers.to(like).repeat(count, 1).expand(batch, -1, -1)
            slots = torch.zeros(count * registers, dtype=torch.long, device=device)
            meta = side_meta(ids.chunks.repeat_interleave(registers, dim=1), Modality.REGISTER)
            here = here.repeat_interleave(registers, dim=1)
            groups["registers"] = self._group(tokens, zero, slots, here, meta)
        return groups

    def _state_tokens(self, call: Call, like: Tensor) -> Float[Tensor, "b s d"]:
        if call.state is None:
            return self.no_state.to(like).expand(like.shape[0], call.ids.count, -1)
        state, mask = call.state
        tokens = self.state_embedder(octave_features(state.to(like), self.config["input_octaves"]), call.embodiment)
        return torch.where(mask.any(-1, keepdim=True), tokens, self.no_state.to(like))

    def _action_tokens(self, call: Call, actions: Float[Tensor, "b ta da"], like: Tensor) -> Float[Tensor, "b ta d"]:
        features = octave_features(actions.to(like), self.config["input_octaves"])
        return self.action_embedder(features, call.embodiment)

    def _group(
        self,
        tokens: Float[Tensor, "b n d"],
        clocks: Float[Tensor, "b m"],
        slots: Int[Tensor, " n"],
        positions: Float[Tensor, "b n 3"],
        meta: TokenMeta,
    ) -> TokenGroup:
        if self.config["absolute_positions"]:
            tokens = tokens + sinusoids(positions, tokens.shape[-1]).type_as(tokens)
        rotary = rotary_angles(positions, self.config["attention_head_dim"], self.config["rope_theta"])
        return TokenGroup(tokens, clocks, slots, rotary, meta)

    def _blocks(
        self, groups: dict[str, TokenGroup], around: Surroundings, *, hides: bool
    ) -> dict[str, tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"], Int[Tensor, " n"]]]:
        """Send groups of tokens through the blocks; return of each its tokens, its stream's clocks embedded, and its slots."""
        gated = self.config["action_coupling"] == "gated"
        split = [["video"], [name for name in groups if name != "video"]] if gated else [list(groups)]
        joined = [join([groups[name] for name in names]) for names in split]
        xs = [group.tokens for group in joined]
        times = self.condition_embedder([group.clocks for group in joined], xs[0])
        streams = [Stream(time[1], group.slots, group.rotary) for time, group in zip(times, joined, strict=True)]
        if hides or self.attention.causal:
            flex = uses_flex(self.blocks[0].attn1.processor)
            metas = [group.meta for group in joined]
            around = around._replace(masks=make_masks(metas, None, self.attention, gated=gated, flex=flex))
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                xs = self._gradient_checkpointing_func(block, xs, streams, around)
            else:
                xs = block(xs, streams, around)
        outs = {}
        for names, x, time, group in zip(split, xs, times, joined, strict=True):
            lengths = [groups[name].tokens.shape[1] for name in names]
            pieces = zip(names, x.split(lengths, dim=1), group.slots.split(lengths), strict=True)
            outs |= {name: (piece, time[0], slots) for name, piece, slots in pieces}
        return outs

    def _modulate_out(
        self, x: Float[Tensor, "b n d"], time: Float[Tensor, "b m d"], slots: Int[Tensor, " n"]
    ) -> Float[Tensor, "b n d"]:
        shift, scale = (self.scale_shift_table[:, None] + time.float()[:, :, None]).type_as(x).unbind(2)
        return torch.addcmul(gather_slots(shift, slots), self.norm_out(x), gather_slots(1 + scale, slots))

    def _read_out(self, outs: dict[str, tuple[Tensor, Tensor, Tensor]], call: Call) -> Prediction:
        x, time, slots = outs["video"]
        frames, views, height, width = (call.latents.shape[i] for i in (3, 1, 4, 5))
        pt, ph, pw = self.config["patch_size"]
        num = (frames // pt) * views * (height // ph) * (width // pw)
        video = rearrange(
            self.proj_out(self._modulate_out(x[:, -num:], time, slots[-num:])),
            "b (t v h w) (pt ph pw c) -> b v c (t pt) (h ph) (w pw)",
            v=views,
            h=height // ph,
            w=width // pw,
            pt=pt,
            ph=ph,
            pw=pw,
        )
        if self.config["residual_video"]:
            video = video + call.residual(self.attention)
        actions = None
        if "actions" in outs:
            actions = self.action_proj_out(self._modulate_out(*outs["actions"]), call.embodiment)
        return Prediction(video=video, actions=actions)


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
