"""`WAMPipeline`: a checkpoint with everything that using it needs, and one call for every mode."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline
from jaxtyping import Float
from torch import Tensor
from transformers import BaseImageProcessor, CLIPVisionModel, PreTrainedModel, PreTrainedTokenizerBase

from wam_video.data.processor import WAMProcessor
from wam_video.errors import ConfigError, one_of
from wam_video.flow.continuation import check_continuation
from wam_video.flow.modes import MODES, POLICY_PATHS, ModeSpec, get_mode
from wam_video.flow.scheduler import WAMScheduler, check_interval, check_policy_path, check_solver, guidance_scales
from wam_video.flow.solvers import State
from wam_video.inference.checkpoint import CheckpointFolder
from wam_video.inference.checks import check_components, image_context, unanswered
from wam_video.inference.chunks import count_steps, run
from wam_video.inference.commitment import PlanBefore
from wam_video.inference.inputs import Conditions, Request, batch_conditions, build_conditions
from wam_video.inference.noise import Generators, make_generators
from wam_video.inference.outputs import WAMOutput, fit, physical_actions
from wam_video.inference.registration import register_components
from wam_video.inference.sampling import Prepared, SamplingConfig, decode_future, prepare
from wam_video.inference.stream import Streams
from wam_video.models.image_context import ImageContext
from wam_video.models.text import encode_text
from wam_video.models.transformer import WAMTransformer
from wam_video.models.video_codec import PixelCodec
from wam_video.tensors import Batch, Mode

register_components()

OutputType = Literal["np", "pt", "latent"]
OnStep = Callable[[DiffusionPipeline, int, Float[Tensor, " 2"], dict[str, Tensor | None]], object]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How one call samples, as the caller wrote it; `WAMPipeline.__call__` says what each means."""

    num_inference_steps: int | None = None
    guidance_scale: float | Mapping[str, float] | None = None
    guidance_interval: Sequence[float] | None = None
    reuse_tolerance: float | None = None
    solver: str | None = None
    generator: Generators = None
    prompt_embeds: Float[Tensor, "b s dt"] | None = None
    negative_prompt_embeds: Float[Tensor, "b s dt"] | None = None
    output_type: str = "np"
    callback_on_step_end: OnStep | None = None

    def sampling(self, scheduler: WAMScheduler) -> SamplingConfig:
        """Return how a path is walked: as the call says, else as the checkpoint does."""
        settings = scheduler.config
        scale = settings["guidance_scale"] if self.guidance_scale is None else self.guidance_scale
        return SamplingConfig(
            path=scheduler.path(self.num_inference_steps),
            solver=check_solver(self.solver or settings["solver"]),
            guidance=guidance_scales(scale),
            interval=check_interval(self.guidance_interval or settings["guidance_interval"]),
            reuse=scheduler.reuse(self.reuse_tolerance),
        )


def find_spec(mode: str, policy_path: str | None, scheduler: WAMScheduler) -> ModeSpec:
    """Return a mode's row of the table, for `policy` that of its path.

    Raises:
        ConfigError: There is no such mode or path, or a path is given to another mode.
    """
    known = get_mode(mode)
    if policy_path is not None and known is not Mode.POLICY:
        raise ConfigError(f"policy_path is given, but the mode is {known.value!r}; leave it out or use mode 'policy'")
    path = check_policy_path(policy_path or scheduler.config["policy_path"])
    return POLICY_PATHS[path] if known is Mode.POLICY else MODES[known]


def plan_before(
    scheduler: WAMScheduler, continuation: str | None, committed: Any = None, planned: Any = None
) -> PlanBefore:
    """Return the plan before as a call says it, continued as the checkpoint does where it does not say."""
    name = check_continuation(continuation or scheduler.config["continuation"])
    return PlanBefore(committed_actions=committed, planned_actions=planned, continuation=name)


