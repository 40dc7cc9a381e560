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
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wam_video.errors import ConfigError
from wam_video.models.blocks import Surroundings
from wam_video.models.chunks import Call, History, chunk_ids, state_rows
from wam_video.models.construction import add_blocks, add_expert, add_inputs, check_settings
from wam_video.models.kv_cache import KVCache
from wam_video.models.observing import ObservesChunks
from wam_video.models.options import ActionCoupling, ActionEmbedding, ActionRope, StateClock
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
        # What the arguments say is in the config already: `register_to_config` put it there.
        self.attention = check_settings(self.config)
        self.gradient_checkpointing = False
        add_inputs(self, self.config)
        add_blocks(self, self.config)
        add_expert(self, self.config)

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
            condition: What the network reads beside the latents, if it has `condition_channels`; frames after the call's own
                are read for `history` only.
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
        start = None if cache is None else cache.next_chunk
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
