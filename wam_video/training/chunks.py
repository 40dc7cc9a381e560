"""The clocks of a window's chunks, and the clean copies that later chunks read (teacher forcing); see `models.masks`."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wam_video.errors import ConfigError
from wam_video.flow.density import NUM_UNIFORMS, DensityConfig, draw_clocks, draw_history, draw_prefix
from wam_video.flow.path import expand_clock, interpolate
from wam_video.flow.solvers import LATENT_FRAME_AXIS, State
from wam_video.models.chunks import ChunkIds, History
from wam_video.models.masks import AttentionConfig


def num_uniforms(attention: AttentionConfig, chunks: int, density: DensityConfig) -> int:
    """Return how many uniform numbers a window takes.

    A draw, one for the prompt, for chunks two more each and draws; two more a chunk for prefixes, if there are any, so that without them
    every draw stays as it was.
    """
    more = (chunks - 1) * NUM_UNIFORMS + 2 * chunks if attention.causal else 0
    return NUM_UNIFORMS + 1 + more + (2 * chunks if density.prefix else 0)


@dataclass(frozen=True, kw_only=True)
class ChunkClocks:
    """The clocks of a batch of windows."""

    video: Float[Tensor, "b chunks"]
    actions: Float[Tensor, "b chunks"]
    history: Float[Tensor, "b chunks"]
    """Of the clean copy of each chunk but the last, that of the context first."""
    prefix: Int[Tensor, "b chunks"]
    """Actions of each chunk that are committed, at clock 0."""

    def at(self, t_video: Float[Tensor, " b"], t_action: Float[Tensor, " b"]) -> "ChunkClocks":
        """Return these clocks for all chunks, with clean copies at 0 and nothing committed."""
        video, actions = (t[:, None].expand_as(self.video) for t in (t_video, t_action))
        history, prefix = torch.zeros_like(self.history), torch.zeros_like(self.prefix)
        return ChunkClocks(video=video, actions=actions, history=history, prefix=prefix)

    def of_frames(self, chunks: ChunkIds, frames: int) -> Float[Tensor, "b t"]:
        """Return the clock of each of the first latent frames."""
        by_chunk = torch.cat([self.history[:, :1], self.video], dim=1)
        if chunks.count == 1:  # the only chunk may have any number of frames
            return by_chunk[:, chunks.noisy[0, :frames]]
        return by_chunk[:, chunks.frames[0, :frames]]

    def of_actions(self, count: int) -> Float[Tensor, "b ta"]:
        """Return the clock of each action.

        Raises:
            ConfigError: A whole chunk would be committed.
        """
        per = count // self.actions.shape[1]
        if per and (longest := int(self.prefix.max())) >= per:
            raise ConfigError(
                f"a prefix of {longest} actions leaves nothing of a chunk of {per}; allowed for density.prefix_max: below {per}"
            )
        committed = (torch.arange(per) < self.prefix[..., None]).flatten(1)
        return torch.where(committed, 0.0, self.actions.repeat_interleave(per, dim=1))


def chunk_clocks(
    density: DensityConfig, uniforms: Float[Tensor, "b u"], has_actions: Bool[Tensor, " b"], chunks: int
) -> ChunkClocks:
    """Draw the clocks of each chunk, and of the clean copies."""
    first, rest = uniforms[:, :NUM_UNIFORMS], uniforms[:, NUM_UNIFORMS + 1 :]
    later = rest[:, : (chunks - 1) * NUM_UNIFORMS].unflatten(1, (chunks - 1, NUM_UNIFORMS)).unbind(1)
    drawn = [draw_clocks(density, each, has_actions) for each in (first, *later)]
    history, prefix = torch.zeros(len(uniforms), chunks), torch.zeros(len(uniforms), chunks, dtype=torch.long)
    if density.prefix:
        rest, last = rest[:, : -2 * chunks], rest[:, -2 * chunks :]
        prefix = draw_prefix(density, last.unflatten(1, (chunks, 2)))
    if rest.shape[1]:
        history = draw_history(density, rest[:, -2 * chunks :].unflatten(1, (chunks, 2)))
    return ChunkClocks(
        video=torch.stack([video for video, _ in drawn], dim=1),
        actions=torch.stack([actions for _, actions in drawn], dim=1),
        history=history,
        prefix=prefix,
    )


def make_history(
    attention: AttentionConfig,
    clean: State,
    noise: State,
    clocks: ChunkClocks,
    chunks: ChunkIds,
    facts: dict[str, Any],
    action_mask: Bool[Tensor, "b ta da"],
) -> History | None:
    """Return the clean copies of the chunks between the context and the last; None without any.

    They share their noise with the noisy stream: whoever reads a chunk's copy does not see, nor predict, that chunk.
    """
    if chunks.count < 2 or clean.video is None or noise.video is None or clean.actions is None:
        return None
    num_context = int((chunks.noisy == 0).sum())
    copied = slice(num_context, chunks.frames.shape[1] - attention.chunk_frames)
    recorded = facts["frame_mask"].any(dim=1)[:, copied]
    t_video = clocks.history[:, chunks.frames[0, copied]]
    t_video = torch.where(recorded, t_video, torch.ones_like(t_video)).to(clean.video.device)
    video, eps = clean.video[:, :, :, copied], noise.video[:, :, :, copied]
    actions = t_action = None
    if attention.action_history and noise.actions is not None:
        count = action_mask.shape[1] // chunks.count * (chunks.count - 1)
        t_action = (~action_mask.any(dim=-1)[:, :count]).to(clean.actions)
        actions = interpolate(clean.actions[:, :count], noise.actions[:, :count], t_action[..., None])
    return History(
        latents=interpolate(video, eps, expand_clock(t_video, video, LATENT_FRAME_AXIS)),
        t_video=t_video,
        times=facts["latent_times"][:, copied],
        first=num_context,
        actions=actions,
        t_action=t_action,
    )
