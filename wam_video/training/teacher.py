"""The teacher's part in a training run: which frames are taught, what their features are, and the loss of a micro-batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
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
from wam_video.models.video_codec import Codec, latent_mask, num_latents, spatial_factor, temporal_factor
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


class FrameTeacher:
    """A frozen encoder's features of the frames at which video tokens stand; each is the last one that its token covers.

    Args:
        encoder: On any device; it moves to where features are wanted.
        codec: Of the latents that the tokens are made of.
        patch: Latent frames, rows and columns in a token.
        name: Of the encoder, for people.
    """

    def __init__(self, encoder: TeacherEncoder, codec: Codec, patch: Sequence[int], name: str) -> None:
        self.encoder, self._codec, self._patch = encoder, codec, tuple(patch)
        self._device = torch.device("cpu")
        self.about: dict[str, Any] = {"hash": encoder.feature_hash(), "model": name, "patch_size": list(self._patch)}
        """What features that are stored are known by."""

    def recorded(self, frame_mask: Bool[Tensor, "b v f"]) -> Bool[Tensor, "b v t"]:
        """Return at which tokens' frames everything was recorded, from the mask of the pixel frames."""
        mask = latent_mask(self._codec, frame_mask.cpu())
        whole = mask.shape[2] // self._patch[0] * self._patch[0]
        return rearrange(mask[:, :, :whole], "b v (t p) -> b v t p", p=self._patch[0]).all(-1)

    def frames(self, video: UInt8[Tensor, "b v c f h w"]) -> UInt8[Tensor, "b v t c h w"]:
        """Return the tokens' frames."""
        factor, frames = temporal_factor(self._codec), self._patch[0]
        return rearrange(video[:, :, :, (frames - 1) * factor :: factor * frames], "b v c t h w -> b v t c h w")

    @torch.no_grad()
    def features(
        self, frames: UInt8[Tensor, "b v t c h w"], wanted: Bool[Tensor, "b v t"], grid: tuple[int, int]
    ) -> Float[Tensor, "b v t h w d"]:
        """Return the features of the wanted frames, zeros for the others, on the device of the last call of `to`.

        Args:
            frames: As `frames` gives them.
            wanted: On the CPU, where the loader's masks are: what is not wanted costs nothing and no wait.
            grid: Rows and columns of tokens.
        """
        found = torch.zeros(*wanted.shape, *grid, self.encoder.channels, device=self._device)
        rows = wanted.flatten().nonzero()[:, 0]
        chosen = frames.flatten(0, 2)[rows.to(frames.device)].to(self._device)
        found.view(-1, *found.shape[3:])[rows.to(self._device)] = self.encoder(chosen, grid)
        return found

    def to(self, device: torch.device) -> "FrameTeacher":
        """Move the encoder, if it is elsewhere: one whose features are all stored is never moved."""
        if device != self._device:
            self.encoder.to(device)
            self._device = device
        return self

    def of_windows(
        self, video: UInt8[Tensor, "b v c f h w"], frame_mask: Bool[Tensor, "b v f"]
    ) -> Float[Tensor, "b v d t h w"]:
        """Return all features of windows, as they are stored."""
        side = spatial_factor(self._codec)
        grid = video.shape[-2] // side // self._patch[1], video.shape[-1] // side // self._patch[2]
        found = self.features(self.frames(video), self.recorded(frame_mask), grid)
        return rearrange(found, "b v t h w d -> b v d t h w")


class Teacher:
    """Make lessons; holds the frozen encoder, which is no part of the trained module or of a checkpoint."""

    def __init__(self, config: TeacherConfig, encoder: TeacherEncoder, codec: Codec, patch: Sequence[int]) -> None:
        self.config = config
        self._frames = FrameTeacher(encoder, codec, patch, str(config.model))
        self._patch = tuple(patch)
        self._shift = int(config.kind == "next_frame")
        self.fingerprint = encoder.fingerprint()
        """Of the weights, which a continued run must agree with."""

    @classmethod
    def build(cls, config: TrainConfig, parts: Parts) -> tuple["Teacher", TeacherHead] | tuple[None, None]:
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
        return cls(config.teacher, encoder, parts.codec, network.config["patch_size"]), head

    @torch.no_grad()
    def __call__(self, batch: Batch, sample: TrainingSample) -> Lesson:
        """Return the lesson of a micro-batch.

        Args:
            batch: The recordings, of which all frames can be taught, also those that the sample leaves out.
            sample: What the network sees of it.
        """
        device, (frames, *grid) = sample.embodiment.device, token_grid(sample, self._patch)
        recorded = self._frames.recorded(batch.frame_mask)
        taught = slice(self._shift, self._shift + min(frames, recorded.shape[2] - self._shift))
        mask = recorded[:, :, taught] & recorded[:, :, : taught.stop - taught.start]
        if batch.latents is None:
            pixels = self._frames.frames(batch.video)[:, :, taught]
            features = self._frames.to(device).features(pixels, mask, (grid[0], grid[1]))
            return Lesson(features=features, mask=mask.to(device))
        stored = self._stored(batch, (self._frames.encoder.channels, recorded.shape[2], *grid))
        features = rearrange(stored[:, :, :, taught], "b v d t h w -> b v t h w d").to(device, torch.float32)
        mask = mask.to(device)
        return Lesson(features=torch.where(mask[..., None, None, None], features, 0.0), mask=mask)

    def _stored(self, batch: Batch, shape: tuple[int, ...]) -> Float[Tensor, "b v d t h w"]:
        """Return the features that were made before training.

        Raises:
            DataError: There are none, or another teacher made them, or for other tokens.
        """
        name = batch.datasets[0]
        if batch.teacher is None:
            raise DataError(
                f"dataset {name!r} holds latents and no pixels, which a teacher needs, nor its features; encode it again (wam-video "
                "data encode --teacher), train from the shards that it was made from, or set teacher.kind=none"
            )
        if batch.teacher_hash != (own := self._frames.about["hash"]):
            raise DataError(
                f"dataset {name!r} holds features of teacher {batch.teacher_hash[:12]}, the run's teacher is {own[:12]}; set "
                "teacher.* as they were made, or encode the dataset again (wam-video data encode --teacher)"
            )
        if batch.teacher.shape[2:] != shape:
            raise DataError(
                f"dataset {name!r} holds teacher features of shape {tuple(batch.teacher.shape[2:])} (channels, frames, rows, columns), "
                f"the run has tokens for {shape}; set model.patch_size as they were made, or encode the dataset again"
            )
        return batch.teacher


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
