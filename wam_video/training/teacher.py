"""The teacher's part in a training run: which frames are taught, what their features are, and the loss of a micro-batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from wam_video.errors import ConfigError, DataError
from wam_video.models.teacher import (
    AlignmentTerms,
    TeacherConfig,
    TeacherEncoder,
    TeacherHead,
    alignment_terms,
    load_teacher,
)
from wam_video.models.video_codec import Codec, latent_mask, num_latents, temporal_factor
from wam_video.tensors import Batch
from wam_video.training.build import Parts
from wam_video.training.config import TrainConfig
from wam_video.training.sample import TrainingSample


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What the teacher has to say of a micro-batch; frame i is for the tokens of token frame i."""

    features: Float[Tensor, "b v t h w d"]
    mask: Bool[Tensor, "b v t"]
    """True where both the frame that is read and the frame that is taught were recorded."""

    @property
    def count(self) -> Float[Tensor, ""]:
        """Sites that carry a loss, which is summed over the step before the forward pass."""
        return self.mask.sum().float() * self.features.shape[3] * self.features.shape[4]

    def terms(self, predicted: Float[Tensor, "b v t h w d"]) -> AlignmentTerms:
        """Return the sums of the loss for what the head predicts of every token frame."""
        return alignment_terms(predicted[:, :, : self.features.shape[2]], self.features, self.mask)


class Teacher:
    """Make lessons; holds the frozen encoder, which is no part of the trained module or of a checkpoint."""

    def __init__(self, config: TeacherConfig, encoder: TeacherEncoder, codec: Codec, patch: Sequence[int]) -> None:
        self.config = config
        self._encoder = encoder
        self._codec = codec
        self._patch = tuple(patch)
        self._shift = int(config.kind == "next_frame")
        self.fingerprint = encoder.fingerprint()
        """Of the weights, which a continued run must agree with."""

    @classmethod
    def build(
        cls, config: TrainConfig, parts: Parts, device: torch.device
    ) -> tuple["Teacher", TeacherHead] | tuple[None, None]:
        """Load the teacher of a run, and make the head with weights drawn from the seed; Nones if there is none.

        Raises:
            ConfigError: It does not fit the network or the windows, or timm does not have it.
        """
        if config.teacher.kind == "none":
            return None, None
        network = parts.wam
        check_frames(
            config.teacher, num_latents(parts.codec, parts.processor.window.num_frames), network.config["patch_size"]
        )
        block = config.teacher.block(network.config["num_layers"])
        encoder = load_teacher(config.teacher)
        width = network.config["num_attention_heads"] * network.config["attention_head_dim"]
        with torch.random.fork_rng(devices=[]):  # the numbers of nobody else move
            torch.manual_seed(config.seed)
            head = TeacherHead(width, config.teacher.hidden, encoder.channels, block=block)
        return cls(config.teacher, encoder.to(device), parts.codec, network.config["patch_size"]), head

    @torch.no_grad()
    def __call__(self, batch: Batch, sample: TrainingSample) -> Lesson:
        """Return the lesson of a micro-batch.

        Args:
            batch: The recordings, of which all frames can be taught, also those that the sample leaves out.
            sample: What the network sees of it.
        """
        device, (frames, rows, columns) = sample.embodiment.device, token_grid(sample, self._patch)
        if batch.latents is not None:
            raise DataError(
                f"dataset {batch.datasets[0]!r} holds latents and no pixels, which a teacher needs; "
                "train from the shards that it was made from, or set teacher.kind=none"
            )
        recorded = self._token_mask(batch)
        taught = min(frames, recorded.shape[2] - self._shift)
        wanted = recorded[:, :, self._shift : self._shift + taught]
        mask = wanted & recorded[:, :, :taught]
        pixels = rearrange(batch.video[:, :, :, self._token_frames(batch)], "b v c t h w -> b v t c h w")
        pixels = pixels[:, :, self._shift : self._shift + taught]
        features = torch.zeros(*mask.shape, rows, columns, self._encoder.channels, device=device)
        # Chosen on the CPU, where the loader's masks are: frames that are not taught cost nothing and no wait.
        rows_of_mask = mask.flatten().nonzero()[:, 0]
        chosen = pixels.flatten(0, 2)[rows_of_mask.to(pixels.device)].to(device)
        features.view(-1, *features.shape[3:])[rows_of_mask.to(device)] = self._encoder(chosen, (rows, columns))
        return Lesson(features=features, mask=mask.to(device))

    def _token_frames(self, batch: Batch) -> slice:
        """Return the pixel frames at which the token frames stand: each the last one that its token covers."""
        factor, frames = temporal_factor(self._codec), self._patch[0]
        return slice((frames - 1) * factor, batch.video.shape[3], factor * frames)

    def _token_mask(self, batch: Batch) -> Bool[Tensor, "b v t"]:
        mask = latent_mask(self._codec, batch.frame_mask.cpu())
        whole = mask.shape[2] // self._patch[0] * self._patch[0]
        return rearrange(mask[:, :, :whole], "b v (t p) -> b v t p", p=self._patch[0]).all(-1)


def token_grid(sample: TrainingSample, patch: Sequence[int]) -> tuple[int, int, int]:
    """Return the frames, rows and columns of the video tokens of a sample."""
    latents = sample.noisy.x_t.video
    if latents is None:
        raise ValueError("a training sample has at least its context frames")
    frames, rows, columns = (size // cells for size, cells in zip(latents.shape[3:], patch, strict=True))
    return frames, rows, columns


def check_frames(config: TeacherConfig, num_latents: int, patch: Sequence[int]) -> None:
    """Refuse windows without a next frame for a teacher who speaks of it.

    Raises:
        ConfigError: There is none.
    """
    if config.kind == "next_frame" and num_latents // patch[0] < 2:
        raise ConfigError(
            "teacher.kind is 'next_frame', but the video tokens of a window are of one frame; set "
            "data.window.num_future_frames, or teacher.kind=repa"
        )
