"""Where each token sits: video, state, actions and registers in one sequence, with a clock and a position for each.

Order: video frame by frame (all views and sites of a latent frame together), state, actions, registers. Clocks come in
slots, one for each latent frame, one for each action and one for "given" (t = 0), so that whatever depends on time is
computed once a slot and gathered by token.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """The token counts of one call; `height` and `width` are in patches, `frames` in latent frames."""

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
    def num_tokens(self) -> int:
        """Length of the sequence."""
        return self.num_video + self.state + self.actions + self.registers

    @property
    def action_slice(self) -> slice:
        """Where the actions are in the sequence."""
        start = self.num_video + self.state
        return slice(start, start + self.actions)

    @property
    def num_slots(self) -> int:
        """Clock slots."""
        return self.frames + self.actions + 1

    @cached_property
    def slots(self) -> Int[Tensor, " n"]:
        """The clock slot of each token."""
        given = self.frames + self.actions
        return torch.cat(
            [
                torch.arange(self.frames).repeat_interleave(self.per_frame),
                torch.full((self.state,), given),
                torch.arange(self.frames, given),
                torch.full((self.registers,), given),
            ]
        )

    def slot_times(self, t_video: Float[Tensor, "b t"], t_action: Float[Tensor, "b ta"]) -> Float[Tensor, "b m"]:
        """Return the flow time of each slot, the last one being 0."""
        return torch.cat([t_video, t_action, torch.zeros_like(t_video[:, :1])], dim=1)

    def stream_slots(self, *, separate: bool) -> list[Int[Tensor, " n"]]:
        """Return each stream's slots, counted from its own first one: one stream, or video and the rest apart."""
        if not separate:
            return [self.slots]
        return [self.slots[: self.num_video], self.slots[self.num_video :] - self.frames]

    def stream_times(
        self, t_video: Float[Tensor, "b t"], t_action: Float[Tensor, "b ta"], *, separate: bool
    ) -> list[Float[Tensor, "b m"]]:
        """Return the flow time of each stream's slots; see `stream_slots`."""
        times = self.slot_times(t_video, t_action)
        return [times[:, : self.frames], times[:, self.frames :]] if separate else [times]

    def positions(
        self, latent_times: Float[Tensor, "b t"], action_times: Float[Tensor, "b ta"], rate: float
    ) -> Float[Tensor, "b n 3"]:
        """Return (time, height, width) of each token; time is in seconds times `rate`, and 0 for state and registers.

        Actions, state and registers sit at height and width 0.
        """
        batch = latent_times.shape[0]
        seconds = torch.cat([latent_times, action_times, torch.zeros_like(latent_times[:, :1])], dim=1)
        time = seconds[:, self.slots.to(seconds.device)] * rate
        grid = torch.cartesian_prod(torch.arange(self.height), torch.arange(self.width)).reshape(-1, 2)
        space = torch.zeros(self.num_tokens, 2)
        space[: self.num_video] = grid.repeat(self.frames * self.views, 1)
        return torch.cat([time[..., None], space.to(time).expand(batch, -1, -1)], dim=-1)
