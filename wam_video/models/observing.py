"""Writing observed chunks into a `KVCache`: the part of `WAMTransformer` that prefills."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wam_video.errors import ConfigError
from wam_video.models.attention import Context
from wam_video.models.blocks import Prompt, Surroundings
from wam_video.models.chunks import Call, observed_ids
from wam_video.models.kv_cache import CacheLayout, KVCache, empty_cache
from wam_video.models.masks import join_meta
from wam_video.models.running import RunsBlocks


class ObservesChunks(RunsBlocks):
    """The part of `WAMTransformer` that makes caches and fills them."""

    @torch.no_grad()
    def new_cache(
        self,
        *,
        text_embeds: Float[Tensor, "b s dt"],
        latent_shape: tuple[int, int, int, int],
        num_context: int,
        max_chunks: int,
        num_actions: int = 0,
        image_embeds: Float[Tensor, "b i di"] | None = None,
        window: int | None = None,
    ) -> KVCache:
        """Return an empty cache that knows the prompts.

        Args:
            text_embeds: Encoded prompts.
            latent_shape: Views, channels, rows and columns of a latent frame.
            num_context: Latent frames of chunk 0.
            max_chunks: Chunks to make place for; no more are kept than the network's window and its sinks, and one, the
                context, if it knows no chunks.
            num_actions: Actions of a chunk, which are kept if the network reads them (`action_history`).
            image_embeds: Image context, if the network has an `image_dim`: of the first frame, for as long as the cache lasts.
            window: Keep the last so many chunks only, as a network with that `window` (or its own, if that is smaller) does.

        Raises:
            ConfigError: What the network makes of observed frames depends on the others.
        """
        rule, patch = self.attention, self.config["patch_size"]
        if not rule.caches:
            raise ConfigError(
                "this network can't use a cache, for its observed frames see the others; allowed: networks with "
                "model.attention.pattern 'causal' or model.attention.actions_see_video 'observed'"
            )
        max_chunks = max_chunks if rule.causal else 1
        views, _, height, width = latent_shape
        frame = views * (height // patch[1]) * (width // patch[2])
        kept = min((size for size in (window, rule.window) if size is not None), default=max_chunks)
        drops = rule.causal and kept < max_chunks
        layout = CacheLayout(
            first=num_context * frame,
            chunk=rule.chunk_frames * frame + (num_actions if rule.action_history else 0),
            sinks=rule.sink_chunks if drops else 0,
            ring=min(kept, max_chunks),
            drops=drops,
        )
        contexts = self.contexts(text_embeds, image_embeds)
        return empty_cache(
            layout, contexts, text_embeds.new_zeros(text_embeds.shape[0], views, *latent_shape[1:2], 1, height, width)
        )

    @torch.no_grad()
    def observe(  # noqa: PLR0913 - each tensor of a chunk by its name, as in `forward`
        self,
        cache: KVCache,
        *,
        latents: Float[Tensor, "b v c t h w"],
        t_video: Float[Tensor, "b t"],
        latent_times: Float[Tensor, "b t"],
        embodiment: Int[Tensor, " b"],
        actions: Float[Tensor, "b ta da"] | None = None,
        t_action: Float[Tensor, "b ta"] | None = None,
        action_times: Float[Tensor, "b ta"] | None = None,
        view_mask: Bool[Tensor, "b v"] | None = None,
        condition: Float[Tensor, "b v cc t h w"] | None = None,
        rows: Bool[Tensor, " b"] | None = None,
    ) -> KVCache:
        """Run the next chunk of each row through the network as known, and return the cache with it.

        Args:
            cache: What was observed before; it must not be used again.
            latents: The frames of the chunk: the context first, then `chunk_frames` at a time.
            t_video: Their clock: 0, or 1 where a frame is missing and noise stands for it.
            latent_times: Seconds of the frames, on the axis of all calls with this cache.
            embodiment: As in `forward`.
            actions: The actions of the chunk, which networks with `action_history` keep; none for chunk 0.
            t_action: Their clock.
            action_times: Their seconds.
            view_mask: As in `forward`.
            condition: As in `forward`, for the frames of this chunk (`image_context.condition_of_chunk`).
            rows: Rows that have observed something; the others keep every bit. None: all.

        Raises:
            ConfigError: The cache is full, or the chunk has another size than it was made for.
        """
        self.check_conditions(condition, None, cached=True)
        chunk = cache.next_chunk[:, None]
        kept = self.attention.action_history and actions is not None
        zeros = t_video.new_zeros(t_video.shape[0], 0)
        call = Call(
            latents=latents,
            t_video=t_video,
            latent_times=latent_times,
            embodiment=embodiment,
            actions=actions if kept else None,
            t_action=t_action if kept and t_action is not None else zeros,
            action_times=action_times if kept and action_times is not None else zeros,
            state=None,
            view_mask=view_mask,
            condition=condition,
            num_context=latents.shape[3],
            history=None,
            ids=observed_ids(chunk, latents.shape[3], 0 if not kept or actions is None else actions.shape[1]),
        )
        groups = {"video": self.video_group(call)}
        if call.actions is not None:
            like = groups["video"].tokens
            groups["actions"] = self.action_group(
                call, call.actions, call.t_action, call.ids.actions, noisy=False, like=like
            )
        meta = join_meta([group.meta for group in groups.values()])
        memories = cache.writers(meta.chunk.shape[1], rows)
        self.run_blocks(
            groups,
            Surroundings([]),
            hides=self.attention.causal or view_mask is not None,
            cache=cache,
            memories=memories,
        )
        return cache.observed(meta, latents[:, :, :, -1:].to(cache.last_frame), rows)

    def prompts(
        self, text_embeds: Float[Tensor, "b s dt"], image_embeds: Float[Tensor, "b i di"] | None
    ) -> list[Prompt]:
        """Return the prompt as each tower that reads it projects it."""
        embedders = (
            [self.condition_embedder]
            if self.expert is None
            else [self.condition_embedder, self.expert.condition_embedder]
        )
        return [
            Prompt(*each.context(text_embeds, image_embeds)) for each in embedders if each.text_embedder is not None
        ]

    def contexts(
        self, text_embeds: Float[Tensor, "b s dt"], image_embeds: Float[Tensor, "b i di"] | None
    ) -> list[list[Context]]:
        """Return the prompt's keys and values for each block and tower (see `KVCache.with_contexts`)."""
        prompts = self.prompts(text_embeds, image_embeds)
        towers = [list(self.blocks)] if self.expert is None else [list(self.blocks), list(self.expert.blocks)]
        return [
            [
                tower.attn2.context(*prompt)
                for tower, prompt in zip(level, prompts, strict=False)
                if tower.attn2 is not None
            ]
            for level in zip(*towers, strict=True)
        ]
