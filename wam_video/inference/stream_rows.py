"""What a session knows of each row without any network: where it is in time, what was carried out, what waits for more frames.

A row's stream is cut as the windows of training were: the context, which is chunk 0, then chunks of `chunk_frames` latents with
the actions that are carried out during them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import floor
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wam_video.data.schema import EmbodimentSpec
from wam_video.data.windows import WindowConfig
from wam_video.errors import ConfigError
from wam_video.inference.inputs import horizon
from wam_video.inference.stream_window import TOLERANCE, StreamSetup, gaps, wrong_rate
from wam_video.models import video_codec
from wam_video.models.chunks import chunk_ids
from wam_video.models.image_context import condition_of_chunk
from wam_video.models.streaming_codec import EncoderState


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """How the stream of a body is cut into chunks."""

    context_frames: int
    context: int
    """Latents of chunk 0."""
    chunk: int
    """Latents of any other chunk."""
    factor: int
    """Frames of a latent."""
    per: int
    """Actions of a chunk."""
    rate: float
    """Actions from frame to frame."""

    @classmethod
    def of(cls, setup: StreamSetup, spec: EmbodimentSpec) -> "Rhythm":
        """Return the rhythm in which the network was trained.

        Raises:
            ConfigError: Its windows don't go on as a stream.
        """
        window, rule = setup.processor.window, setup.transformer.attention
        rhythm = cls(
            context_frames=window.num_context_frames,
            context=video_codec.num_latents(setup.codec, window.num_context_frames),
            chunk=rule.chunk_frames,
            factor=video_codec.temporal_factor(setup.codec),
            per=window.action_horizon // num_chunks(setup),
            rate=spec.action_rate * window.future_stride_s,
        )
        during = rhythm.rate * rhythm.chunk * rhythm.factor
        if rule.action_history and spec.action_dim and abs(during - rhythm.per) > 1e-6 * rhythm.per:
            raise ConfigError(
                f"a chunk of this network has {rhythm.per} actions, but embodiment {spec.name!r} carries out {during:g} during its "
                f"{rhythm.chunk * rhythm.factor} frames, so its action history can't go on as a stream; allowed: windows in which "
                "the two agree (data.window.action_horizon, future_stride_s)"
            )
        return rhythm

    def begin(self, chunks: int) -> int:
        """Return the frames after the context at which chunk number `chunks` begins."""
        return max(chunks - 1, 0) * self.chunk * self.factor

    def steps(self, frames: int) -> int:
        """Return the actions of the first `frames` frames after the context, rounded to whole ones."""
        return floor(frames * self.rate + 0.5 + 1e-6)


def num_chunks(setup: StreamSetup) -> int:
    """Return the chunks of a window after its context.

    Raises:
        ConfigError: It is no whole number.
    """
    window = setup.processor.window
    context, total = (video_codec.num_latents(setup.codec, n) for n in (window.num_context_frames, window.num_frames))
    return chunk_ids(
        setup.transformer.attention, frames=total, num_context=context, actions=window.action_horizon
    ).count


@dataclass(frozen=True, kw_only=True)
class Row:
    """Where a row of a causal network is."""

    rhythm: Rhythm
    chunks: int = 0
    """Whole ones that were observed: the number of the one that comes next."""
    frames: int = -1
    """Frames after the context; -1 before the first."""
    clock: float | None = None
    """The robot's, at the last frame."""
    encoder: EncoderState = field(default_factory=EncoderState)
    waiting: Float[Tensor, "v c t h w"] | None = None
    """Latents of the chunk that is not complete."""
    tail: Float[Tensor, "v c t h w"] | None = None
    """The last latents that were observed, for decoding what comes after them."""
    known: Bool[Tensor, " t"] | None = None
    """Which latents of the context were recorded."""
    executed: Float[Tensor, "m da"] | None = None
    """Actions since the last whole chunk, in physical units; NaN where nobody said which."""
    plan: Float[Tensor, "ta da"] | None = None
    """What `act` gave from there on."""
    state: Float[Tensor, "2 ds"] | None = None
    """Values and mask at the last whole chunk."""
    picture: Float[Tensor, "i di"] | None = None
    """Image context of the first frame, if the network reads one."""
    condition: Float[Tensor, "v cc t h w"] | None = None
    """What it is told of the first frame beside the latents, if anything."""

    @property
    def done(self) -> int:
        """Actions of the next chunk that are past already."""
        begin = self.rhythm.begin(self.chunks)
        return self.rhythm.steps(max(self.frames, begin)) - self.rhythm.steps(begin)

    @property
    def complete(self) -> bool:
        """Whether the latents of the next chunk are all there."""
        return self.waiting is not None and self.waiting.shape[2] >= self.wanted

    @property
    def wanted(self) -> int:
        """Latents of the next chunk."""
        return self.rhythm.chunk if self.chunks else self.rhythm.context

    def frames_after(self, count: int) -> int:
        """Return the frames after the context when `count` more have come."""
        return self.frames + count if self.frames >= 0 else max(count - self.rhythm.context_frames, 0)

    def next_steps(self, count: int) -> int:
        """Return the actions that are carried out while `count` more frames come."""
        return self.rhythm.steps(self.frames_after(count)) - self.rhythm.steps(max(self.frames, 0))

    def arrived(
        self, latents: Float[Tensor, "v c t h w"], executed: Float[Tensor, "k da"], encoder: EncoderState, count: int
    ) -> "Row":
        """Return the row after `count` frames, which completed these latents and during which these actions were carried out."""
        return replace(
            self,
            encoder=encoder,
            frames=self.frames_after(count),
            waiting=latents if self.waiting is None else torch.cat([self.waiting, latents], dim=2),
            executed=executed if self.executed is None else torch.cat([self.executed, executed]),
        )

    def written(self) -> "Row":
        """Return the row after its next chunk was written into the cache."""
        assert self.waiting is not None, "a chunk is complete"
        latents, rhythm = self.waiting[:, :, : self.wanted], self.rhythm
        tail = latents if self.tail is None else torch.cat([self.tail, latents], dim=2)
        past = rhythm.steps(rhythm.begin(self.chunks + 1)) - rhythm.steps(rhythm.begin(self.chunks))
        return replace(
            self,
            chunks=self.chunks + 1,
            waiting=self.waiting[:, :, self.wanted :].clone(),  # a view would keep all of it alive
            tail=tail[:, :, -max(rhythm.context, 2) :].clone(),
            known=None,
            executed=None if self.executed is None else self.executed[past:].clone(),
            plan=None if self.plan is None else self.plan[past:],
        )

    def check(self, number: int, window: WindowConfig, count: int, times: Float[np.ndarray, " f"] | None) -> None:
        """Refuse frames that can't come next.

        Raises:
            ConfigError: They don't fit the checkpoint's rate, or are too few to begin with.
        """
        needed = 1 if self.rhythm.context == window.num_context_frames else self.rhythm.factor
        if self.frames < 0 and count < min(needed, window.num_context_frames):
            raise ConfigError(
                f"row {number} begins with {count} frames, which fill no latent of this codec; give at least {needed}, and "
                f"{window.num_context_frames} for a whole context"
            )
        if times is None:
            return
        for i, gap in enumerate(gaps(times, self.clock)):
            in_context = self.frames < 0 and i < window.num_context_frames
            stride = window.context_stride_s if in_context else window.future_stride_s
            if abs(gap - stride) > TOLERANCE * stride:  # never so for NaN
                raise wrong_rate(float(gap), stride, "give frames at this rate, and reset the row after a pause")


