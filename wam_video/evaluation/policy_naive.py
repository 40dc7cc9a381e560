"""A causal network without its cache: what a decision costs where everything that is remembered is computed anew at each step.

It is what streaming is held against (`bench policy --way recompute=1`), and of use for nothing else: past frames are one chunk
here, so that a call has the same tokens and operations, but not the same bits.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.errors import ConfigError
from wam_video.flow.modes import ModeSpec, Role
from wam_video.inference.inputs import horizon
from wam_video.inference.pipeline import WAMPipeline
from wam_video.models import video_codec


def remembered(pipe: WAMPipeline) -> int:
    """Return the latent frames that a decision looks back on: those of a causal network's chunks in its cache when it is full.

    A network without chunks reads its context, anew each time.
    """
    rule = pipe.transformer.attention
    if not rule.causal:
        return video_codec.num_latents(pipe.vae, pipe.processor.window.num_context_frames)
    return (rule.window or chunks_of(pipe)) * rule.chunk_frames


def chunks_of(pipe: WAMPipeline) -> int:
    """Return the chunks of a training window after its context."""
    rule, window = pipe.transformer.attention, pipe.processor.window
    context, total = (video_codec.num_latents(pipe.vae, n) for n in (window.num_context_frames, window.num_frames))
    return max((total - context) // rule.chunk_frames, 1) if rule.causal else 1


class Naive:
    """Decides by calls of the network on all that is remembered.

    Args:
        pipe: Of a causal network.
        embodiment: The robots'.
        rows: How many.

    Raises:
        ConfigError: The network has no chunks.
    """

    def __init__(self, pipe: WAMPipeline, embodiment: str, rows: int) -> None:
        rule, window = pipe.transformer.attention, pipe.processor.window
        if not rule.causal:
            raise ConfigError(
                "recompute=1 is for causal networks; others compute everything anew as they are: leave it out"
            )
        self._pipe, self._rows, self._past = pipe, rows, remembered(pipe)
        self._per = horizon(window, embodiment) // chunks_of(pipe)
        self._body = pipe.processor.index(embodiment)
        self._views = min(len(pipe.processor.spec(embodiment).views), window.max_views)
        self._size = (window.height or 64, window.width or 64)

    @torch.no_grad()
    def decide(self, text: Float[Tensor, "b s dt"], spec: ModeSpec, calls: int, *, guided: bool) -> None:
        """Encode all that is remembered, and call the network as often as the path has steps."""
        pipe, rule = self._pipe, self._pipe.transformer.attention
        factor, device = video_codec.temporal_factor(pipe.vae), pipe._execution_device
        frames = 1 + (self._past - 1) * factor
        pixels = torch.zeros(self._rows, self._views, 3, frames, *self._size, device=device)
        clean = video_codec.encode(pipe.vae, pixels)
        ahead = 0 if spec.video is Role.ABSENT else rule.chunk_frames
        rows = self._rows * (2 if guided else 1)
        inputs = self._inputs(clean, text, rows, ahead)
        for _ in range(calls):
            pipe.transformer(**inputs)

    def _inputs(self, clean: Tensor, text: Tensor, rows: int, ahead: int) -> dict[str, Any]:
        pipe, device, past = self._pipe, clean.device, self._past
        dtype = pipe.transformer.patch_embedding.weight.dtype
        latents = torch.nn.functional.pad(clean, (0, 0, 0, 0, 0, ahead)).to(dtype)
        repeat = rows // clean.shape[0]
        noisy = torch.cat([torch.zeros(past), torch.ones(ahead)]).expand(rows, -1)
        return {
            "latents": latents.repeat(repeat, *[1] * (latents.ndim - 1)),
            "t_video": noisy.to(device),
            "latent_times": torch.arange(past + ahead, device=device).expand(rows, -1).float(),
            "text_embeds": text[:1].expand(rows, -1, -1).to(dtype),
            "embodiment": torch.full((rows,), self._body, device=device),
            "actions": torch.zeros(rows, self._per, max(pipe.processor.max_action_dim, 1), device=device),
            "t_action": torch.ones(rows, self._per, device=device),
            "action_times": torch.arange(self._per, device=device).expand(rows, -1).float(),
            "state": torch.zeros(rows, max(pipe.processor.max_state_dim, 1), device=device),
            "state_mask": torch.ones(rows, max(pipe.processor.max_state_dim, 1), dtype=torch.bool, device=device),
            "num_context": past,
        }
