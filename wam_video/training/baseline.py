"""What a run trains: our network, or the baseline over the very same samples.

Diffusion Policy needs nothing of the loop for itself. A sample with the future left out already holds what it takes: the
observed frames, the state, clean actions, seeded noise for them and a uniform number, which is its diffusion step. Its module
noises the actions by DDPM and puts out what the loss reads: the noise that it finds, less the clean actions, is a velocity
whose error is exactly the error of the noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wam_video.data.processor import WAMProcessor
from wam_video.data.schema import EmbodimentSpec
from wam_video.errors import ConfigError
from wam_video.models.diffusion_policy import (
    NUM_DIFFUSION_STEPS,
    DiffusionPolicyTransformer,
    ddpm_scheduler,
    repeat_missing,
)
from wam_video.models.image_context import ImageContext
from wam_video.models.masks import AttentionConfig
from wam_video.models.transformer import WAMTransformer
from wam_video.models.video_codec import decode
from wam_video.tensors import PredictionType
from wam_video.training.build import (
    Parts,
    TrainingModule,
    build_codec,
    build_on_meta,
    build_parts,
    build_text,
    image_context,
    text_channels,
)
from wam_video.training.config import TrainConfig
from wam_video.training.sample import TrainingSample
from wam_video.training.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """The parts of a run and how the loop is to treat them."""

    parts: Parts
    module: nn.Module
    """What is trained; from a sample to its video and actions."""
    teacher: Teacher | None
    image: ImageContext | None
    """What makes the first-frame condition, where a network may read one."""
    attention: AttentionConfig
    prediction_kinds: tuple[PredictionType, PredictionType]


def assemble(config: TrainConfig, embodiments: Mapping[str, EmbodimentSpec], processor: WAMProcessor) -> Assembly:
    """Build what `config.network` names.

    Raises:
        ConfigError: The parts do not fit each other, the windows or the data.
        CheckpointError: Weights to start from do not fit.
    """
    if config.network == "diffusion_policy":
        parts = build_policy(config, embodiments, processor)
        return Assembly(
            parts=parts,
            module=PolicyModule(parts),
            teacher=None,
            image=None,
            attention=AttentionConfig(),
            prediction_kinds=("velocity", "velocity"),
        )
    parts = build_parts(config, embodiments, processor)
    teacher, head = Teacher.build(config, parts)
    return Assembly(
        parts=parts,
        module=TrainingModule(parts, train_text=config.text.train, head=head),
        teacher=teacher,
        image=image_context(parts, config.image_encoder),
        attention=parts.wam.attention,
        prediction_kinds=parts.wam.prediction_kinds,
    )


def network_on_meta(
    config: TrainConfig, embodiments: Mapping[str, EmbodimentSpec]
) -> WAMTransformer | DiffusionPolicyTransformer:
    """Return the network of a run without memory for its weights.

    Raises:
        ConfigError: It does not fit the data.
    """
    if config.network != "diffusion_policy":
        return build_on_meta(config, embodiments)
    with torch.device("meta"):
        return DiffusionPolicyTransformer(**policy_arguments(config, embodiments, text_channels(config.text)))


def policy_arguments(config: TrainConfig, embodiments: Mapping[str, EmbodimentSpec], text_dim: int) -> dict[str, Any]:
    """Return every argument of the baseline's network: the configured ones and those that follow from the data.

    Raises:
        ConfigError: The data have several bodies, or none that acts.
    """
    window, bodies = config.data.window, list(embodiments.values())
    if len(bodies) != 1 or not bodies[0].action_dim or not window.action_horizon:
        names = ", ".join(f"{body.name!r} with {body.action_dim} actions" for body in bodies)
        raise ConfigError(
            f"the data hold {names}; network 'diffusion_policy' is for exactly one body that acts: give one dataset, or network=wam"
        )
    return {
        **config.model,
        "action_dim": bodies[0].action_dim,
        "state_dim": bodies[0].state_dim,
        "action_horizon": window.action_horizon,
        "num_observations": window.num_context_frames,
        "num_views": min(window.max_views, len(bodies[0].views)),
        "text_dim": text_dim,
    }


def build_policy(config: TrainConfig, embodiments: Mapping[str, EmbodimentSpec], processor: WAMProcessor) -> Parts:
    """Build the baseline's parts, the network with weights drawn from the seed.

    Raises:
        ConfigError: The data have several bodies, or none that acts.
        CheckpointError: The text encoder can't be loaded.
    """
    tokenizer, text_encoder = build_text(config.text, config.seed)
    arguments = policy_arguments(config, embodiments, text_encoder.config.d_model)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = DiffusionPolicyTransformer(**arguments)
    codec = build_codec(config.codec)
    return Parts(
        transformer=network,
        codec=codec.requires_grad_(False).eval(),
        tokenizer=tokenizer,
        text_encoder=text_encoder.requires_grad_(False),
        processor=processor,
    )


class PolicyModule(nn.Module):
    """Diffusion Policy's network over training samples without a future."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        if not isinstance(parts.transformer, DiffusionPolicyTransformer):
            raise TypeError(f"the network is a {type(parts.transformer).__name__}")
        self.transformer = parts.transformer
        self._scheduler = ddpm_scheduler()
        self._parts = parts

    def forward(self, sample: TrainingSample, *, taught: bool = False) -> tuple[None, Float[Tensor, "b ta da"]]:
        """Return no video and, for the actions, the noise that the network finds less the clean actions."""
        clean, noise = sample.noisy.clean.actions, sample.noisy.noise.actions
        latents, clock = sample.noisy.x_t.video, sample.noisy.clocks.video
        if clean is None or noise is None or latents is None or clock is None or sample.text_embeds is None or taught:
            raise ValueError("a policy's sample has context frames, actions and an encoded prompt, and no teacher")
        past = slice(0, sample.num_context)
        pixels = repeat_missing(decode(self._parts.codec, latents[:, :, :, past]), clock[:, past] < 1)
        step = (sample.t_action * NUM_DIFFUSION_STEPS).long().clamp(max=NUM_DIFFUSION_STEPS - 1)
        noisy = self._scheduler.add_noise(clean, noise, step)  # type: ignore[arg-type] - diffusers asks for an IntTensor
        observed = self.transformer.observe(pixels, sample.state, sample.text_embeds)
        return None, self.transformer(noisy, step, observed) - clean
