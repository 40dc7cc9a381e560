"""How the frames, actions and state of a call are cut into chunks; see `models.masks`."""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wam_video.errors import ConfigError
from wam_video.models.masks import AttentionConfig


@dataclass(frozen=True, kw_only=True)
class History:
    """Clean copies of frames and actions that a call also predicts: the teacher-forcing stream of later chunks.

    A chunk that nobody reads needs no copy, so usually the last one has none.
    """

    latents: Float[Tensor, "b v c k h w"]
    t_video: Float[Tensor, "b k"]
    """Their clock: 0, or a little more (noisy history)."""
    times: Float[Tensor, "b k"]
    """Their seconds."""
    first: int
    """Which of the call's frames the first is a copy of: the first after the context; 0 if the context is copied too, whose
    frames among the call's latents then belong to the noisy stream, where they see themselves only."""
    actions: Float[Tensor, "b kt da"] | None = None
    """Copies of the first so many actions (with `action_history`)."""
    t_action: Float[Tensor, "b kt"] | None = None

    @property
    def num_frames(self) -> int:
        """Copied frames."""
        return self.latents.shape[3]

    @property
    def num_actions(self) -> int:
        """Copied actions."""
        return 0 if self.actions is None else self.actions.shape[1]


@dataclass(frozen=True, kw_only=True)
class ChunkIds:
    """The chunk of everything in a call."""

    count: int
    """Chunks that are predicted."""
    frames: Int[Tensor, "r t"]
    noisy: Int[Tensor, "1 t"]
    """1 for frames of the noisy stream."""
    history_frames: Int[Tensor, "r k"]
    actions: Int[Tensor, "r ta"]
    history_actions: Int[Tensor, "r kt"]
    chunks: Int[Tensor, "r s"]
    """Of the chunks themselves, as their state and registers have it."""

    def to(self, device: torch.device) -> "ChunkIds":
        """Return the numbers on `device`."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "count"})


def chunk_ids(
    config: AttentionConfig,
    *,
    frames: int,
    num_context: int,
    actions: int,
    history: History | None = None,
    start: Int[Tensor, " r"] | None = None,
) -> ChunkIds:
    """Number the chunks of a call.

    Args:
        config: The rule.
        frames: Latent frames of the call, the first `num_context` of which are chunk 0 (or, with `start`, a chunk before it).
        num_context: See `frames`.
        actions: Actions of the call, as many for each chunk.
        history: Clean copies.
        start: Number of the first predicted chunk of each sample; None: 1.

    Raises:
        ConfigError: The frames or actions are not a whole number of chunks.
    """
    device = None if start is None else start.device
    if not config.causal:
        return _single(frames, num_context, actions)
    future, size = frames - num_context, config.chunk_frames
    copied = 0 if history is None else history.first + history.num_frames - num_context
    if future % size or copied % size:
        raise ConfigError(
            f"{future} latent frames after the context can't be cut into chunks; allowed: multiples of "
            f"model.attention.chunk_frames ({size}); change it, or data.window.num_future_frames"
        )
    count = future // size if future else copied // size + 1
    if actions % count:
        raise ConfigError(f"{actions} actions can't be shared among {count} chunks; allowed: multiples of {count}")
    first = torch.ones(1, dtype=torch.long, device=device) if start is None else start
    of_frames = torch.div(torch.arange(frames, device=first.device) - num_context, size, rounding_mode="floor")
    of_frames = of_frames.clamp(min=-1) + first[:, None]
    per_chunk = max(actions // count, 1)
    of_actions = torch.arange(actions, device=first.device) // per_chunk + first[:, None]
    is_noisy = torch.arange(frames, device=first.device) >= (
        0 if history and history.first < num_context else num_context
    )
    begin, end = (0, 0) if history is None else (history.first, history.first + history.num_frames)
    clean = torch.div(torch.arange(begin, end, device=first.device) - num_context, size, rounding_mode="floor")
    return ChunkIds(
        count=count,
        frames=of_frames,
        noisy=is_noisy.long()[None],
        history_frames=clean.clamp(min=-1) + first[:, None],
        actions=of_actions,
        history_actions=of_actions[:, : 0 if history is None else history.num_actions],
        chunks=torch.arange(count, device=first.device) + first[:, None],
    )


def _single(frames: int, num_context: int, actions: int) -> ChunkIds:
    zeros = torch.zeros(1, frames + actions + 1, dtype=torch.long)
    noisy = (torch.arange(frames) >= num_context).long()[None]
    return ChunkIds(
        count=1,
        frames=zeros[:, :frames],
        noisy=noisy,
        history_frames=zeros[:, :0],
        actions=zeros[:, frames : frames + actions],
        history_actions=zeros[:, :0],
        chunks=zeros[:, :1],
    )


def observed_ids(chunk: Int[Tensor, "b 1"], frames: int, actions: int) -> ChunkIds:
    """Return the numbers of a call that observes one chunk; `chunk` is each sample's."""
    return ChunkIds(
        count=1,
        frames=chunk.expand(-1, frames),
        noisy=chunk.new_zeros(1, frames),
        history_frames=chunk[:, :0],
        actions=chunk.expand(-1, actions),
        history_actions=chunk[:, :0],
        chunks=chunk,
    )


