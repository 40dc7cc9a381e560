"""`DiffusionPolicyPipeline`: the baseline's checkpoint, used like ours where ours acts."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wam_video.data.processor import WAMProcessor
from wam_video.errors import CheckpointError, ConfigError, one_of
from wam_video.flow.modes import MODES, get_mode
from wam_video.inference.checkpoint import CheckpointFolder
from wam_video.inference.inputs import Conditions, Request, batch_conditions, build_conditions
from wam_video.inference.noise import Generators, make_generators
from wam_video.inference.outputs import WAMOutput, fit, physical_actions
from wam_video.inference.registration import register_components
from wam_video.models.diffusion_policy import DiffusionPolicyTransformer, repeat_missing
from wam_video.models.text import encode_text
from wam_video.tensors import Batch, Mode

register_components()

FindNoise = Callable[[Float[Tensor, "b ta da"], Int[Tensor, " b"]], Float[Tensor, "b ta da"]]
"""From noisy actions and their DDPM steps to the noise in them."""


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions:
    """How one call samples; `DiffusionPolicyPipeline.__call__` says what each means."""

    num_inference_steps: int | None = None
    generator: Generators = None
    output_type: str = "np"

    def __post_init__(self) -> None:
        if self.output_type not in ("np", "pt"):
            raise ConfigError(one_of("output_type", self.output_type, ("np", "pt")))


class DiffusionPolicyPipeline(CheckpointFolder):
    """Diffusion Policy, ready to act: mode `policy` of `WAMPipeline`, with the same calls and folders.

    Args:
        transformer: The network.
        text_encoder: A T5-like encoder.
        tokenizer: The encoder's.
        scheduler: DDPM as it was trained.
        processor: The embodiment, its statistics and the window that the model was trained on.

    Raises:
        CheckpointError: The parts do not fit each other.
    """

    model_cpu_offload_seq = "text_encoder->transformer"
    transformer: DiffusionPolicyTransformer  # pyright: ignore[reportIncompatibleVariableOverride] - another network
    text_encoder: PreTrainedModel  # pyright: ignore[reportIncompatibleVariableOverride] - never absent

    def __init__(
        self,
        transformer: DiffusionPolicyTransformer,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: DDPMScheduler,
        processor: WAMProcessor,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
            processor=processor,
        )
        _check_parts(transformer, text_encoder, processor)

    def unanswered(self) -> frozenset[Mode]:
        """Return the modes that this model refuses: all but `policy`."""
        return frozenset(Mode) - {Mode.POLICY}

    def sampling_facts(self, num_inference_steps: int | None = None, policy_path: str | None = None) -> dict[str, Any]:
        """Return how it samples, for records.

        Raises:
            ConfigError: It can't sample so.
        """
        _check_path(policy_path)
        return {
            "policy_path": "actions only",
            "num_inference_steps": self._steps(num_inference_steps),
            "solver": "ddpm",
            "path": [],
        }

    @torch.no_grad()
    def __call__(
        self,
        mode: str,
        video: Any,
        *,
        state: Any = None,
        prompt: str | Sequence[str] = "",
        embodiment: str | Sequence[str] | None = None,
        **options: Any,
    ) -> WAMOutput:
        """Return a chunk of actions; arguments and result as of `WAMPipeline.__call__`.

        Args:
            mode: `policy`.
            video: Frames up to now.
            state: Proprioception now.
            prompt: Instruction.
            embodiment: Name of the body.
            options: `num_inference_steps` (of DDPM, at most 100; None: all), `generator`, `output_type` ("np" or "pt").

        Raises:
            ConfigError: The request can't be carried out.
        """
        _check_mode(mode)
        spec = MODES[Mode.POLICY]
        request = Request(mode=Mode.POLICY, spec=spec, video=video, state=state, prompt=prompt, embodiment=embodiment)
        return self._act(build_conditions(self.processor, request), DiffusionOptions(**options))

    @torch.no_grad()
    def predict(
        self, batch: Batch, mode: str, *, policy_path: str | None = None, committed_steps: int = 0, **options: Any
    ) -> WAMOutput:
        """Return a chunk for each recorded window, of which only the past is read; as of `WAMPipeline.predict`.

        Args:
            batch: Windows as the loader yields them.
            mode: `policy`.
            policy_path: None: there is but one.
            committed_steps: So many recorded actions count as committed. They come back as they are; the published
                method is not told of them either, it drops what comes too late.
            options: As in `__call__`.

        Raises:
            ConfigError: The request can't be carried out.
        """
        _check_mode(mode)
        _check_path(policy_path)
        conditions = batch_conditions(self.processor, batch, MODES[Mode.POLICY], committed_steps)
        return fit(self._act(conditions, DiffusionOptions(**options)), *batch.actions.shape[1:])

    def _act(self, conditions: Conditions, options: DiffusionOptions) -> WAMOutput:
        network, device = self.transformer, self._execution_device
        generators = make_generators(options.generator, len(conditions))
        shape = (len(conditions), conditions.actions.shape[1], network.config["action_dim"])
        bodies = self.processor.indices(conditions.embodiments)
        pixels = repeat_missing(conditions.video, conditions.frame_mask.any(dim=1)).to(device, network.dtype)
        state = self.processor.normalize_state(conditions.state, bodies)
        state = torch.where(conditions.state_mask, state, torch.zeros_like(state)).to(device, network.dtype)
        observed = network.observe(pixels, state, self._text(conditions.prompts).to(device, network.dtype))

        def find(noisy: Float[Tensor, "b ta da"], steps: Int[Tensor, " b"]) -> Float[Tensor, "b ta da"]:
            return network(noisy.to(network.dtype), steps, observed).float()

        start = torch.cat([torch.randn(1, *shape[1:], generator=g) for g in generators]).to(device)
        # a copy: the scheduler holds the steps of the call that is under way
        end = denoise(deepcopy(self.scheduler), find, start, generators, self._steps(options.num_inference_steps))
        actions = physical_actions(self.processor, end, conditions)
        self.maybe_free_model_hooks()
        return WAMOutput(actions=actions if options.output_type == "pt" else actions.numpy(), video=None)

    def _text(self, prompts: tuple[str, ...]) -> Float[Tensor, "b s dt"]:
        """Encode each prompt by itself, so that it does not depend on its neighbours."""
        rows = {
            prompt: encode_text(self.tokenizer, self.text_encoder, [prompt])[0] for prompt in dict.fromkeys(prompts)
        }
        return torch.stack([rows[prompt] for prompt in prompts])

    def _steps(self, given: int | None) -> int:
        most = self.scheduler.config.num_train_timesteps
        if given is not None and not 1 <= given <= most:
            raise ConfigError(
                f"num_inference_steps is {given}; allowed: 1 to {most}, the steps of this model's diffusion"
            )
        return most if given is None else given


def denoise(
    scheduler: DDPMScheduler,
    find: FindNoise,
    start: Float[Tensor, "b ta da"],
    generators: Sequence[torch.Generator],
    num_inference_steps: int,
) -> Float[Tensor, "b ta da"]:
    """Walk from noise to data by ancestral sampling (Ho et al. 2020).

    Args:
        scheduler: The diffusion.
        find: The network.
        start: Standard normal noise.
        generators: One a sample, which its later noise is drawn from.
        num_inference_steps: Of the diffusion's own steps so many, evenly spaced.
    """
    scheduler.set_timesteps(num_inference_steps, device=start.device)
    x, each = start, list(generators)
    for t in scheduler.timesteps:
        noise = find(x, t.expand(len(x)))
        x = scheduler.step(noise, int(t), x, generator=each, return_dict=False)[0]  # type: ignore[arg-type] - a list will do
    return x


def _check_mode(mode: str) -> None:
    if get_mode(mode) is not Mode.POLICY:
        raise ConfigError(
            f"mode is {mode!r}, but a Diffusion Policy makes actions from the past only; allowed: 'policy'"
        )


def _check_path(policy_path: str | None) -> None:
    if policy_path is not None:
        raise ConfigError(f"policy_path is {policy_path!r}, but a Diffusion Policy has no video; leave it out")


def _check_parts(network: DiffusionPolicyTransformer, encoder: PreTrainedModel, processor: WAMProcessor) -> None:
    config, window = network.config, processor.window
    theirs = {
        "embodiments": (len(processor.config["embodiments"]), 1),
        "action_dim": (processor.max_action_dim, config["action_dim"]),
        "state_dim": (processor.max_state_dim, config["state_dim"]),
        "action_horizon": (window.action_horizon, config["action_horizon"]),
        "num_observations": (window.num_context_frames, config["num_observations"]),
        "num_views": (processor.num_views, config["num_views"]),
        "text_dim": (encoder.config.d_model, config["text_dim"]),
    }
    for name, (found, wanted) in theirs.items():
        if found != wanted:
            raise CheckpointError(
                f"{name} is {found} in processor or text_encoder and {wanted} in transformer; they are of two models"
            )