class StreamRows:
    """The rows of a causal network, and what it is told of them beside latents and actions.

    Args:
        setup: What does not change.

    Raises:
        ConfigError: The windows of this checkpoint don't go on as a stream.
    """

    def __init__(self, setup: StreamSetup) -> None:
        self._setup, self._window = setup, setup.processor.window
        self._rows = [Row(rhythm=Rhythm.of(setup, spec)) for spec in setup.specs]
        self._views = setup.view_mask
        rule = setup.transformer.attention
        self._keep = setup.window or rule.window or num_chunks(setup)
        self.remembers = self._keep + rule.sink_chunks
        """Chunks that each row keeps at most, its sinks included."""

    def begun(self, row: int) -> bool:
        """Say whether a row has observed anything."""
        return self._rows[row].chunks > 0

    def inputs(self, rows: Sequence[int], frames: int) -> dict[str, Any]:
        """Return what goes with the next `frames` latents of some rows."""
        device, views = self._setup.device, self._views[list(rows)]
        conditions = []
        for index in rows:
            row = self._rows[index]
            begin = row.rhythm.context + (row.chunks - 1) * row.rhythm.chunk if row.chunks else 0
            condition = None if row.condition is None else condition_of_chunk(row.condition[None], begin, frames)
            conditions.extend([] if condition is None else [condition])
        return {
            "latent_times": self.latent_times(rows, frames).to(device),
            "embodiment": self._setup.bodies(rows).to(device),
            "view_mask": None if bool(self._views.all()) else views.to(device),
            "condition": torch.cat(conditions) if conditions else None,
        }

    def latent_times(self, rows: Sequence[int], frames: int) -> Float[Tensor, "n t"]:
        """Return the seconds of the next latents since each row's context; in float64, for a stream may be long."""
        rhythm = self._rows[rows[0]].rhythm
        if self._rows[rows[0]].chunks == 0:
            past = torch.arange(1 - rhythm.context_frames, 1, dtype=torch.float64) * self._window.context_stride_s
            return video_codec.latent_times(self._setup.codec, past[None]).expand(len(rows), -1)
        begin = torch.tensor([rhythm.begin(self._rows[index].chunks) for index in rows], dtype=torch.float64)
        ahead = torch.arange(1, frames + 1, dtype=torch.float64) * rhythm.factor
        return (begin[:, None] + ahead) * self._window.future_stride_s

    def action_times(self, rows: Sequence[int]) -> Float[Tensor, "n ta"]:
        """Return the seconds at which the actions of the next chunk start, on the axis of `latent_times`."""
        times = []
        for index in rows:
            rhythm, rate = self._rows[index].rhythm, self._setup.specs[index].action_rate
            ahead = torch.arange(rhythm.per, dtype=torch.float64) / (rate or torch.inf)
            times.append(rhythm.begin(self._rows[index].chunks) * self._window.future_stride_s + ahead)
        return torch.stack(times)

    def states(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the states with which the next chunk begins, normalised, and which of them are real."""
        pairs = torch.stack([s for s in (self._rows[index].state for index in rows) if s is not None])
        state = self._setup.processor.normalize_state(pairs[:, 0], self._setup.bodies(rows))
        return {"state": state.to(self._setup.device), "state_mask": pairs[:, 1].bool().to(self._setup.device)}

    def exists(self, rows: Sequence[int]) -> Bool[Tensor, "n ta"]:
        """Return which actions of a chunk each row's body has."""
        counts = [horizon(self._window, self._setup.embodiments[index]) for index in rows]
        return torch.arange(self._rows[rows[0]].rhythm.per)[None] < torch.tensor(counts)[:, None]

    def places(self, rows: Sequence[int]) -> list[int]:
        """Return the places of rows in the cache; with guidance those of the unconditional samples come after all others."""
        return [*rows, *([row + len(self._rows) for row in rows] if self._setup.guided else [])]

    def flags(self, rows: Sequence[int]) -> Bool[Tensor, " p"]:
        """Return which places of the cache are those of some rows."""
        flags = torch.zeros(len(self._rows) * (2 if self._setup.guided else 1), dtype=torch.bool)
        flags[self.places(rows)] = True
        return flags
