"""The legend of shapes and the records that travel between the parts of the library.

`b` batch, `v` views, `f` pixel frames, `t` latent frames, `c` channels, `h w` space, `n` tokens, `d` width, `k` head dim,
`ta` action steps, `da` action dims, `ds` state dims, `s` text tokens. Stored video is uint8 `f h w c`; in the model it is
float `b v c f h w` in [-1, 1]. Actions are `b ta da`, normalised inside the model and in the robot's own units outside.

Times are seconds on ONE axis for video and actions, with 0 at the last context frame ("now"). Action i is the transition
from its time to the next action's. Flow time is called `t` and lies in [0, 1]: 1 is noise, 0 is data (see `flow.path`).
"""

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

PredictionType = Literal["velocity", "sample"]
"""What a network puts out for a modality: the velocity of the path, or the clean sample (x-prediction); see `flow.path`."""


class Mode(StrEnum):
    """What a model is used for; `flow.modes` says what each one reads and generates."""

    POLICY = "policy"
    FORWARD = "forward"
    INVERSE = "inverse"
    VIDEO = "video"
    JOINT = "joint"


@dataclass(frozen=True, kw_only=True)
class SkippedClip:
    """A clip that a batch should have drawn from, could not, and replaced by another."""

    dataset: str
    key: str
    """Of the sample."""
    reason: str
    """One of `data.reader.REASONS`."""
    message: str
    wanted: int
    """Windows of this batch that were to be cut from it."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Windows of recordings as the loader yields them: uint8 pixels, actions and state in physical units.

    Missing frames, steps and dimensions hold zeros and are False in their mask; nothing else marks them.
    """

    video: UInt8[Tensor, "b v c f h w"]
    frame_mask: Bool[Tensor, "b v f"]
    """True where a frame was recorded; False before the start and after the end of a clip, and for absent views."""
    frame_times: Float[Tensor, "b f"]
    """Seconds, 0 at the last context frame, rising."""
    num_context_frames: int
    """The first so many of the `f` frames are the past and the present; the others are the future."""
    actions: Float[Tensor, "b ta da"]
    action_mask: Bool[Tensor, "b ta da"]
    action_times: Float[Tensor, "b ta"]
    """Seconds at which each action starts; the first is 0."""
    state: Float[Tensor, "b ds"]
    state_mask: Bool[Tensor, "b ds"]
    """False in padded dimensions, and everywhere for a sample without proprioception."""
    prompts: tuple[str, ...]
    embodiments: tuple[str, ...]
    datasets: tuple[str, ...]
    keys: tuple[str, ...]
    """`<sample key>@<frame>` of each window: the clip that it is cut from and the stored frame at time 0."""
    indices: Int[Tensor, " b"]
    """Global sample index of each window in the data order (a pure function of manifest, seed and index)."""
    later_state: Float[Tensor, "b s ds"] | None = None
    """The states at the start of later chunks, where windows have several (`num_states`); modes do not read them."""
    later_state_mask: Bool[Tensor, "b s ds"] | None = None
    skipped: tuple[SkippedClip, ...] = ()
    """Clips that could not be used; the windows that took their places are a pure function of the index, too."""
    latents: Float[Tensor, "b v c t h w"] | None = None
    """Pre-encoded windows, bfloat16; `video` then has its frames, but no pixels (height and width 0)."""
    latents_codec: str = ""
    """Hash of the codec that made them (`models.fingerprint`)."""
    teacher: Float[Tensor, "b v d t h w"] | None = None
    """A teacher's features of the token frames of pre-encoded windows, bfloat16; zeros where nothing was recorded."""
    teacher_hash: str = ""
    """Of the teacher that made them (`models.teacher`)."""

    def __len__(self) -> int:
        return self.video.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return the batch with its tensors on `device`."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device, non_blocking=non_blocking) if isinstance(v, Tensor) else v for k, v in moved.items()}
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory (called by the DataLoader)."""
        pinned = {f.name: v.pin_memory() for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **pinned)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the network says of a noisy sample; None where a modality is absent. The units are those of its config."""

    video: Float[Tensor, "b v c t h w"] | None
    actions: Float[Tensor, "b ta da"] | None


def to_unit_range(video: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Map uint8 pixels 0..255 to float32 in [-1, 1]."""
    return video.to(torch.float32) / 127.5 - 1.0
