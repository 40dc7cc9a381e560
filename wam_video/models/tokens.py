"""Tokens and what goes with them: how many there are, the clock and the place of each, and what the rule knows of it.

Video comes first (frame by frame, all views and sites of a latent frame together), then state, actions, registers. Clocks
come in slots, one for each latent frame, action and state, so that whatever depends on time is computed once a slot and
gathered by token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wam_video.models.masks import Modality, TokenMeta, join_meta
from wam_video.models.rope import Rotary


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """The token counts of one chunk; `height` and `width` are in patches, `frames` in latent frames."""

    views: int
    frames: int
    height: int
    width: int
    state: int
    actions: int
    registers: int

    @property
    def per_frame(self) -> int:
        """Tokens of a latent frame over all views."""
        return self.views * self.height * self.width

    @property
    def num_video(self) -> int:
        """Video tokens."""
        return self.frames * self.per_frame

    @property
    def num_side(self) -> int:
        """State, action and register tokens."""
        return self.state + self.actions + self.registers

    @property
    def num_tokens(self) -> int:
        """Length of the sequence."""
        return self.num_video + self.num_side

    @property
    def num_slots(self) -> int:
        """Clock slots; the registers share one."""
        return self.frames + self.state + self.actions + min(self.registers, 1)


class TokenGroup(NamedTuple):
    """Tokens of one kind, or of several that were joined, before the blocks."""

    tokens: Float[Tensor, "b n d"]
    clocks: Float[Tensor, "b m"]
    """Flow time of each clock slot."""
    slots: Int[Tensor, " n"]
    """The slot of each token."""
    rotary: Rotary
    meta: TokenMeta


def join(groups: Sequence[TokenGroup]) -> TokenGroup:
    """Put groups of tokens one after the other."""
    starts, count = [], 0
    for group in groups:
        starts.append(count)
        count += group.clocks.shape[1]
    cos, sin = (torch.cat(part, dim=1) for part in zip(*(group.rotary for group in groups), strict=True))
    return TokenGroup(
        tokens=torch.cat([group.tokens for group in groups], dim=1),
        clocks=torch.cat([group.clocks for group in groups], dim=1),
        slots=torch.cat([group.slots + start for group, start in zip(groups, starts, strict=True)]),
        rotary=(cos, sin),
        meta=join_meta([group.meta for group in groups]),
    )


def video_meta(
    chunk: Int[Tensor, "r t"],
    noisy: Int[Tensor, "r t"],
    view_mask: Bool[Tensor, "b v"] | None,
    per_view: int,
    views: int,
) -> TokenMeta:
    """Return the metadata of video tokens; those of an absent camera are not real."""
    per_frame = views * per_view
    chunk, noisy = (field.repeat_interleave(per_frame, dim=1) for field in (chunk, noisy))
    real = torch.ones_like(noisy)
    if view_mask is not None:
        real = view_mask.to(noisy).repeat_interleave(per_view, dim=1).repeat(1, noisy.shape[1] // per_frame)
    return TokenMeta(chunk=chunk, modality=torch.full_like(chunk, Modality.VIDEO), noisy=noisy, real=real)


def side_meta(chunk: Int[Tensor, "r n"], modality: Modality, *, noisy: bool = True) -> TokenMeta:
    """Return the metadata of tokens that are all of one modality and one stream."""
    ones = torch.ones_like(chunk)
    return TokenMeta(chunk=chunk, modality=ones * int(modality), noisy=ones * int(noisy), real=ones)


def video_positions(times: Float[Tensor, "b t"], views: int, height: int, width: int) -> Float[Tensor, "b n 3"]:
    """Return (time, row, column) of video tokens; `times` is in rotary positions."""
    frames, sites = times.shape[1], height * width
    grid = torch.cartesian_prod(
        torch.arange(height, device=times.device), torch.arange(width, device=times.device)
    ).reshape(-1, 2)
    space = grid.repeat(frames * views, 1).to(times).expand(times.shape[0], -1, -1)
    return torch.cat([times.repeat_interleave(views * sites, dim=1)[..., None], space], dim=-1)


def side_positions(times: Float[Tensor, "b n"]) -> Float[Tensor, "b n 3"]:
    """Return the positions of actions, state and registers: at row and column 0."""
    return torch.nn.functional.pad(times[..., None], (0, 2))
