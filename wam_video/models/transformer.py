"""The joint video-action diffusion transformer: one stream of video, state, action and register tokens, a clock for each.

`f(x_video, x_action, t_video, t_action, context)`; blocks and conditioning have Wan's shapes and names, so that Wan weights
load by key. It predicts what its config says (velocity or clean sample); `flow.path` converts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.normalization import FP32LayerNorm
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wam_video.errors import ConfigError
from wam_video.models.assembly import Read
from wam_video.models.attention import uses_flex
from wam_video.models.blocks import Stream, Surroundings, WAMBlock
from wam_video.models.chunks import Call, History, chunk_ids, state_rows
from wam_video.models.embodiments import TimedActionEmbedder, embodiment_map
from wam_video.models.expert import ActionExpert, ExpertConfig
from wam_video.models.kv_cache import KVCache, LayerCache
from wam_video.models.layers import ConditionEmbedder, EmbodimentLinear
from wam_video.models.masks import AttentionConfig, Masks, make_masks
from wam_video.models.observing import ObservesChunks
from wam_video.models.options import (
    ActionCoupling,
    ActionEmbedding,
    ActionRope,
    StateClock,
    check_choice,
    check_image_width,
    check_predictions,
)
from wam_video.models.tokens import TokenGroup, join
from wam_video.tensors import Prediction, PredictionType

NO_BODY: tuple[dict[str, Any], ...] = ({"name": "none", "action_dim": 0, "state_dim": 0},)
"""The embodiments of a network that has only video."""


class WAMTransformer(ObservesChunks, ModelMixin, ConfigMixin, PeftAdapterMixin, AttentionMixin, CacheMixin):
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
        action_embedding: "linear", or "mlp_time": three maps that are told each action's clock (DreamZero).
        embodiment_hidden_dim: Hidden width of the maps of states in and of actions out; None: they are linear.
        action_rope: Where actions and states are: "time", on the axes of the video; "index": on an axis of their own, which
            takes the whole head dim, counted through the chunks (DreamZero).
        state_clock: "given": 0; "action": that of the first action of its chunk (DreamZero).
        action_norm_out: Normalise and modulate action tokens before they are read out, as video tokens are.
        expert: A narrow tower for actions, state and registers beside the trunk (`expert.ExpertConfig`: dim, or width as a
            share of the trunk's; ffn_dim, init, cross_attention); None: they go through the trunk.
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
        action_embedding: ActionEmbedding = "linear",
        embodiment_hidden_dim: int | None = None,
        action_rope: ActionRope = "time",
        state_clock: StateClock = "given",
        action_norm_out: bool = True,
        expert: dict[str, Any] | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_predictions(video_prediction, action_prediction, residual_video, attention_head_dim)
        dim = num_attention_heads * attention_head_dim
        check_choice("action_coupling", action_coupling, ActionCoupling)
        check_choice("action_embedding", action_embedding, ActionEmbedding)
        check_choice("action_rope", action_rope, ActionRope)
        check_choice("state_clock", state_clock, StateClock)
        check_image_width(image_dim, added_kv_proj_dim, dim)
        self.attention = AttentionConfig.read(attention)
        if self.attention.action_history and action_coupling == "gated":
            raise ConfigError(
                "model.attention.action_history is true and model.action_coupling 'gated'; allowed with it: 'full', for "
                "video would see old actions without a gate"
            )
        tower = ExpertConfig.read(expert, dim)
        side = dim if tower is None else tower.dim
        action_dims = [max(e["action_dim"], 1) for e in embodiments]
        state_dims = [max(e["state_dim"], 1) for e in embodiments]
        features = 1 + 2 * input_octaves
        widths = [side] * len(embodiments)
        patch = tuple(patch_size)
        self.patch_embedding = nn.Conv3d(in_channels + condition_channels, dim, patch, patch)
        self.condition_embedder = ConditionEmbedder(dim, freq_dim, text_dim, image_dim)
        values_in = [features * n for n in action_dims], [features * n for n in state_dims]
        hidden = embodiment_hidden_dim
        timed = action_embedding == "mlp_time"
        self.action_embedder = (
            TimedActionEmbedder(values_in[0], side) if timed else EmbodimentLinear(values_in[0], widths)
        )
        self.state_embedder = embodiment_map(values_in[1], hidden, widths)
        self.no_state = nn.Parameter(torch.zeros(side))
        self.view_embedding = nn.Parameter(torch.zeros(num_views, dim))
        self.registers = nn.Parameter(torch.randn(num_registers, side) / side**0.5)
        sizes, block = (num_attention_heads, attention_head_dim), {"cross_attn_norm": cross_attn_norm, "eps": eps}
        added = {"added_kv_proj_dim": added_kv_proj_dim, "gated": action_coupling == "gated"}
        self.blocks = nn.ModuleList([WAMBlock(dim, ffn_dim, *sizes, **block, **added) for _ in range(num_layers)])
        self.norm_out = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.proj_out = nn.Linear(dim, (out_channels or in_channels) * patch_size[0] * patch_size[1] * patch_size[2])
        self.action_proj_out = embodiment_map(widths, hidden, action_dims, zero_init=True)
        self.gradient_checkpointing = False
        if residual_video:
            nn.init.zeros_(self.proj_out.weight)
            nn.init.zeros_(self.proj_out.bias)
        if tower is not None:
            module = ActionExpert(
                tower,
                layers=num_layers,
                heads=num_attention_heads,
                head_dim=attention_head_dim,
                conditions=(freq_dim, text_dim, image_dim),
                block=block,
                norm_out=action_norm_out,
            )
            if tower.init == "interpolate" and not self.no_state.is_meta:
                module.reset_parameters(self)
            self._modules["expert"] = module

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
        text_embeds: Float[Tensor, "b s dt"] | None = None,
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
        cache: KVCache | None = None,
    ) -> Prediction:
        """Predict every latent frame and action of a noisy sample.

        Args:
            latents: Noisy or given latent frames; leave the future frames out where video is absent.
            t_video: Flow time of each latent frame in [0, 1]; 0 is given.
            latent_times: Seconds of each latent frame.
            text_embeds: Encoded prompt, zero past its end; None with a `cache`, which has it.
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
            cache: What was observed before (see `observe`), instead of `history` and of context frames; it is only read.

        Raises:
            ConfigError: `condition` or `image_embeds` is missing or superfluous, or of the wrong width; there are clean
                tokens, but no chunks; the prompt is missing, or there twice.
        """
        self.check_conditions(condition, image_embeds, cached=cache is not None)
        self._check_memory(text_embeds, num_context, history, cache)
        if actions is None or t_action is None or action_times is None:
            actions = None
            t_action = action_times = t_video.new_zeros(t_video.shape[0], 0)
        count = actions.shape[1] if actions is not None else 0
        start = None if cache is None else cache.next_chunk(latents.device)
        ids = chunk_ids(
            self.attention,
            frames=latents.shape[3],
            num_context=num_context,
            actions=count,
            history=history,
            start=start,
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
            last_frame=None if cache is None else cache.last_frame,
        )
        around = Surroundings([] if text_embeds is None else self.prompts(text_embeds, image_embeds))
        outs = self.run_blocks(self.assemble(call), around, hides=view_mask is not None, cache=cache)
        return self.read_out(outs, call)

    def _check_memory(
        self, text_embeds: Tensor | None, num_context: int, history: History | None, cache: KVCache | None
    ) -> None:
        if (text_embeds is None) != (cache is not None):
            raise ConfigError("give text_embeds, or a cache, which has the prompt; not both")
        if history is not None and not self.attention.causal:
            raise ConfigError("history is for networks with model.attention.pattern 'causal'; leave it out")
        if cache is not None and (num_context or history is not None):
            raise ConfigError(
                f"num_context is {num_context} and a cache is given; allowed with it: 0, and no history, for it holds them"
            )

    def check_conditions(self, condition: Tensor | None, image_embeds: Tensor | None, *, cached: bool) -> None:
        channels, width = self.config["condition_channels"], self.config["image_dim"] or 0
        given = 0 if condition is None else condition.shape[2]
        if given != channels:
            raise ConfigError(
                f"condition has {given} channels; this network reads {channels} beside the latents "
                "(video_codec.first_frame_condition makes Wan's)"
            )
        given = 0 if image_embeds is None else image_embeds.shape[-1]
        if given != (0 if cached else width):
            raise ConfigError(
                f"image_embeds is {given} wide; this network reads {width} (image_encoder.encode_image makes Wan's)"
            )

    def run_blocks(
        self,
        groups: dict[str, TokenGroup],
        around: Surroundings,
        *,
        hides: bool,
        cache: KVCache | None = None,
        memories: Sequence[LayerCache] | None = None,
    ) -> dict[str, Read]:
        """Send groups of tokens through the blocks; `hides`: some are not there, or the call observes."""
        apart = self.expert is not None or self.config["action_coupling"] == "gated"
        split = [["video"], [name for name in groups if name != "video"]] if apart else [list(groups)]
        split = [[name for name in names if name in groups] for names in split]
        split = [names for names in split if names]
        joined = [join([groups[name] for name in names]) for names in split]
        xs = [group.tokens for group in joined]
        towers = [0 if self.expert is None or "video" in names else 1 for names in split]
        times = [
            embedder([group.clocks], x)[0]
            for embedder, group, x in zip((self._embedder(tower) for tower in towers), joined, xs, strict=True)
        ]
        streams = [
            Stream(time[1], group.slots, group.rotary, tower)
            for time, group, tower in zip(times, joined, towers, strict=True)
        ]
        around = around._replace(
            masks=self._masks(joined, cache, hides=hides, mixed="video" in groups and len(groups) > 1)
        )
        if cache is not None and memories is None:
            memories = cache.memories()
        for index, block in enumerate(self.blocks):
            memory = None if memories is None else memories[index]
            expert = None if self.expert is None else self.expert.blocks[index]
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                xs = self._gradient_checkpointing_func(block, xs, streams, around, memory, expert)
            else:
                xs = block(xs, streams, around, memory, expert)
        outs = {}
        for names, x, time, group in zip(split, xs, times, joined, strict=True):
            lengths = [groups[name].tokens.shape[1] for name in names]
            pieces = zip(names, x.split(lengths, dim=1), group.slots.split(lengths), strict=True)
            outs |= {name: (piece, time[0], slots) for name, piece, slots in pieces}
        return outs

    def _embedder(self, tower: int) -> ConditionEmbedder:
        return self.expert.condition_embedder if self.expert is not None and tower else self.condition_embedder

    def _masks(self, streams: Sequence[TokenGroup], cache: KVCache | None, *, hides: bool, mixed: bool) -> Masks | None:
        """Return who sees whom; None: all see all. `mixed`: there is video, and others."""
        rule, blind = self.attention, len(streams) > 1 and not self.attention.video_sees_actions
        if cache is None:
            hides = hides or rule.hides(mixed=mixed, blind=blind)
        elif rule.causal:
            hides = hides or not (cache.solid and (rule.open or (rule.state_sees == "chunk" and not mixed)))
        else:
            hides = hides or mixed  # a cache holds observed frames, which all see
        if not hides:
            return Masks(whole=None, blind=True) if blind else None
        return make_masks(
            [stream.meta for stream in streams],
            None if cache is None else cache.past_meta(),
            rule,
            gated=self.config["action_coupling"] == "gated",
            flex=uses_flex(self.blocks[0].attn1.processor),
            blind=blind,
        )