class WAMPipeline(Streams, CheckpointFolder):
    """A world action model, ready to use: policy, forward, inverse, video and joint from one checkpoint.

    Args:
        transformer: The network.
        vae: The video codec.
        text_encoder: A T5-like encoder; None if calls bring `prompt_embeds`.
        tokenizer: The encoder's.
        scheduler: How paths are walked by default.
        processor: Embodiments, their statistics and the window that the model was trained on.
        image_encoder: CLIP's vision encoder, which networks with an `image_dim` need (Wan's image-to-video shape); else None.
        image_processor: The encoder's, which says how a frame becomes its square picture (`crop` or `stretch`).

    Raises:
        CheckpointError: The parts do not fit each other.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->vae->transformer"
    _optional_components = ["text_encoder", "tokenizer", "image_encoder", "image_processor"]
    _callback_tensor_inputs = ["latents", "actions"]

    def __init__(
        self,
        transformer: WAMTransformer,
        vae: PixelCodec | AutoencoderKLWan,
        text_encoder: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        scheduler: WAMScheduler,
        processor: WAMProcessor,
        image_encoder: CLIPVisionModel | None = None,
        image_processor: BaseImageProcessor | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
            processor=processor,
            image_encoder=image_encoder,
            image_processor=image_processor,
        )
        check_components(transformer, vae, text_encoder, processor)
        self.image_context()

    def image_context(self) -> ImageContext:
        """Return what makes the first-frame condition and image context that the network reads, if it reads any.

        Raises:
            CheckpointError: A part that this needs is missing or of another model.
        """
        return image_context(self.transformer, self.vae, self.image_encoder, self.image_processor)

    def unanswered(self) -> frozenset[Mode]:
        """Return the modes that this model refuses, for its answer could not depend on what it is given."""
        return unanswered(self.transformer.attention)

    def sampling_facts(self, num_inference_steps: int | None = None, policy_path: str | None = None) -> dict[str, Any]:
        """Return how it samples as a policy, for records (`WAMScheduler.facts`)."""
        return self.scheduler.facts(num_inference_steps, policy_path)

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 - the public contract: one keyword each
        self,
        mode: str,
        video: Any,
        *,
        state: Any = None,
        prompt: str | Sequence[str] = "",
        embodiment: str | Sequence[str] | None = None,
        actions: Any = None,
        committed_actions: Any = None,
        planned_actions: Any = None,
        continuation: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | Mapping[str, float] | None = None,
        guidance_interval: Sequence[float] | None = None,
        reuse_tolerance: float | None = None,
        solver: str | None = None,
        policy_path: str | None = None,
        generator: Generators = None,
        prompt_embeds: Float[Tensor, "b s dt"] | None = None,
        negative_prompt_embeds: Float[Tensor, "b s dt"] | None = None,
        output_type: OutputType = "np",
        callback_on_step_end: OnStep | None = None,
    ) -> WAMOutput:
        """Use the model in one of its modes on a batch of samples; a missing batch axis is added everywhere.

        Args:
            mode: `policy`, `forward`, `inverse`, `video` or `joint`.
            video: Frames up to now, the newest last: uint8 `[b] v f h w 3`, or float in [0, 1] `[b] v f 3 h w`. `inverse`
                reads the future frames after them. The oldest may be left out. Other sizes are resized as
                the body's training data were: `pad`, `crop` or `stretch` (floats are then rounded to 8 bits).
            state: Proprioception now, `[b] ds` in physical units; None: unknown.
            prompt: Instruction, one for all samples or one each.
            embodiment: Name of the body, one for all or one each; may be left out where the model knows only one.
            actions: `[b] ta da` in physical units, for `forward`: exactly the model's horizon. In a batch of several
                bodies as wide as the widest, or a list of one array each.
            committed_actions: `[b] d da`: the first d actions, which are carried out while this call is made; they come back
                as they are, and the rest goes on from them. In physical units; a list may hold another d each.
            planned_actions: `[b] k da`: what the plan before says after them, for continuation `guided`.
            continuation: What is made of the two: `prefix`, `guided` or `replace` (`flow.continuation`).
            num_inference_steps: Steps of the path; None, here and below: the checkpoint's own setting.
            guidance_scale: Guidance by prompt, one number or `{"video": ..., "actions": ...}`; 1 is none and costs nothing.
            guidance_interval: Clocks, from and to, at which guidance is computed; elsewhere a step costs one row.
            reuse_tolerance: Relative change of the velocity below which a step takes the last one again; 0: never.
            solver: `euler`, `heun` or `ab2`.
            policy_path: What `policy` does with the future video: `unknown`, `absent` (cheapest) or `joint`.
            generator: A generator or seed, or a list of one a sample: then a row's noise does not depend on the others.
                None: torch's global generator.
            prompt_embeds: Instead of `prompt`, encoded.
            negative_prompt_embeds: The empty prompt, encoded; for guidance without a text encoder.
            output_type: `np`, `pt`, or `latent` (normalised, not decoded).
            callback_on_step_end: Called with the pipeline, the step, the clocks reached and
                `{"latents": ..., "actions": ...}`; it looks on, and stops the run by raising.

        Returns:
            Actions float32 `b ta da` in physical units and future video float32 `b v f 3 h w` in [0, 1]; None for what
            the mode does not give.

        Raises:
            ConfigError: The request can't be carried out.
        """
        spec = find_spec(mode, policy_path, self.scheduler)
        request = Request(
            mode=Mode(mode),
            spec=spec,
            video=video,
            state=state,
            prompt=prompt,
            embodiment=embodiment,
            actions=actions,
            before=plan_before(self.scheduler, continuation, committed_actions, planned_actions),
        )
        options = RunOptions(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            reuse_tolerance=reuse_tolerance,
            solver=solver,
            generator=generator,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
        )
        return self._generate(build_conditions(self.processor, request), Mode(mode), spec, options)

    @torch.no_grad()
    def predict(
        self,
        batch: Batch,
        mode: str,
        *,
        policy_path: str | None = None,
        committed_steps: int = 0,
        planned_steps: int = 0,
        continuation: str | None = None,
        **options: Any,
    ) -> WAMOutput:
        """Use the model in one of its modes on recorded windows, of which it reads only what the mode may read.

        Args:
            batch: Windows as the loader yields them; their times and masks hold, rather than the checkpoint's window.
            mode: As in `__call__`.
            policy_path: As in `__call__`, like `continuation` and `options`.
            committed_steps: So many recorded actions count as committed where actions are generated.
            planned_steps: And so many after them as planned.
            continuation: What is made of both.
            options: `num_inference_steps`, `guidance_scale`, `solver`, `generator`, `output_type`, ...

        Returns:
            As `__call__`; the actions have the shape of the batch's.
        """
        spec = find_spec(mode, policy_path, self.scheduler)
        way = plan_before(self.scheduler, continuation).continuation
        conditions = batch_conditions(self.processor, batch, spec, committed_steps, planned_steps, way)
        return self._generate(conditions, Mode(mode), spec, RunOptions(**options), tuple(batch.actions.shape[1:]))

    def _generate(
        self, conditions: Conditions, mode: Mode, spec: ModeSpec, options: RunOptions, chunk: tuple[int, ...] = ()
    ) -> WAMOutput:
        if options.output_type not in OutputType.__args__:
            raise ConfigError(one_of("output_type", options.output_type, OutputType.__args__))
        sampling = options.sampling(self.scheduler)
        text, empty = self.encode_prompts(
            conditions.prompts,
            guided=sampling.guided,
            prompt_embeds=options.prompt_embeds,
            negative_prompt_embeds=options.negative_prompt_embeds,
        )
        generators = make_generators(options.generator, len(conditions))
        device = self._execution_device
        prepared = prepare(
            self.vae, self.processor, conditions, spec, generators, self.transformer, device, self.image_context()
        )
        total = count_steps(self.transformer.attention, prepared, spec, sampling.path)
        with self.progress_bar(total=total) as bar:  # type: ignore[call-arg] - a static method

            def on_step(step: int, point: Float[Tensor, " 2"], state: State) -> None:
                if options.callback_on_step_end is not None:
                    tensors = {"latents": state.video, "actions": state.actions}
                    options.callback_on_step_end(self, step, point, tensors)
                bar.update()

            end = run(self.transformer, prepared, spec, (text, empty), sampling, on_step)
        output = self._output(end, prepared, conditions, spec if mode is not Mode.POLICY else MODES[mode], options)
        output.calls = sampling.meter.computed
        self.maybe_free_model_hooks()
        return fit(output, *chunk) if chunk else output

    def _output(
        self, end: State, prepared: Prepared, conditions: Conditions, spec: ModeSpec, options: RunOptions
    ) -> WAMOutput:
        """Decode what the mode gives; `policy` gives actions only, even where it imagined the video on the way."""
        if options.output_type == "latent":
            latents = end.video[:, :, :, prepared.num_context :] if spec.gives_video and end.video is not None else None
            return WAMOutput(actions=end.actions if spec.gives_actions else None, video=latents)
        actions = video = None
        if spec.gives_actions and end.actions is not None:
            actions = physical_actions(self.processor, end.actions, conditions)
        if spec.gives_video:
            video = decode_future(self.vae, prepared, end, conditions).cpu()
        actions, video = (x.numpy() if x is not None and options.output_type == "np" else x for x in (actions, video))
        return WAMOutput(actions=actions, video=video)

    @torch.no_grad()
    def encode_prompts(
        self,
        prompts: Sequence[str],
        *,
        guided: bool = False,
        prompt_embeds: Float[Tensor, "b s dt"] | None = None,
        negative_prompt_embeds: Float[Tensor, "b s dt"] | None = None,
    ) -> tuple[Float[Tensor, "b s dt"], Float[Tensor, "b s dt"] | None]:
        """Encode each distinct prompt once, and the empty one if guidance needs it.

        Args:
            prompts: One a sample.
            guided: Whether the empty prompt is needed.
            prompt_embeds: Instead of `prompts`, encoded.
            negative_prompt_embeds: The empty prompt, encoded.

        Raises:
            ConfigError: There is no text encoder, or the embeddings are missing or not one a sample.
        """
        given, empty, batch, device = prompt_embeds, negative_prompt_embeds, len(prompts), self._execution_device
        if given is not None:
            if given.shape[0] != batch or given.ndim != 3:
                raise ConfigError(
                    f"prompt_embeds is of shape {tuple(given.shape)} for {batch} samples; give 'b s {self.transformer.config.text_dim}'"
                )
            if guided and empty is None:
                raise ConfigError("negative_prompt_embeds is missing; guidance with prompt_embeds needs it")
            return given.to(device), None if empty is None else empty.to(device).expand(batch, -1, -1)
        if self.text_encoder is None or self.tokenizer is None:
            raise ConfigError("this checkpoint has no text encoder; give prompt_embeds")
        distinct = list(dict.fromkeys([*prompts, ""] if guided else prompts))
        embeds = encode_text(self.tokenizer, self.text_encoder, distinct).to(device)
        rows = embeds[torch.tensor([distinct.index(prompt) for prompt in prompts], device=device)]
        return rows, embeds[distinct.index("")].expand(batch, -1, -1) if guided else None
