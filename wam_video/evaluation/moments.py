"""What is known at one moment of an episode, and such moments as a batch like those of recorded windows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32, UInt8

from wam_video.data.schema import EmbodimentSpec
from wam_video.data.windows import WindowConfig
from wam_video.tensors import Batch

Frames = Mapping[str, UInt8[np.ndarray, "h w 3"]]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What is known now."""

    pictures: Mapping[int, Frames]
    """View -> picture, by steps before now (0 is now, which must be there); those that a window lacks are masked."""
    state: Float32[np.ndarray, " ds"]
    prompt: str
    key: str
    actions: Float32[np.ndarray, "n da"] | None = None
    """The first actions from now on, where they are decided already; past the horizon they are cut off."""


def look_back(window: WindowConfig, spec: EmbodimentSpec) -> tuple[int, ...]:
    """Return the context frames of a window in steps before now, the oldest first."""
    past = np.arange(window.num_context_frames)[::-1] * window.context_stride_s
    return tuple(round(t * spec.action_rate) for t in past)


def look_ahead(window: WindowConfig, spec: EmbodimentSpec) -> tuple[int, ...]:
    """Return the future frames of a window in steps after now."""
    return tuple(round(t * spec.action_rate) for t in window.frame_times()[window.num_context_frames :])


def batch_of(moments: Sequence[Moment], window: WindowConfig, spec: EmbodimentSpec, dataset: str) -> Batch:
    """Put moments into windows like those of recorded data: what is missing is masked, not made up.

    Args:
        moments: Of one body.
        window: The model's.
        spec: The body.
        dataset: Written into the batch.
    """
    b, views, back = len(moments), spec.views[: window.max_views], look_back(window, spec)
    h, w, _ = moments[0].pictures[0][views[0]].shape
    video = np.zeros((b, len(views), window.num_frames, h, w, 3), np.uint8)
    frame_mask = np.zeros(video.shape[:3], bool)
    actions = np.zeros((b, window.action_horizon, max(spec.action_dim, 1)), np.float32)
    known = np.zeros(actions.shape, bool)
    for i, moment in enumerate(moments):
        for place, steps in enumerate(back):
            if (seen := moment.pictures.get(steps)) is not None:
                video[i, :, place] = [seen[view] for view in views]
                frame_mask[i, :, place] = True
        if moment.actions is not None:
            chunk = moment.actions[: window.action_horizon]
            actions[i, : len(chunk), : spec.action_dim] = chunk
            known[i, : len(chunk), : spec.action_dim] = True
    return Batch(
        video=torch.from_numpy(rearrange(video, "b v f h w c -> b v c f h w").copy()),
        frame_mask=torch.from_numpy(frame_mask),
        frame_times=torch.from_numpy(window.frame_times()).float().expand(b, -1),
        num_context_frames=window.num_context_frames,
        actions=torch.from_numpy(actions),
        action_mask=torch.from_numpy(known),
        action_times=torch.from_numpy(window.action_times(spec.action_rate)).float().expand(b, -1),
        state=torch.from_numpy(np.stack([m.state for m in moments]).astype(np.float32)),
        state_mask=torch.ones(b, spec.state_dim, dtype=torch.bool),
        prompts=tuple(m.prompt for m in moments),
        embodiments=(spec.name,) * b,
        datasets=(dataset,) * b,
        keys=tuple(m.key for m in moments),
        indices=torch.arange(b),
    )