def state_rows(
    state: Float[Tensor, "b *s ds"] | None, mask: Bool[Tensor, "b *s ds"] | None, count: int
) -> tuple[Float[Tensor, "b s ds"], Bool[Tensor, "b s ds"]] | None:
    """Return one state a chunk; where there is one for the first chunk only, those of the others are unknown.

    Raises:
        ConfigError: There are several, but not one a chunk.
    """
    if state is None or mask is None:
        return None
    if state.ndim == 2:
        state, mask = (torch.nn.functional.pad(x[:, None], (0, 0, 0, count - 1)) for x in (state, mask))
    if state.shape[1] != count:
        raise ConfigError(
            f"state has {state.shape[1]} rows a sample; allowed: 1, or one for each of the {count} chunks"
        )
    return state, mask


def chunk_times(
    ids: ChunkIds,
    config: AttentionConfig,
    num_context: int,
    latent_times: Float[Tensor, "b t"],
    action_times: Float[Tensor, "b ta"],
) -> Float[Tensor, "b s"]:
    """Return the seconds at which state and registers sit: 0, or where the chunk's actions (else frames) start."""
    if not config.causal:
        return latent_times.new_zeros(latent_times.shape[0], 1)
    if action_times.shape[1]:
        return action_times[:, :: action_times.shape[1] // ids.count]
    return latent_times[:, num_context : num_context + ids.count * config.chunk_frames : config.chunk_frames]


@dataclass(frozen=True, kw_only=True)
class Call:
    """The inputs of one call of the network, brought into one form; `WAMTransformer.forward` says what they are."""

    latents: Float[Tensor, "b v c t h w"]
    t_video: Float[Tensor, "b t"]
    latent_times: Float[Tensor, "b t"]
    embodiment: Int[Tensor, " b"]
    actions: Float[Tensor, "b ta da"] | None
    t_action: Float[Tensor, "b ta"]
    action_times: Float[Tensor, "b ta"]
    state: tuple[Float[Tensor, "b s ds"], Bool[Tensor, "b s ds"]] | None
    view_mask: Bool[Tensor, "b v"] | None
    condition: Float[Tensor, "b v cc t h w"] | None
    num_context: int
    history: History | None
    ids: ChunkIds
    last_frame: Float[Tensor, "b v c 1 h w"] | None = None
    """The last frame that a cache has observed."""

    def frames(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return latents, clocks, times and condition of all frames: clean copies, then the call's own."""
        condition = None if self.condition is None else self.condition[:, :, :, : self.latents.shape[3]]
        if self.history is None:
            return self.latents, self.t_video, self.latent_times, condition
        begin, end = self.history.first, self.history.first + self.history.num_frames
        if self.condition is not None and condition is not None:
            condition = torch.cat([self.condition[:, :, :, begin:end], condition], dim=3)
        latents = torch.cat([self.history.latents.to(self.latents), self.latents], dim=3)
        clocks = torch.cat([self.history.t_video, self.t_video], dim=1)
        return latents, clocks, torch.cat([self.history.times, self.latent_times], dim=1), condition

    def action_streams(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return actions, clocks and chunks of the clean copies, if there are any, and of the call's own."""
        streams = {}
        if self.history is not None and self.history.actions is not None and self.history.t_action is not None:
            streams["history_actions"] = (self.history.actions, self.history.t_action, self.ids.history_actions)
        if self.actions is not None:
            streams["actions"] = (self.actions, self.t_action, self.ids.actions)
        return streams

    def residual(self, config: AttentionConfig) -> Float[Tensor, "b v c #t h w"]:
        """Return the last clean frame before the chunk of each frame; that of the context for the context itself."""
        if self.last_frame is not None:
            return self.last_frame
        last, size = self.num_context - 1, config.chunk_frames
        first = self.latents[:, :, :, last : last + 1]
        if self.history is None:
            return first
        if self.history.first <= last:
            first = self.history.latents[:, :, :, last - self.history.first :][:, :, :, :1]
        ends = self.history.latents[:, :, :, self.num_context - self.history.first + size - 1 :: size]
        before = torch.cat([first, ends.to(first)], dim=3)[:, :, :, : self.ids.count]
        return torch.cat([first.repeat_interleave(self.num_context, 3), before.repeat_interleave(size, 3)], dim=3)
