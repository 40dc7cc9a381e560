"""Windows of one geometry to the tensors of a batch, with actions and state padded to the widest body of the run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from wam_video.data.schema import EmbodimentSpec
from wam_video.data.windows import Window, WindowConfig


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Dimensions that all batches of a run have."""

    actions: int
    state: int


def collate(
    windows: Sequence[Window],
    configs: Sequence[WindowConfig],
    specs: Sequence[EmbodimentSpec],
    widths: Widths,
    pixels: UInt8[np.ndarray, "b v f h w c"] | None = None,
) -> dict[str, Any]:
    """Return the fields of a `Batch` that hold recorded numbers.

    Args:
        windows: Of one geometry.
        configs: What each of them was cut by; they agree in all but rates and strides.
        specs: Whose they are.
        widths: Of actions and state.
        pixels: Of all windows, where their videos are views into it already.
    """
    actions, action_mask = _pad_actions(windows, configs[0].action_horizon, widths.actions)
    state, state_mask = _pad_state(windows, widths.state)
    later = _pad_later_states(windows, configs[0].num_states - 1, widths.state)
    starts = [config.action_times(spec.action_rate) for config, spec in zip(configs, specs, strict=True)]
    video = torch.from_numpy(np.stack([w.video for w in windows]) if pixels is None else pixels)
    return {
        "video": rearrange(video, "b v f h w c -> b v c f h w"),
        "frame_mask": torch.from_numpy(np.stack([w.frame_mask for w in windows])),
        "frame_times": torch.from_numpy(np.stack([config.frame_times() for config in configs]).astype(np.float32)),
        "num_context_frames": configs[0].num_context_frames,
        "actions": torch.from_numpy(actions),
        "action_mask": torch.from_numpy(action_mask),
        "action_times": torch.from_numpy(np.stack(starts).astype(np.float32)),
        "state": torch.from_numpy(state),
        "state_mask": torch.from_numpy(state_mask),
        "later_state": later and later[0],
        "later_state_mask": later and later[1],
    }


def _pad_actions(windows: Sequence[Window], horizon: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    actions = np.zeros((len(windows), horizon, width), np.float32)
    mask = np.zeros(actions.shape, np.bool_)
    for row, window in enumerate(windows):
        dims = window.actions.shape[1]
        actions[row, :, :dims], mask[row, :, :dims] = window.actions, window.action_mask
    return actions, mask


def _pad_state(windows: Sequence[Window], width: int) -> tuple[np.ndarray, np.ndarray]:
    state = np.zeros((len(windows), width), np.float32)
    mask = np.zeros(state.shape, np.bool_)
    for row, window in enumerate(windows):
        if window.state is not None:
            state[row, : len(window.state)], mask[row, : len(window.state)] = window.state, True
    return state, mask


def _pad_later_states(windows: Sequence[Window], count: int, width: int) -> tuple[Tensor, Tensor] | None:
    if count == 0:
        return None
    state = np.zeros((len(windows), count, width), np.float32)
    mask = np.zeros(state.shape, np.bool_)
    for row, window in enumerate(windows):
        if window.later_states is not None:
            found, dims = window.later_states.shape
            state[row, :found, :dims], mask[row, :found, :dims] = window.later_states, True
    return torch.from_numpy(state), torch.from_numpy(mask)
