"""What a pipeline call returns."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from jaxtyping import Float

from wam_video.data.processor import Origin, WAMProcessor
from wam_video.inference.inputs import Conditions, horizon


@dataclass
class WAMOutput(BaseOutput):
    """Actions and video that a mode generated; None where it gives none.

    Arrays with `output_type="np"`, tensors on the CPU with `"pt"`; with `"latent"` tensors on the pipeline's device, the
    video as normalised latents `b v c t h w` of the future and the actions normalised.
    """

    actions: Float[np.ndarray, "b ta da"] | Float[torch.Tensor, "b ta da"] | None = None
    """float32, in the robot's own units; zeros where one embodiment of the call is narrower or its chunk shorter than another."""
    video: Float[np.ndarray, "b v f 3 h w"] | Float[torch.Tensor, "b v f 3 h w"] | None = None
    """float32 in [0, 1]: the future frames only, at the model's size."""
    calls: int | None = None
    """Network evaluations along the path (`reuse_tolerance` saves some); what is observed or remembered is not counted."""


def physical_actions(
    processor: WAMProcessor, actions: Float[torch.Tensor, "b ta da"], conditions: Conditions
) -> Float[torch.Tensor, "b ta da"]:
    """Return actions in physical units, as wide and as long as the widest and longest embodiment's.

    Committed ones come back as they were given.
    """
    given, embodiments = conditions.action_given[..., None], conditions.embodiments
    origin = Origin(state=conditions.state, mask=conditions.state_mask, rows=conditions.action_exists.any(1))
    actions = processor.denormalize_actions(actions.float().cpu(), processor.indices(embodiments), origin)
    width = max(processor.action_dim(name) for name in embodiments)
    steps = max(horizon(processor.window, name) for name in embodiments)
    actions = torch.where(given, conditions.actions, actions) * conditions.action_exists[..., None]
    return actions[:, :steps, :width]


def fit(output: WAMOutput, steps: int, width: int) -> WAMOutput:
    """Return the output with its actions cut or padded with zeros to `steps` steps of `width` dimensions."""
    actions = output.actions
    if actions is None or actions.shape[1:] == (steps, width):
        return output
    as_array = isinstance(actions, np.ndarray)
    tensor = torch.from_numpy(actions) if as_array else actions
    more = (0, width - tensor.shape[2], 0, steps - tensor.shape[1])  # negative: cut
    fitted = torch.nn.functional.pad(tensor, more)
    return WAMOutput(actions=fitted.numpy() if as_array else fitted, video=output.video, calls=output.calls)
