"""From a batch of recordings to a sample on the noise square: a pure function of (seed, sample index).

A window's noise, clocks and prompt dropout come from a generator of its own, seeded by its global index, so that a step
is the same however the batch is cut into ranks and micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wam_video.data.processor import Origin
from wam_video.errors import DataError
from wam_video.flow.density import NUM_UNIFORMS, DensityConfig
from wam_video.flow.loss import LossConfig, NoisySample, add_noise, video_weights
from wam_video.flow.solvers import ACTION_AXIS, LATENT_FRAME_AXIS, State
from wam_video.models.chunks import ChunkIds, History, chunk_ids
from wam_video.models.fingerprint import codec_hash
from wam_video.models.image_context import ImageContext
from wam_video.models.masks import AttentionConfig
from wam_video.models.text import encode_text
from wam_video.models.video_codec import Codec, encode, latent_mask, latent_times, num_latents
from wam_video.tensors import Batch, to_unit_range
from wam_video.training.chunks import chunk_clocks, make_history, num_uniforms
from wam_video.training.texts import StoredTexts

_ODD = 0x9E3779B1
"""Odd, so that index -> seed is one to one on 32 bits (all that the CPU generator takes)."""


class Normalizes(Protocol):
    """What a sample needs of `data.processor.WAMProcessor`."""

    def indices(self, names: Sequence[str]) -> Int[Tensor, " b"]:
        """Return the ids of embodiments."""
        ...

    def normalize_actions(
        self, x: Float[Tensor, "b ta da"], embodiment_ids: Int[Tensor, " b"], origin: Origin | None = None
    ) -> Float[Tensor, "b ta da"]:
        """Return actions in the model's units."""
        ...

    def normalize_state(self, x: Float[Tensor, "b ds"], embodiment_ids: Int[Tensor, " b"]) -> Float[Tensor, "b ds"]:
        """Return the state in the model's units."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingSample:
    """A noisy sample with everything that the network is told about it."""

    noisy: NoisySample
    t_video: Float[Tensor, " b"]
    """Clock of the future frames, the mean over chunks; 1 throughout where they are absent."""
    t_action: Float[Tensor, " b"]
    latent_times: Float[Tensor, "b t"]
    action_times: Float[Tensor, "b ta"]
    state: Float[Tensor, "b *s ds"]
    """At time 0, or at the start of each chunk."""
    state_mask: Bool[Tensor, "b *s ds"]
    embodiment: Int[Tensor, " b"]
    view_mask: Bool[Tensor, "b v"] | None
    num_context: int
    history: History | None
    """Clean copies of what later chunks read, for a causal network."""
    prompts: tuple[str, ...]
    text_embeds: Float[Tensor, "b s dt"] | None
    """None where the text encoder is trained: the training module encodes the prompts itself."""
    condition: Float[Tensor, "b v cc t h w"] | None = None
    """Of all frames of the window, also where the future ones are absent; None where the network reads none."""
    image_embeds: Float[Tensor, "b i di"] | None = None
    video_count: Float[Tensor, " b"]
    """Weight that each window's video errors are divided by (`flow.loss.LossTerms`), known before the forward pass."""
    action_count: Float[Tensor, " b"]
    keys: tuple[str, ...]
    indices: tuple[int, ...]
    datasets: tuple[str, ...]

    def to(self, device: torch.device) -> "TrainingSample":
        """Return the sample with its tensors on `device`."""
        return _move(self, device)


class TextCache:
    """Embeddings of a frozen text encoder by prompt; those that were stored before training need no encoder."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        encoder: PreTrainedModel,
        *,
        size: int = 4096,
        stored: StoredTexts | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._stored = stored
        self._encoder = encoder
        self._size = size
        self._rows: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Float[Tensor, "b s dt"]:
        """Return the embeddings of `prompts`, each encoded by itself, so that they do not depend on their neighbours."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._rows:
                if len(self._rows) >= self._size:
                    self._rows.pop(next(iter(self._rows)))
                self._rows[prompt] = self._embed(prompt)
            else:
                self._rows[prompt] = self._rows.pop(prompt)  # most recently used last
        return torch.stack([self._rows[prompt] for prompt in prompts])

    def _embed(self, prompt: str) -> Float[Tensor, "s dt"]:
        stored = None if self._stored is None else self._stored.get(prompt)
        if stored is not None:
            return stored.to(self._encoder.device, self._encoder.dtype)
        return encode_text(self._tokenizer, self._encoder, [prompt])[0]


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How recordings become training samples."""

    seed: int = 0
    density: DensityConfig
    loss: LossConfig
    prompt_dropout: float = 0.0
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Of the network: how windows are cut into chunks."""


