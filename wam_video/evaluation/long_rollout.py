"""Long rollouts: the forward mode fed with its own frames, window after window.

A window reads frames every `context_stride_s` and draws frames every `future_stride_s`. Where these differ, some of the context
frames of the next window were never drawn; they are masked, as before the start of a recording. Windows in between would
draw them, but that is dearer and drifts sooner: on `wam-tiny-pusht` 7.1 instead of 5.1 % on static pixels after 4 s.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import gcd

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from wam_video.data.windows import WindowConfig
from wam_video.errors import ConfigError
from wam_video.evaluation.open_loop import Sampler, window_seed
from wam_video.tensors import Batch, Mode

_MAX_DENOMINATOR = 1000

Fetch = Callable[[Sequence[int]], Batch]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Times that are whole numbers of ticks."""

    tick_s: float
    context_ticks: int
    """From one context frame to the next."""
    future_ticks: int
    num_context: int
    num_future: int

    @property
    def start(self) -> int:
        """The first tick at which a window finds every frame that it reads recorded."""
        return (self.num_context - 1) * self.context_ticks

    @property
    def step_s(self) -> float:
        """Seconds from one drawn frame to the next."""
        return self.tick_s * self.future_ticks

    def ticks(self, count: int) -> list[int]:
        """Return the ticks of the first so many drawn frames."""
        return [self.start + i * self.future_ticks for i in range(1, count + 1)]

    def reach(self, num_places: int) -> int:
        """Return how many frames a stretch with so many places can hold against drawn ones."""
        return max(0, (num_places - 1 - self.start) // self.future_ticks)


def make_grid(window: WindowConfig) -> Grid:
    """Return the coarsest grid on which both strides of a window lie.

    Raises:
        ConfigError: The model draws no future frames.
    """
    if window.num_future_frames < 1:
        raise ConfigError("the model draws no future frames; a long rollout needs one that does")
    future = Fraction(window.future_stride_s).limit_denominator(_MAX_DENOMINATOR)
    context = Fraction(window.context_stride_s).limit_denominator(_MAX_DENOMINATOR)
    if window.num_context_frames == 1:
        context = future
    ticks = future.denominator * context.denominator
    whole = gcd(int(future * ticks), int(context * ticks))
    return Grid(
        tick_s=whole / ticks,
        context_ticks=int(context * ticks) // whole,
        future_ticks=int(future * ticks) // whole,
        num_context=window.num_context_frames,
        num_future=window.num_future_frames,
    )


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A stretch of one episode: a window at every tick of the grid."""

    episode: str
    fetch: Fetch
    places: tuple[int, ...]
    """Index of the window whose time 0 is at each tick."""

    def frames(self, ticks: Sequence[int], chunk: int = 32) -> UInt8[Tensor, "f v c h w"]:
        """Return the true frames of these ticks."""
        parts = []
        for start in range(0, len(ticks), chunk):
            batch = self.fetch([self.places[tick] for tick in ticks[start : start + chunk]])
            parts.append(rearrange(batch.video[:, :, :, batch.num_context_frames - 1], "f v c h w -> f v c h w"))
        return torch.cat(parts)


def told_of(stretch: Stretch, donor: Stretch) -> Stretch:
    """Return a stretch with the actions of another one, at the same ticks; a shorter one begins anew at its end."""
    place_of = dict(zip(stretch.places, range(len(stretch.places)), strict=True))

    def fetch(places: Sequence[int]) -> Batch:
        other = donor.fetch([donor.places[place_of[p] % len(donor.places)] for p in places])
        return replace(stretch.fetch(places), actions=other.actions, action_mask=other.action_mask)

    return replace(stretch, fetch=fetch)


@dataclass(frozen=True, kw_only=True)
class RollConfig:
    """How a rollout is made."""

    feed_back: bool = True
    """Read own frames; False: the recorded ones, at every window anew (teacher forcing, the ceiling)."""
    seed: int = 0
    batch_size: int = 16


def roll(
    sampler: Sampler,
    stretches: Sequence[Stretch],
    lengths: Sequence[int],
    grid: Grid,
    config: RollConfig,
    on_windows: Callable[[int], None] = lambda count: None,
) -> list[UInt8[Tensor, "f v c h w"]]:
    """Return for each stretch the `length` frames after `grid.start`, drawn by the forward mode from the true actions.

    Where own frames are read, the body's state after the start is hidden: it would tell what really happened.

    Args:
        sampler: The model.
        stretches: What happened.
        lengths: Frames of each; the stretch must reach as far.
        grid: From `make_grid`.
        config: How.
        on_windows: Called after each batch with its number of windows.
    """
    made: list[dict[int, Tensor]] = [{} for _ in stretches]
    for done in range(0, max(lengths), grid.num_future):
        now = grid.start + done * grid.future_ticks
        alive = [i for i, n in enumerate(lengths) if done < n]
        for first in range(0, len(alive), config.batch_size):
            part = alive[first : first + config.batch_size]
            batch = join([_window(stretches[i], now, made[i], grid, config) for i in part])
            seeds = [window_seed(config.seed, f"{stretches[i].episode} {now}") for i in part]
            video = sampler(Mode.FORWARD, batch, seeds).video
            if video is None:
                raise ConfigError("the model's forward mode gives no video; a long rollout needs it")
            pixels = (video.float().cpu() * 255).round().clamp(0, 255).to(torch.uint8)
            ticks = [now + j * grid.future_ticks for j in range(1, grid.num_future + 1)]
            for i, row in zip(part, pixels, strict=True):
                made[i].update(zip(ticks, rearrange(row, "v f c h w -> f v c h w"), strict=True))
            on_windows(len(part))
    return [torch.stack([frames[t] for t in grid.ticks(n)]) for frames, n in zip(made, lengths, strict=True)]


def _window(stretch: Stretch, anchor: int, made: dict[int, Tensor], grid: Grid, config: RollConfig) -> Batch:
    """Return the window at a tick with its past as the model drew it."""
    batch = stretch.fetch([stretch.places[anchor]])
    if not config.feed_back:
        return batch
    video, mask = batch.video.clone(), batch.frame_mask.clone()
    for place in range(grid.num_context):
        tick = anchor - (grid.num_context - 1 - place) * grid.context_ticks
        if tick in made:
            video[0, :, :, place] = made[tick]
        elif tick > grid.start:
            video[0, :, :, place], mask[0, :, place] = 0, False
    if anchor > grid.start:
        batch = replace(batch, state_mask=torch.zeros_like(batch.state_mask), state=torch.zeros_like(batch.state))
    return replace(batch, video=video, frame_mask=mask)


def join(batches: Sequence[Batch]) -> Batch:
    """Put windows of one geometry into one batch."""

    def cat(name: str) -> Tensor:
        return torch.cat([getattr(b, name) for b in batches])

    def chain(name: str) -> tuple[str, ...]:
        return tuple(x for b in batches for x in getattr(b, name))

    first = batches[0]
    return replace(
        first,
        **{name: cat(name) for name in _ROWS},
        **{name: chain(name) for name in ("prompts", "embodiments", "datasets", "keys")},
        later_state=None if first.later_state is None else cat("later_state"),
        later_state_mask=None if first.later_state_mask is None else cat("later_state_mask"),
        latents=None,
    )


_ROWS = (
    "video", "frame_mask", "frame_times", "actions", "action_mask", "action_times", "state", "state_mask", "indices"
)  # fmt: skip
