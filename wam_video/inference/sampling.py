"""One sampling run: conditions and noise in, the state at the end of a mode's path out. Knows no mode by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from wam_video.data.processor import Origin, WAMProcessor
from wam_video.errors import ConfigError
from wam_video.flow.continuation import Continuation
from wam_video.flow.modes import ModeSpec, PathConfig, Role
from wam_video.flow.path import expand_clock, to_velocity
from wam_video.flow.reuse import Meter, ReuseConfig, ReusedField
from wam_video.flow.solvers import ACTION_AXIS, LATENT_FRAME_AXIS, ClockPattern, Clocks, Field, State, guided, sample
from wam_video.inference.checks import check_answer
from wam_video.inference.inputs import Conditions
from wam_video.inference.noise import draw_noise
from wam_video.models import video_codec
from wam_video.models.chunks import chunk_ids
from wam_video.models.image_context import ImageContext
from wam_video.models.transformer import WAMTransformer
from wam_video.models.video_codec import Codec


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How one run walks its path."""

    path: PathConfig
    solver: str
    guidance: tuple[float, float] = (1.0, 1.0)
    """Scales for video and for actions; 1 is none."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Clocks at which guidance is computed."""
    reuse: ReuseConfig = field(default_factory=ReuseConfig)
    meter: Meter = field(default_factory=Meter)
    """Counts the evaluations of the run."""

    @property
    def guided(self) -> bool:
        """Whether the unconditional pass is needed."""
        return any(scale != 1 for scale in self.guidance)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run before its first step, on the device of the network."""

    start: State
    pattern: ClockPattern
    encoded: Float[Tensor, "b v c t h w"]
    """Latents of the frames that were given."""
    num_context: int
    """Latent frames that are context."""
    inputs: dict[str, Any]
    """What the network is told at every step besides the state, its clocks and the text."""
    num_chunks: int = 1
    """Chunks after the context, for a causal network."""
    continuation: Continuation | None = None
    """What the actions are drawn to."""


def prepare(
    codec: Codec,
    processor: WAMProcessor,
    conditions: Conditions,
    spec: ModeSpec,
    generators: Sequence[torch.Generator],
    transformer: WAMTransformer,
    device: torch.device,
    image: ImageContext,
) -> Prepared:
    """Encode what is given, draw noise for the rest and say which token follows the path.

    What the network is told of the first frame (`image`) is made here, once for the whole run.

    Raises:
        ConfigError: The window can't be cut into the network's chunks, or the network can't answer that.
    """
    check_answer(transformer.attention, spec)
    pixels = conditions.video.to(device)
    encoded = video_codec.encode(codec, pixels)
    num_context = video_codec.num_latents(codec, conditions.num_context_frames)
    all_times = video_codec.latent_times(codec, conditions.frame_times)
    video_codec.num_latents(codec, conditions.frame_times.shape[1])
    rule, total = transformer.attention, all_times.shape[1]
    ids = chunk_ids(rule, frames=total, num_context=num_context, actions=conditions.actions.shape[1])
    frames = total if spec.video is not Role.ABSENT else num_context + (ids.count - 1) * rule.chunk_frames
    shape = (*encoded.shape[1:3], frames, *encoded.shape[4:])
    noise_video, noise_actions = draw_noise(generators, shape, tuple(conditions.actions.shape[1:]))
    bodies = processor.indices(conditions.embodiments)
    known = video_codec.latent_mask(codec, conditions.frame_mask).any(1)
    known = torch.nn.functional.pad(known, (0, frames - known.shape[1]))
    free = (torch.arange(frames) >= num_context) & (known if spec.video is Role.GIVEN else ~known)
    origin = Origin(state=conditions.state, mask=conditions.state_mask, rows=conditions.action_given.any(1))
    actions = processor.normalize_actions(conditions.actions, bodies, origin)
    commitment = conditions.commitment
    held = conditions.action_given if commitment is None else commitment.held
    pattern = ClockPattern(
        video_free=free.to(device),
        video_held=(~known).float().to(device),
        actions_free=(~held & conditions.action_exists & (spec.actions is not Role.GIVEN)).to(device),
        actions_held=(~held).float().to(device),
    )
    video = torch.nn.functional.pad(encoded, (0, 0, 0, 0, 0, frames - encoded.shape[3]))
    start = State(
        video=torch.where(expand_clock(known.to(device), video, LATENT_FRAME_AXIS), video, noise_video.to(video)),
        actions=torch.where(held[..., None], actions, noise_actions).to(device),
    )
    view_mask, past = conditions.frame_mask.any(2), slice(0, conditions.num_context_frames)
    inputs = {
        "latent_times": all_times[:, :frames],
        "action_times": conditions.action_times,
        "embodiment": bodies,
        "state": processor.normalize_state(conditions.state, bodies),
        "state_mask": conditions.state_mask,
        "view_mask": None if bool(view_mask.all()) else view_mask,
        **image(pixels[:, :, :, past], conditions.frame_mask[:, :, past], conditions.frame_times.shape[1]),
    }
    inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return Prepared(
        start=start,
        pattern=pattern,
        encoded=encoded,
        num_context=num_context,
        inputs=inputs,
        num_chunks=ids.count,
        continuation=commitment and commitment.bend(processor, conditions.embodiments, noise_actions, device),
    )


class VelocityField:
    """The network as the velocity field that the solver walks, with guidance where it is asked for."""

    def __init__(
        self,
        transformer: WAMTransformer,
        inputs: dict[str, Any],
        text: Float[Tensor, "b s dt"] | None,
        config: SamplingConfig,
        *,
        guided: bool,
    ) -> None:
        """Make the field.

        Args:
            transformer: The network.
            inputs: What it is told at every step besides the state, its clocks and the text.
            text: Encoded prompts, with guidance those of the unconditional samples after the others; None if a cache among
                the inputs has them, of as many rows.
            config: Scales of guidance, and where they hold.
            guided: Whether the unconditional pass is needed.
        """
        self.transformer = transformer
        self.config = config
        self.guided = guided
        # The patch embedding is left alone by quantisation and layerwise casting: its type is that of the activations.
        self.dtype = transformer.patch_embedding.weight.dtype
        if (picture := inputs.get("image_embeds")) is not None:  # guidance is by prompt: both passes see it
            inputs = inputs | {"image_embeds": picture.to(self.dtype)}
        text = None if text is None else text.to(self.dtype)
        self.told = self.both = inputs | {"text_embeds": text}
        if guided:
            self.both = {k: twice(v) if isinstance(v, Tensor) else v for k, v in inputs.items()} | {"text_embeds": text}
        if guided and config.interval != (0.0, 1.0):  # there are steps without the unconditional samples
            rows, cache = len(inputs["embodiment"]), inputs.get("cache")
            self.told = inputs | {
                "text_embeds": None if text is None else text[:rows],
                **({} if cache is None else {"cache": cache.part(range(rows))}),
            }

    def __call__(self, state: State, clocks: Clocks) -> State:
        """Return the velocity of `state` at `clocks`."""
        scales = self._scales(clocks.point)
        if not self.guided or scales == (1.0, 1.0):
            return self._velocity(state, clocks, self.told)
        both = self._velocity(
            _double(state), replace(clocks, video=_cat(clocks.video), actions=_cat(clocks.actions)), self.both
        )
        conditional, unconditional = (
            State(video=_half(both.video, part), actions=_half(both.actions, part)) for part in (0, 1)
        )
        return guided(conditional, unconditional, *scales)

    def _scales(self, point: tuple[float, float] | None) -> tuple[float, float]:
        """Return the scales at a point of the path: 1 for a modality whose clock lies outside the interval."""
        (low, high), (video, actions) = self.config.interval, self.config.guidance
        if point is None:
            return video, actions
        return video if low <= point[0] <= high else 1.0, actions if low <= point[1] <= high else 1.0

    def _velocity(self, state: State, clocks: Clocks, told: dict[str, Any]) -> State:
        if state.video is None or clocks.video is None:
            raise ConfigError("a sampling run needs video latents; give at least one context frame")
        prediction = self.transformer(
            latents=state.video.to(self.dtype).contiguous(),  # as in later steps: one graph for a compiled network
            t_video=clocks.video,
            actions=state.actions,
            t_action=clocks.actions,
            **told,
        )
        video_kind, action_kind = self.transformer.prediction_kinds
        video = actions = None
        if prediction.video is not None:
            clock = expand_clock(clocks.video, state.video, LATENT_FRAME_AXIS)
            video = to_velocity(prediction.video.float(), state.video, clock, video_kind)
        if prediction.actions is not None and state.actions is not None and clocks.actions is not None:
            clock = expand_clock(clocks.actions, state.actions, ACTION_AXIS)
            actions = to_velocity(prediction.actions.float(), state.actions, clock, action_kind)
        return State(video=video, actions=actions)


def walk(
    field: Field,
    prepared: tuple[State, ClockPattern, Continuation | None],
    spec: ModeSpec,
    grid: Float[Tensor, "steps 2"],
    config: SamplingConfig,
    on_step: Callable[[int, State], None] | None = None,
) -> State:
    """Walk a path and return the state at its end.

    Args:
        field: The network's.
        prepared: Where it starts, who follows the path, and what the actions are drawn to.
        spec: The mode's row: what is generated decides which velocities must not change to be used again.
        grid: The path.
        config: How to walk.
        on_step: Called after each step.
    """
    start, pattern, continuation = prepared
    bent = field if continuation is None else continuation.field(field)
    reused = ReusedField(
        bent,
        config.reuse,
        video=spec.gives_video,
        actions=spec.gives_actions,
        meter=config.meter,
    )
    return sample(reused, start, pattern, grid, solver=config.solver, on_step=on_step)


def decode_future(codec: Codec, prepared: Prepared, end: State, conditions: Conditions) -> Float[Tensor, "b v f 3 h w"]:
    """Decode the generated frames to [0, 1].

    Views that a sample does not have are black. A causal codec also needs the context's latents; where those are unknown it gets what the empty frames encode to.
    """
    latents = end.video
    if latents is None:
        raise ConfigError("there is no video to decode; use a mode that generates it")
    if isinstance(codec, video_codec.PixelCodec):
        video = video_codec.decode(codec, latents[:, :, :, prepared.num_context :])
    else:
        context = prepared.encoded[:, :, :, : prepared.num_context]
        whole = torch.cat([context, latents[:, :, :, prepared.num_context :]], dim=LATENT_FRAME_AXIS)
        video = video_codec.decode(codec, whole)[:, :, :, conditions.num_context_frames :]
    has_view = conditions.frame_mask.any(2).to(video.device)[:, :, None, None, None, None]
    return (((video.float() + 1) / 2) * has_view).transpose(2, 3)


def twice(x: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "b2 ..."]:
    """Return a batch and itself once more: conditional and unconditional samples."""
    return torch.cat([x, x])


def _cat(x: Tensor | None) -> Tensor | None:
    return None if x is None else twice(x)


def _half(x: Tensor | None, part: int) -> Tensor | None:
    return None if x is None else x.chunk(2)[part]


def _double(state: State) -> State:
    return State(video=_cat(state.video), actions=_cat(state.actions))
