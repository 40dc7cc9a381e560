"""From a prepared run to its end: all at once, or with a causal network chunk by chunk.

There each chunk reads what came before it from a cache. A chunk that is not the last is remembered, so what of it a mode leaves unknown is imagined first: a policy of several
chunks sees in the second what it expects the first to do.

A network without chunks whose actions see observed video only is such a network of one chunk: the observed frames are read
once, and a policy call is one pass of the trunk over them, then steps of the expert alone (FastWAM).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.flow.modes import ModeSpec, PathConfig, Role, path_grid
from wam_video.flow.solvers import Clocks, State
from wam_video.inference.sampling import Prepared, SamplingConfig, VelocityField, twice, walk
from wam_video.models.image_context import condition_of_chunk
from wam_video.models.kv_cache import KVCache
from wam_video.models.masks import AttentionConfig
from wam_video.models.transformer import WAMTransformer

OnChunkStep = Callable[[int, Float[Tensor, " 2"], State], None]
"""Takes the step over all chunks, the clocks reached, and the state of all frames and actions."""


def run(
    transformer: WAMTransformer,
    prepared: Prepared,
    spec: ModeSpec,
    texts: tuple[Float[Tensor, "b s dt"], Float[Tensor, "b s dt"] | None],
    config: SamplingConfig,
    on_step: OnChunkStep,
) -> State:
    """Walk the path of a mode and return the state at its end.

    Args:
        transformer: The network.
        prepared: The run before its first step.
        spec: The mode's row of the table.
        texts: The prompts, encoded, and the empty one, which only guidance needs.
        config: How to walk.
        on_step: Called after each step.
    """
    if (
        spec.video is Role.UNKNOWN
        and transformer.attention.actions_see_video == "observed"
        and prepared.num_chunks == 1
    ):
        prepared = without_future(prepared)  # nobody who is asked sees it
    if transformer.attention.caches:
        return ChunkSampler(transformer, prepared, *texts, config).run(spec, on_step)
    text, empty = texts
    guided = config.guided and empty is not None
    inputs = dict(prepared.inputs, num_context=prepared.num_context)
    both = torch.cat([text, empty]) if guided and empty is not None else text
    field = VelocityField(transformer, inputs, both, config, guided=guided)
    grid = path_grid(spec, config.path)

    def show(step: int, state: State) -> None:
        on_step(step, grid[step + 1], state)

    return walk(field, (prepared.start, prepared.pattern, prepared.continuation), spec, grid, config, show)


def count_steps(rule: AttentionConfig, prepared: Prepared, spec: ModeSpec, path: PathConfig) -> int:
    """Return how many steps `run` takes over all chunks."""
    last, before = (len(path_grid(each, path)) - 1 for each in (spec, remembered(spec, rule)))
    return last + (prepared.num_chunks - 1) * before


def without_future(prepared: Prepared) -> Prepared:
    """Return a run without the frames after the context."""
    past = slice(0, prepared.num_context)
    inputs = dict(prepared.inputs, latent_times=prepared.inputs["latent_times"][:, past])
    video = None if prepared.start.video is None else prepared.start.video[:, :, :, past]
    pattern = prepared.pattern.part(past, slice(None))
    return replace(prepared, start=replace(prepared.start, video=video), pattern=pattern, inputs=inputs)


def remembered(spec: ModeSpec, rule: AttentionConfig) -> ModeSpec:
    """Return what becomes of a chunk that later ones read."""
    video = Role.GENERATE if spec.video in (Role.UNKNOWN, Role.ABSENT) else spec.video
    imagines = rule.action_history and spec.actions is Role.UNKNOWN
    return ModeSpec(video=video, actions=Role.GENERATE if imagines else spec.actions)


class ChunkSampler:
    """Walks the path of a mode for one chunk after the other.

    Args:
        transformer: A causal network.
        prepared: The run.
        text: Encoded prompts.
        empty: The empty prompt, encoded; None without guidance.
        config: How to walk.
    """

    def __init__(
        self,
        transformer: WAMTransformer,
        prepared: Prepared,
        text: Float[Tensor, "b s dt"],
        empty: Float[Tensor, "b s dt"] | None,
        config: SamplingConfig,
    ) -> None:
        self._transformer = transformer
        self._prepared = prepared
        self._config = config
        self._guided = config.guided and empty is not None
        self._dtype = transformer.patch_embedding.weight.dtype
        self._text = (torch.cat([text, empty]) if self._guided and empty is not None else text).to(self._dtype)

    def run(self, spec: ModeSpec, on_step: OnChunkStep) -> State:
        """Return the state at the end: all frames and actions."""
        prepared, rule = self._prepared, self._transformer.attention
        state = prepared.start
        cache = self._observe(self._new_cache(), 0, state, prepared.pattern.at(torch.zeros(2)))
        steps = 0
        for chunk in range(1, prepared.num_chunks + 1):
            last = chunk == prepared.num_chunks
            row = spec if last else remembered(spec, rule)
            grid, bend = path_grid(row, self._config.path), prepared.continuation
            frames, actions = self._spans(chunk)
            field = VelocityField(
                self._transformer, self._inputs(chunk, cache), None, self._config, guided=self._guided
            )
            before = state

            def show(
                step: int,
                now: State,
                *,
                count: int = steps,
                grid: Tensor = grid,
                whole: State = before,
                at: int = chunk,
            ) -> None:
                on_step(count + step, grid[step + 1], self._merged(whole, now, at))

            begin = _part(state, frames, actions), prepared.pattern.part(frames, actions), bend and bend.part(actions)
            end = walk(field, begin, row, grid, self._config, show)
            state = self._merged(state, end, chunk)
            steps += len(grid) - 1
            if not last:
                cache = self._observe(cache, chunk, state, prepared.pattern.at(grid[-1]))
        return state

    def _spans(self, chunk: int) -> tuple[slice, slice]:
        """Return the frames and the actions of a chunk."""
        context, size = self._prepared.num_context, self._transformer.attention.chunk_frames
        if chunk == 0:
            return slice(0, context), slice(0, 0)
        if self._prepared.num_chunks == 1:
            size = self._prepared.inputs["latent_times"].shape[1] - context
        per = self._prepared.inputs["action_times"].shape[1] // self._prepared.num_chunks
        first = context + (chunk - 1) * size
        return slice(first, first + size), slice((chunk - 1) * per, chunk * per)

    def _new_cache(self) -> KVCache:
        shape, picture = self._prepared.encoded.shape, self._prepared.inputs["image_embeds"]
        if picture is not None:
            picture = (twice(picture) if self._guided else picture).to(self._dtype)
        return self._transformer.new_cache(
            text_embeds=self._text,
            latent_shape=(shape[1], shape[2], shape[4], shape[5]),
            num_context=self._prepared.num_context,
            max_chunks=self._prepared.num_chunks,
            num_actions=self._prepared.inputs["action_times"].shape[1] // self._prepared.num_chunks,
            image_embeds=picture,
        )

    def _observe(self, cache: KVCache, chunk: int, state: State, clocks: Clocks) -> KVCache:
        """Write a chunk as it is known or was generated."""
        frames, actions = self._spans(chunk)
        inputs = self._prepared.inputs
        values: dict[str, Any] = {"embodiment": inputs["embodiment"], "view_mask": inputs["view_mask"]}
        if state.video is None or clocks.video is None or state.actions is None or clocks.actions is None:
            raise ValueError("a chunk has frames and actions")
        values |= {
            "latents": state.video[:, :, :, frames].to(self._dtype),
            "t_video": clocks.video[:, frames],
            "latent_times": inputs["latent_times"][:, frames],
            "condition": self._condition(frames),
        }
        if chunk:
            values |= {
                "actions": state.actions[:, actions],
                "t_action": clocks.actions[:, actions],
                "action_times": inputs["action_times"][:, actions],
            }
        if self._guided:
            values = {name: twice(value) if value is not None else None for name, value in values.items()}
        return self._transformer.observe(cache, **values)

    def _inputs(self, chunk: int, cache: KVCache) -> dict[str, Any]:
        frames, actions = self._spans(chunk)
        # the cache has the image context already, as it has the prompt
        inputs = dict(self._prepared.inputs, cache=cache, num_context=0, image_embeds=None)
        inputs["condition"] = self._condition(frames)
        inputs["latent_times"] = inputs["latent_times"][:, frames]
        inputs["action_times"] = inputs["action_times"][:, actions]
        if chunk > 1:  # the state is known now, at the start of the first
            inputs["state"] = inputs["state_mask"] = None
        return inputs

    def _condition(self, frames: slice) -> Float[Tensor, "b v cc k h w"] | None:
        condition = self._prepared.inputs["condition"]
        return condition_of_chunk(condition, frames.start, frames.stop - frames.start)

    def _merged(self, whole: State, part: State, chunk: int) -> State:
        frames, actions = self._spans(chunk)
        video, acts = whole.video, whole.actions
        if video is not None and part.video is not None:
            video = torch.cat([video[:, :, :, : frames.start], part.video, video[:, :, :, frames.stop :]], dim=3)
        if acts is not None and part.actions is not None:
            acts = torch.cat([acts[:, : actions.start], part.actions, acts[:, actions.stop :]], dim=1)
        return replace(whole, video=video, actions=acts)


def _part(state: State, frames: slice, actions: slice) -> State:
    return State(
        video=None if state.video is None else state.video[:, :, :, frames],
        actions=None if state.actions is None else state.actions[:, actions],
    )
