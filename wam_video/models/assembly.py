"""The ways into the blocks and out of them.

In: from a call's inputs to groups of tokens, each with clocks, places and metadata. Out: from tokens to predictions.
"""

from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.normalization import FP32LayerNorm
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from wam_video.models.blocks import modulate
from wam_video.models.chunks import Call, chunk_times
from wam_video.models.embodiments import EmbodimentMLP, TimedActionEmbedder
from wam_video.models.expert import ActionExpert
from wam_video.models.layers import EmbodimentLinear, octave_features
from wam_video.models.masks import AttentionConfig, Modality, TokenMeta
from wam_video.models.rope import index_angles, rotary_angles, sinusoids
from wam_video.models.tokens import TokenGroup, side_meta, side_positions, video_meta, video_positions
from wam_video.tensors import Prediction

Read = tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"], Int[Tensor, " n"]]
"""Tokens after the blocks, the embedded clocks of their stream, and the slots of the tokens in it."""


class TokenAssembly(nn.Module):
    """The part of `WAMTransformer` that makes tokens and reads them out; the parameters have their names there."""

    if TYPE_CHECKING:

        @property
        def config(self) -> Any:
            """The arguments of the network, which diffusers keeps."""
            ...

    attention: AttentionConfig
    patch_embedding: nn.Conv3d
    action_embedder: EmbodimentLinear | TimedActionEmbedder
    state_embedder: EmbodimentLinear | EmbodimentMLP
    no_state: nn.Parameter
    view_embedding: nn.Parameter
    registers: nn.Parameter

    @property
    def expert(self) -> ActionExpert | None:
        """The tower of all but video, if there is one."""
        # Not the plain attribute, for diffusers would find the key of that name in the configuration first.
        return self.__dict__["_modules"].get("expert")

    norm_out: FP32LayerNorm
    scale_shift_table: nn.Parameter
    proj_out: nn.Linear
    action_proj_out: EmbodimentLinear | EmbodimentMLP

    def assemble(self, call: Call) -> dict[str, TokenGroup]:
        """Return the tokens of a call by kind, in their order: video, state, clean actions, actions, registers."""
        like = self.no_state.new_zeros(call.t_action.shape[0], 0, dtype=self.patch_embedding.weight.dtype)
        groups = {}
        if call.frames()[0].shape[3]:
            groups["video"] = self.video_group(call)
            like = groups["video"].tokens
        times = chunk_times(call.ids, self.attention, call.num_context, call.latent_times, call.action_times)
        groups["state"] = self._state_group(call, times, like)
        if call.actions is not None:
            for name, (actions, clocks, chunk) in call.action_streams().items():
                groups[name] = self.action_group(call, actions, clocks, chunk, noisy=name == "actions", like=like)
        if self.config["num_registers"]:
            groups["registers"] = self._register_group(call, times, like)
        return groups

    def video_group(self, call: Call) -> TokenGroup:
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
        slots = torch.arange(clocks.shape[1], device=x.device).repeat_interleave(views * sites)
        positions = video_positions(times * self.config["rope_rate"], views, height, width)
        return self._group(x, clocks, slots, positions, video_meta(chunk, noisy, call.view_mask, sites, views))

    def action_group(
        self,
        call: Call,
        actions: Float[Tensor, "b ta da"],
        clocks: Float[Tensor, "b ta"],
        chunk: Int[Tensor, "r ta"],
        *,
        noisy: bool,
        like: Float[Tensor, "..."],
    ) -> TokenGroup:
        """Return the tokens of actions, of which the first is the call's first."""
        features = octave_features(actions.to(like), self.config["input_octaves"])
        if isinstance(self.action_embedder, TimedActionEmbedder):
            tokens = self.action_embedder(features, clocks, call.embodiment)
        else:
            tokens = self.action_embedder(features, call.embodiment)
        count = actions.shape[1]
        per_chunk = max(call.action_times.shape[1] // max(call.ids.count, 1), 1)
        index = (chunk - 1) * per_chunk + torch.arange(count, device=chunk.device) % per_chunk
        positions = side_positions(call.action_times[:, :count] * self.config["rope_rate"])
        meta = side_meta(chunk, Modality.ACTION, noisy=noisy)
        return self._group(tokens, clocks, torch.arange(count, device=clocks.device), positions, meta, index)

    def _state_group(self, call: Call, times: Float[Tensor, "b s"], like: Tensor) -> TokenGroup:
        count = call.ids.count
        tokens = self.no_state.to(like).expand(like.shape[0], count, -1)
        if call.state is not None:
            state, mask = call.state
            known = self.state_embedder(octave_features(state.to(like), self.config["input_octaves"]), call.embodiment)
            tokens = torch.where(mask.any(-1, keepdim=True), known, tokens)
        clocks = torch.zeros_like(times, dtype=call.t_video.dtype)  # times may be of a finer type than clocks
        if self.config["state_clock"] == "action" and call.actions is not None:
            clocks = call.t_action[:, :: call.t_action.shape[1] // count]
        positions = side_positions(times * self.config["rope_rate"])
        meta = side_meta(call.ids.chunks, Modality.STATE)
        return self._group(
            tokens, clocks, torch.arange(count, device=times.device), positions, meta, call.ids.chunks - 1
        )

    def _register_group(self, call: Call, times: Float[Tensor, "b s"], like: Tensor) -> TokenGroup:
        count, each = call.ids.count, self.config["num_registers"]
        tokens = self.registers.to(like).repeat(count, 1).expand(like.shape[0], -1, -1)
        slots = torch.zeros(count * each, dtype=torch.long, device=times.device)
        meta = side_meta(call.ids.chunks.repeat_interleave(each, dim=1), Modality.REGISTER)
        positions = side_positions(times * self.config["rope_rate"]).repeat_interleave(each, dim=1)
        clocks = torch.zeros_like(times[:, :1], dtype=call.t_video.dtype)
        return self._group(tokens, clocks, slots, positions, meta)

    def _group(
        self,
        tokens: Float[Tensor, "b n d"],
        clocks: Float[Tensor, "b m"],
        slots: Int[Tensor, " n"],
        positions: Float[Tensor, "b n 3"],
        meta: TokenMeta,
        index: Int[Tensor, "r n"] | None = None,
    ) -> TokenGroup:
        """Put together a group; `index` counts actions and states, for an axis of their own."""
        if self.config["absolute_positions"]:
            tokens = tokens + sinusoids(positions, tokens.shape[-1]).type_as(tokens)
        head_dim, theta = self.config["attention_head_dim"], self.config["rope_theta"]
        if index is not None and self.config["action_rope"] == "index":
            rotary = index_angles(index.expand(tokens.shape[0], -1), head_dim, theta)
        else:
            rotary = rotary_angles(positions, head_dim, theta)
        return TokenGroup(tokens, clocks, slots, rotary, meta)

    def read_out(self, outs: dict[str, Read], call: Call) -> Prediction:
        """Return what the tokens after the blocks say; None for what has no tokens."""
        video = actions = None
        if call.latents.shape[3]:
            video = self._read_video(outs["video"], call)
        if "actions" in outs:
            tower = self if self.expert is None else self.expert
            x = _modulated(tower, *outs["actions"]) if self.config["action_norm_out"] else outs["actions"][0]
            actions = self.action_proj_out(x, call.embodiment)
        return Prediction(video=video, actions=actions)

    def _read_video(self, read: Read, call: Call) -> Float[Tensor, "b v c t h w"]:
        x, time, slots = read
        frames, views, height, width = (call.latents.shape[i] for i in (3, 1, 4, 5))
        pt, ph, pw = self.config["patch_size"]
        num = (frames // pt) * views * (height // ph) * (width // pw)
        video = rearrange(
            self.proj_out(_modulated(self, x[:, -num:], time, slots[-num:])),
            "b (t v h w) (pt ph pw c) -> b v c (t pt) (h ph) (w pw)",
            v=views,
            h=height // ph,
            w=width // pw,
            pt=pt,
            ph=ph,
            pw=pw,
        )
        return video + call.residual(self.attention) if self.config["residual_video"] else video


def _modulated(
    tower: Any, x: Float[Tensor, "b n d"], time: Float[Tensor, "b m d"], slots: Int[Tensor, " n"]
) -> Float[Tensor, "b n d"]:
    """Return tokens normalised and modulated by their clocks, with the last norm and table of their tower."""
    shift, scale = (tower.scale_shift_table[:, None] + time.float()[:, :, None]).type_as(x).unbind(2)
    return modulate(tower.norm_out(x), shift, scale, slots)