class Sampler:
    """Make training samples; holds the frozen parts that this takes and no state of its own."""

    def __init__(
        self,
        config: SamplerConfig,
        codec: Codec,
        processor: Normalizes,
        text: TextCache | None,
        image: ImageContext | None = None,
    ) -> None:
        self._config = config
        self._codec = codec
        self._processor = processor
        self._text = text
        self._image = image

    @torch.no_grad()
    def __call__(
        self,
        batch: Batch,
        device: torch.device,
        *,
        absent_video: bool = False,
        clocks: tuple[Float[Tensor, " b"], Float[Tensor, " b"]] | None = None,
    ) -> TrainingSample:
        """Normalise, encode and noise a batch.

        Args:
            batch: Windows as the loader yields them.
            device: Where the sample is wanted; noise is drawn on the CPU, where it is the same everywhere.
            absent_video: Leave the future frames out.
            clocks: (t_video, t_action) instead of a draw from the density, for validation.
        """
        has_actions = batch.action_mask.flatten(1).any(dim=1)
        clean, facts = self._clean(batch, device)
        num_context = num_latents(self._codec, batch.num_context_frames)
        chunks = self._chunks(clean, num_context)
        uniforms, noise = self._draw(batch, clean, facts["frame_mask"], num_context, chunks.count)
        drawn = chunk_clocks(self._config.density, uniforms, has_actions, chunks.count)
        if clocks is not None:
            drawn = drawn.at(*clocks)
        noise = _move(noise, device)
        history = make_history(self._config.attention, clean, noise, drawn, chunks, facts, batch.action_mask)
        if absent_video:
            drawn = replace(drawn, video=torch.ones_like(drawn.video))
            clean, noise = _without_future(clean, num_context), _without_future(noise, num_context)
            facts["frame_mask"] = facts["frame_mask"][:, :, :num_context]
            facts["latent_times"] = facts["latent_times"][:, :num_context]
        noisy = add_noise(
            clean=clean,
            noise=noise,
            t_video=drawn.of_frames(chunks, facts["latent_times"].shape[1]).to(device),
            t_action=drawn.of_actions(batch.action_mask.shape[1]).to(device),
            frame_mask=facts.pop("frame_mask").to(device),
            num_context=num_context,
            action_mask=batch.action_mask.to(device),
        )
        prompts = self._drop_prompts(batch.prompts, uniforms[:, NUM_UNIFORMS])
        video_count, action_count = target_counts(self._config.loss, noisy, num_context)
        return TrainingSample(
            noisy=noisy,
            t_video=drawn.video.mean(dim=1).to(device),
            t_action=drawn.actions.mean(dim=1).to(device),
            num_context=num_context,
            history=None if history is None else _move(history, device),
            prompts=prompts,
            text_embeds=None if self._text is None else self._text(prompts).to(device),
            video_count=video_count,
            action_count=action_count,
            keys=batch.keys,
            indices=tuple(batch.indices.tolist()),
            datasets=batch.datasets,
            **{name: _move(value, device) for name, value in facts.items()},
        )

    def _clean(self, batch: Batch, device: torch.device) -> tuple[State, dict[str, Any]]:
        embodiment = self._processor.indices(batch.embodiments)
        origin = Origin(state=batch.state, mask=batch.state_mask, rows=batch.action_mask.flatten(1).any(1))
        actions = self._processor.normalize_actions(batch.actions, embodiment, origin)
        actions = torch.where(batch.action_mask, actions, torch.zeros_like(actions))
        state, state_mask = self._states(batch, embodiment)
        view_mask = batch.frame_mask.any(dim=-1)
        facts = {
            "frame_mask": latent_mask(self._codec, batch.frame_mask),
            "latent_times": latent_times(self._codec, batch.frame_times),
            "action_times": batch.action_times,
            "state": torch.where(state_mask, state, torch.zeros_like(state)),
            "state_mask": state_mask,
            "embodiment": embodiment,
            "view_mask": None if bool(view_mask.all()) else view_mask,
            **self._first_frame(batch, device),
        }
        return State(video=self._latents(batch, device), actions=actions.to(device)), facts

    def _latents(self, batch: Batch, device: torch.device) -> Float[Tensor, "b v c t h w"]:
        """Encode the pixels, or take latents that this very codec made before.

        Raises:
            DataError: Another codec made them.
        """
        if batch.latents is None:
            return encode(self._codec, to_unit_range(batch.video.to(device)))
        if batch.latents_codec != (own := codec_hash(self._codec)):
            raise DataError(
                f"dataset {batch.datasets[0]!r} holds latents of codec {batch.latents_codec[:12]}, the run's codec is {own[:12]}; "
                "set codec.* as they were made, or encode the dataset again (wam-video data encode)"
            )
        return batch.latents.to(device, torch.float32)

    def _first_frame(self, batch: Batch, device: torch.device) -> dict[str, Tensor | None]:
        """Return what the network is told of the first frame, made anew for each window from its context alone."""
        if self._image is None or not self._image.reads:
            return {}
        if batch.latents is not None:
            raise DataError(
                f"dataset {batch.datasets[0]!r} holds latents and no pixels, which an image-to-video network's condition needs; "
                "train from the shards that it was made from, or from a text-to-video network"
            )
        past = slice(0, batch.num_context_frames)
        pixels = to_unit_range(batch.video[:, :, :, past].to(device))
        return self._image(pixels, batch.frame_mask[:, :, past], batch.video.shape[3])

    def _states(self, batch: Batch, embodiment: Int[Tensor, " b"]) -> tuple[Tensor, Tensor]:
        """Return the state at time 0; for a causal network also those of later chunks, if the windows have them."""
        state = self._processor.normalize_state(batch.state, embodiment)
        if batch.later_state is None or batch.later_state_mask is None or not self._config.attention.causal:
            return state, batch.state_mask
        later = [self._processor.normalize_state(row, embodiment) for row in batch.later_state.unbind(1)]
        mask = torch.cat([batch.state_mask[:, None], batch.later_state_mask], dim=1)
        return torch.stack([state, *later], dim=1), mask

    def _chunks(self, clean: State, num_context: int) -> ChunkIds:
        frames = 0 if clean.video is None else clean.video.shape[LATENT_FRAME_AXIS]
        actions = 0 if clean.actions is None else clean.actions.shape[ACTION_AXIS]
        return chunk_ids(self._config.attention, frames=frames, num_context=num_context, actions=actions)

    def _draw(
        self, batch: Batch, clean: State, frame_mask: Bool[Tensor, "b v t"], num_context: int, chunks: int
    ) -> tuple[Float[Tensor, "b u"], State]:
        """Draw each window's uniform numbers and noise; context frames need noise only where they are missing or noisy."""
        missing = ~frame_mask[:, :, :num_context].any(dim=1).all(dim=1)
        missing = missing | (self._config.density.noisy_history > 0)
        uniforms = torch.empty(len(batch), num_uniforms(self._config.attention, chunks, self._config.density))
        if clean.actions is None or clean.video is None:
            raise ValueError("noise is drawn for both modalities, before either is left out")
        actions = torch.empty(clean.actions.shape)
        video = torch.zeros(clean.video.shape)
        future = video.new_empty(len(batch), video[0, :, :, num_context:].numel())
        shape = video[0, :, :, num_context:].shape
        generator = torch.Generator()
        for row, index in enumerate(batch.indices.tolist()):
            generator.manual_seed(window_seed(self._config.seed, index))
            torch.rand(uniforms.shape[1], generator=generator, out=uniforms[row])
            torch.randn(actions[row].shape, generator=generator, out=actions[row])
            torch.randn(future.shape[1], generator=generator, out=future[row])
            video[row, :, :, num_context:] = future[row].reshape(shape)
            if missing[row]:
                context = video[row, :, :, :num_context]
                context.copy_(torch.randn(context.shape, generator=generator))
        return uniforms, State(video=video, actions=actions)

    def _drop_prompts(self, prompts: Sequence[str], uniforms: Float[Tensor, " b"]) -> tuple[str, ...]:
        dropped = (uniforms < self._config.prompt_dropout).tolist()
        return tuple("" if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True))


