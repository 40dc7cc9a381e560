"""The records of an evaluation over recorded windows: what a model gave, and the sums that are kept of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from wam_video.data.schema import EmbodimentSpec
from wam_video.tensors import Batch, Mode

CONTROL = "control"
"""Stands where a mode does, for predictions that no model made."""

Key = tuple[str, str]
"""(mode or `CONTROL`, condition)."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What a mode made of a batch, on the CPU; None where it gives none."""

    actions: Float[Tensor, "b ta da"] | None
    """Physical units; as wide as the batch's actions, or wider."""
    video: Float[Tensor, "b v f 3 h w"] | None
    """Future frames in [0, 1]."""


Sampler = Callable[[Mode, Batch, Sequence[int]], Generated]
"""Runs a mode on what it may read of the batch, with one seed a window."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The windows of one embodiment that are to be scored together."""

    spec: EmbodimentSpec
    indices: tuple[int, ...]
    """Of the windows in the data set."""
    episodes: tuple[str, ...]
    action_mean: Float[Tensor, " da"]
    """Of the training split."""
    action_scale: Float[Tensor, " da"]
    """Standard deviation in the training split; 0 for a dimension that never changed."""
    previous_actions: Float[Tensor, "n da"] | None = None
    """The action just before time 0 of each window; the mean action where the recording starts there."""

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(kw_only=True)
class Shown:
    """One window, kept whole."""

    key: str
    prompt: str
    video: UInt8[Tensor, "v f h w 3"]
    num_context_frames: int
    frame_times: Float[Tensor, " f"]
    actions: Float[Tensor, "ta da"]
    action_mask: Bool[Tensor, "ta da"]
    action_times: Float[Tensor, " ta"]
    videos: dict[Key, UInt8[Tensor, "v f h w 3"]] = field(default_factory=dict)
    """Generated future frames."""
    chunks: dict[Key, Float[Tensor, "ta da"]] = field(default_factory=dict)
    """Generated actions."""


@dataclass(kw_only=True)
class Measured:
    """The sums of every run and control, window by window, in the order of the group."""

    video: dict[Key, Float[Tensor, "n k f"]] = field(default_factory=dict)
    actions: dict[Key, Float[Tensor, "n k ta da"]] = field(default_factory=dict)
    identical: dict[Key, Bool[Tensor, " p"]] = field(default_factory=dict)
    """Whether the answer stayed the same to the bit when what its mode must not see was altered; of the first windows."""
    frame_times: list[float] = field(default_factory=list)
    """Seconds of the future frames."""
    action_times: list[float] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)


@dataclass(kw_only=True)
class BatchSums:
    """What is kept of a batch."""

    mask: Bool[Tensor, "b ta da"]
    video: dict[Key, Tensor] = field(default_factory=dict)
    actions: dict[Key, Tensor] = field(default_factory=dict)
    identical: dict[Key, Bool[Tensor, " p"]] = field(default_factory=dict)
    """As in `Measured`."""
    imagined: Tensor | None = None
    """Actions of `joint`."""
    read_back: Tensor | None = None
    """Actions that `inverse` reads out of the video of `joint`."""
    shown: list[Shown] = field(default_factory=list)
    frame_times: list[float] = field(default_factory=list)
    action_times: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.mask)
