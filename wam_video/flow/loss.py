"""Noising a training sample, and the masked losses of its two modalities.

Losses come as sums and counts: the mean is taken over the real elements of the whole global batch, so that neither padding
nor the number of ranks or micro-batches changes it.
"""

from dataclasses import dataclass
from math import exp

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from wam_video.errors import ConfigError, one_of
from wam_video.flow.path import expand_clock, interpolate, to_velocity, velocity
from wam_video.flow.solvers import ACTION_AXIS, LATENT_FRAME_AXIS, Clocks, State
from wam_video.tensors import Prediction, PredictionType

_BELL_MEAN = 0.1895
"""Of the bell over uniform clocks moved by a shift of 5, Wan's table of 1000."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How the errors of the two modalities are weighed."""

    video_weight: float = 1.0
    action_weight: float = 1.0
    weighting: str = "uniform"
    """Of clocks: `uniform`, or `bell`: a Gaussian bell around t = 1/2, 0 at t = 1 (Wan's, as DreamZero and FastWAM train)."""
    space: str = "prediction"
    """`prediction`: the squared error of what the network puts out, uniform in t; `velocity`: of the velocity that
    follows from it, which for a sample prediction weighs each clock by 1 / t^2."""
    motion_weight: float = 0.0
    """Extra weight of video elements that change against the last context frame (0: all alike). Most pixels of a robot's
    video stand still and drown the few that answer to actions."""
    motion_threshold: float = 0.1
    """Change of a latent, in units of the codec's normalised latents, from which it counts as moving."""
    balance_windows: bool = False
    """Scale the weights of each window's video to a mean of 1, so that a scene in which little moves carries as much of the
    loss as one in which much does: for a mixture of bodies of different size."""

    def __post_init__(self) -> None:
        if self.space not in ("prediction", "velocity"):
            raise ConfigError(one_of("loss.space", self.space, ("prediction", "velocity")))
        if self.weighting not in ("uniform", "bell"):
            raise ConfigError(one_of("loss.weighting", self.weighting, ("uniform", "bell")))
        for name in ("video_weight", "action_weight", "motion_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"loss.{name} is {getattr(self, name)}; allowed: 0 or more")


@dataclass(frozen=True, kw_only=True)
class NoisySample:
    """What the network sees in training, and what it is scored on."""

    x_t: State
    clean: State
    noise: State
    clocks: Clocks
    video_mask: Bool[Tensor, "b v t"] | None
    """Latent frames that carry a loss: real, in the future and not at clock 0."""
    action_mask: Bool[Tensor, "b ta da"] | None


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """Sums of weighted squared errors and the weights that they are to be divided by, one a sample."""

    video_sum: Float[Tensor, " b"]
    video_count: Float[Tensor, " b"]
    action_sum: Float[Tensor, " b"]
    action_count: Float[Tensor, " b"]


def add_noise(
    clean: State,
    noise: State,
    t_video: Float[Tensor, "b ..."],
    t_action: Float[Tensor, "b ..."],
    frame_mask: Bool[Tensor, "b v t"],
    num_context: int,
    action_mask: Bool[Tensor, "b ta da"] | None,
) -> NoisySample:
    """Put a sample at `(t_video, t_action)`: context frames stay at 0, what was not recorded is unknown at 1.

    Args:
        clean: Latents and normalised actions; the video or the actions may be None (absent).
        noise: Standard noise of the same shapes.
        t_video: Clock in [0, 1] of the future frames; or of each frame, that of the context too.
        t_action: Clock in [0, 1] of the actions, or of each one.
        frame_mask: Latent frames that were recorded, by view.
        num_context: The first so many latent frames are given.
        action_mask: Real action elements; False in steps and dimensions that are padding.
    """
    video, x_video, video_clock, video_mask = clean.video, None, None, None
    if video is not None and noise.video is not None:
        recorded = frame_mask.any(dim=1)  # b t: a frame's clock is common to its views
        future = torch.arange(video.shape[LATENT_FRAME_AXIS], device=video.device) >= num_context
        video_clock = t_video if t_video.ndim == 2 else t_video[:, None] * future
        video_clock = torch.where(recorded, video_clock, torch.ones_like(video_clock))
        x_video = interpolate(video, noise.video, expand_clock(video_clock, video, LATENT_FRAME_AXIS))
        video_mask = frame_mask & future & (video_clock > 0)[:, None]
    x_actions, action_clock, scored = None, None, None
    if clean.actions is not None and noise.actions is not None and action_mask is not None:
        known = action_mask.any(dim=-1)
        action_clock = t_action if t_action.ndim == 2 else t_action[:, None].expand_as(known)
        action_clock = torch.where(known, action_clock, torch.ones_like(action_clock))
        x_actions = interpolate(clean.actions, noise.actions, expand_clock(action_clock, clean.actions, ACTION_AXIS))
        scored = action_mask & (action_clock > 0)[..., None]
    return NoisySample(
        x_t=State(video=x_video, actions=x_actions),
        clean=clean,
        noise=noise,
        clocks=Clocks(video=video_clock, actions=action_clock),
        video_mask=video_mask,
        action_mask=scored,
    )


def loss_terms(
    config: LossConfig,
    prediction: Prediction,
    sample: NoisySample,
    kinds: tuple[PredictionType, PredictionType],
    num_context: int,
) -> LossTerms:
    """Return the masked squared errors of both modalities as sums and counts for each sample.

    Args:
        config: The weights.
        prediction: The network's output for `sample`.
        sample: The noisy sample.
        kinds: What the network puts out for video and for actions.
        num_context: Number of context latent frames; the last one is what motion is measured against.
    """
    zero = torch.zeros(_batch_size(sample), device=_any_clock(sample).device)
    video_sum = video_count = action_sum = action_count = zero
    if prediction.video is not None and sample.video_mask is not None and sample.clean.video is not None:
        error = _squared_error(config, prediction.video, sample, "video", kinds[0])
        weight = video_weights(config, sample, num_context)
        video_sum, video_count = (error * weight).flatten(1).sum(1), weight.flatten(1).sum(1)
    if prediction.actions is not None and sample.action_mask is not None:
        error = _squared_error(config, prediction.actions, sample, "actions", kinds[1])
        weight = sample.action_mask.to(error)
        action_sum, action_count = (error * weight).flatten(1).sum(1), weight.flatten(1).sum(1)
    return LossTerms(video_sum=video_sum, video_count=video_count, action_sum=action_sum, action_count=action_count)


def video_weights(config: LossConfig, sample: NoisySample, num_context: int) -> Float[Tensor, "b v c t h w"]:
    """Return the weight of each video element: 0 where it carries no loss, else 1, or 1 + `motion_weight` if it moves.

    With `balance_windows` the weights of each sample that carries a loss are scaled to a mean of 1 over its scored elements.

    Raises:
        ValueError: The sample has no video.
    """
    video, mask = sample.clean.video, sample.video_mask
    if video is None or mask is None:
        raise ValueError("a sample without video has no video weights")
    weight = rearrange(mask, "b v t -> b v 1 t 1 1").to(video.dtype).expand_as(video)
    if config.motion_weight == 0 or num_context == 0:
        return weight
    change = (video - video[:, :, :, num_context - 1 : num_context]).abs()
    moving = weight * (1.0 + config.motion_weight * (change > config.motion_threshold))
    if not config.balance_windows:
        return moving
    scale = weight.flatten(1).sum(1) / moving.flatten(1).sum(1).clamp(min=1.0)
    return moving * rearrange(scale, "b -> b 1 1 1 1 1")


def _squared_error(config: LossConfig, output: Tensor, sample: NoisySample, part: str, kind: PredictionType) -> Tensor:
    clean, noise = getattr(sample.clean, part), getattr(sample.noise, part)
    if config.space == "velocity":
        axis = LATENT_FRAME_AXIS if part == "video" else ACTION_AXIS
        x_t = getattr(sample.x_t, part)
        output = to_velocity(output, x_t, expand_clock(getattr(sample.clocks, part), x_t, axis), kind)
        kind = "velocity"
    target = clean if kind == "sample" else velocity(clean, noise)
    error = (output.float() - target.float()).square()
    if config.weighting == "bell":
        axis = LATENT_FRAME_AXIS if part == "video" else ACTION_AXIS
        error = error * expand_clock(bell(getattr(sample.clocks, part)), error, axis)
    return error


def bell(t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the weight of clocks: `exp(-2 (t - 1/2)^2)` less its value at t = 1, its mean 1 over clocks of shift 5.

    It weighs errors and not their count: mass near t = 1, where it is 0, makes a modality's loss small.
    """
    return (torch.exp(-2 * (t.float() - 0.5) ** 2) - exp(-0.5)) / _BELL_MEAN


def _any_clock(sample: NoisySample) -> Tensor:
    clock = sample.clocks.video if sample.clocks.video is not None else sample.clocks.actions
    if clock is None:
        raise ValueError("a sample needs video or actions")
    return clock


def _batch_size(sample: NoisySample) -> int:
    return _any_clock(sample).shape[0]