def window_seed(seed: int, index: int) -> int:
    """Return the generator seed of a window: one to one in its global index for a given run seed."""
    return (seed * 0x85EBCA6B + index * _ODD + 0x27220A95) & 0xFFFFFFFF


def is_video_absent(config: DensityConfig, seed: int, step: int) -> bool:
    """Say whether a step leaves the future video out; the same on every rank."""
    generator = torch.Generator().manual_seed(window_seed(seed + 1, step))
    return bool(torch.rand((), generator=generator) < config.absent_video)


def target_counts(
    config: LossConfig, noisy: NoisySample, num_context: int
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return the counts of `flow.loss.loss_terms` without a prediction, for they are summed over ranks before it."""
    rows = next(clock for clock in (noisy.clocks.video, noisy.clocks.actions) if clock is not None)
    video = actions = torch.zeros(len(rows), device=rows.device)
    if noisy.video_mask is not None:
        video = video_weights(config, noisy, num_context).flatten(1).sum(dim=1)
    if noisy.action_mask is not None:
        actions = noisy.action_mask.flatten(1).sum(dim=1).float()
    return video, actions


def _without_future(state: State, num_context: int) -> State:
    return state if state.video is None else replace(state, video=state.video[:, :, :, :num_context])


def _move(value: Any, device: torch.device) -> Any:
    """Move every tensor in a tree of dataclasses."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if is_dataclass(value) and not isinstance(value, type):
        moved: dict[str, Any] = {f.name: _move(getattr(value, f.name), device) for f in fields(value)}
        return replace(value, **moved)
    return value
