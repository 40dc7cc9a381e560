"""Sending tokens through the blocks: the part of `WAMTransformer` between the ways in and out."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.errors import ConfigError
from wam_video.models.assembly import Read, TokenAssembly
from wam_video.models.attention import uses_flex
from wam_video.models.blocks import Stream, Surroundings
from wam_video.models.kv_cache import KVCache, LayerCache
from wam_video.models.layers import ConditionEmbedder
from wam_video.models.masks import Masks, make_masks
from wam_video.models.sequence_parallel import SequenceGroup
from wam_video.models.tokens import TokenGroup, join


class RunsBlocks(TokenAssembly):
    """The part of `WAMTransformer` that has the blocks."""

    condition_embedder: ConditionEmbedder
    blocks: Any
    """`nn.ModuleList` of `WAMBlock`."""
    gradient_checkpointing: bool
    sequence: SequenceGroup | None = None
    """The processes that share the tokens of each sample."""
    _gradient_checkpointing_func: Any

    def check_conditions(
        self,
        condition: Float[Tensor, "b v cc t h w"] | None,
        image_embeds: Float[Tensor, "b i di"] | None,
        *,
        cached: bool,
    ) -> None:
        """Refuse what the network does not read; with `cached` the image context is known.

        Raises:
            ConfigError: Something is missing or superfluous, or of the wrong width.
        """
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
            Stream(time[1], group.slots, group.rotary, tower, group.tokens.shape[1])
            for time, group, tower in zip(times, joined, towers, strict=True)
        ]
        if self.sequence is not None:
            xs, streams = self._own(self.sequence, xs, streams, cached=cache is not None or memories is not None)
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
        if self.sequence is not None:
            xs = [self.sequence.gather(x, stream.total) for x, stream in zip(xs, streams, strict=True)]
        outs = {}
        for names, x, time, group in zip(split, xs, times, joined, strict=True):
            lengths = [groups[name].tokens.shape[1] for name in names]
            pieces = zip(names, x.split(lengths, dim=1), group.slots.split(lengths), strict=True)
            outs |= {name: (piece, time[0], slots) for name, piece, slots in pieces}
        return outs

    def share_sequences(self, group: SequenceGroup) -> None:
        """Divide the tokens of each sample over the processes of a group; every one of them must call the network alike.

        Raises:
            ConfigError: The heads can't be divided.
        """
        heads = self.config["num_attention_heads"]
        if heads % group.size:
            raise ConfigError(
                f"sequence_parallel is {group.size}, but the network has {heads} heads; allowed: divisors of {heads}"
            )
        self.sequence = group
        for block in self.blocks:
            block.attn1.sequence = group

    @staticmethod
    def _own(
        group: SequenceGroup, xs: Sequence[Float[Tensor, "b n d"]], streams: Sequence[Stream], *, cached: bool
    ) -> tuple[list[Float[Tensor, "b n d"]], list[Stream]]:
        """Return this process's tokens of each stream."""
        if cached:
            raise ConfigError("sequence_parallel is for training: a network whose tokens are shared can't use a cache")
        own = [
            stream._replace(
                slots=group.own(stream.slots, 0), rotary=tuple(group.own(part, 1) for part in stream.rotary)
            )
            for stream in streams
        ]
        return [group.own(x, 1) for x in xs], own

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
