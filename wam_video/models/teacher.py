"""A frozen image encoder as a teacher: its features of clean frames, and how far the network's tokens point their way.

The hidden tokens of one block go through a small projector and are drawn to the teacher's patch features by their cosine
(representation alignment, REPA: Yu et al. 2024, eq. 8): those of the same frame, or those of the next one. The head is part
of training only; it reads the network through a hook that lives as long as one forward pass, and leaves nothing behind.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from wam_video.errors import CheckpointError, ConfigError, MissingDependencyError, first_line, one_of

KINDS = ("none", "repa", "next_frame")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Alignment of the network's hidden tokens with a frozen image encoder during training; off by default."""

    kind: str = "none"
    """`repa`: with the features of the same frame; `next_frame`: with those of the next latent frame, which the last frame
    has not: a real prediction in causal chunks of one frame and where the future is left out; in bidirectional attention the
    noisy tokens of that frame can be seen. `none`: no teacher."""
    model: str | None = None
    """Any vision transformer of timm that gives patch tokens, such as `vit_base_patch14_dinov2.lvd142m`."""
    checkpoint: str | None = None
    """Its weights, a local .safetensors file; None: timm's own pretrained weights, a download."""
    image_size: int | None = None
    """Side of the square that it sees, in pixels; None: the one that it was trained on."""
    layer: int | None = None
    """Block whose output is aligned, from 0; None: a third of the way up, as in REPA (8 of 28)."""
    weight: float = 0.5
    """Of the negative mean cosine, beside the other losses."""
    hidden: int = 2048
    """Width of the projector, a network of three layers."""
    frames_per_pass: int = 64
    """Frames that the teacher sees at once, which bounds its memory."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(one_of("teacher.kind", self.kind, KINDS))
        if self.kind != "none" and not self.model:
            raise ConfigError("teacher.model is not set; name a vision transformer of timm, or set teacher.kind=none")
        if self.checkpoint is not None and not self.checkpoint.endswith(".safetensors"):
            raise ConfigError(f"teacher.checkpoint is {self.checkpoint!r}; allowed: a .safetensors file")
        if not self.weight > 0:
            raise ConfigError(f"teacher.weight is {self.weight}; allowed: above 0 (teacher.kind=none turns it off)")
        for name, least in (("image_size", 1), ("layer", 0), ("hidden", 1), ("frames_per_pass", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"teacher.{name} is {value}; allowed: {least} or more")

    def block(self, num_layers: int) -> int:
        """Return the number of the block whose output is aligned, in a network of `num_layers`.

        Raises:
            ConfigError: There is no such block.
        """
        if self.layer is not None and self.layer >= num_layers:
            raise ConfigError(
                f"teacher.layer is {self.layer}; allowed: 0 to {num_layers - 1} (the network has {num_layers} blocks)"
            )
        return num_layers // 3 if self.layer is None else self.layer


class TeacherEncoder:
    """A frozen encoder with its own input size and statistics: frames in, patch features out.

    Args:
        model: A vision transformer with timm's interface (`forward_features`, `patch_embed`, `num_prefix_tokens`).
        name: For messages.
        frames_per_pass: Frames seen at once.

    Raises:
        ConfigError: The model gives no grid of patch tokens.
    """

    def __init__(self, model: nn.Module, *, name: str, frames_per_pass: int = 64) -> None:
        self._model: Any = model.requires_grad_(False).eval()
        self._frames_per_pass = frames_per_pass
        embed = getattr(model, "patch_embed", None)
        grid, size = getattr(embed, "grid_size", None), getattr(embed, "img_size", None)
        if grid is None or size is None or not hasattr(model, "num_prefix_tokens"):
            raise ConfigError(_no_patches(name, "it has no grid of patches"))
        self._grid: tuple[int, int] = (grid[0], grid[1])
        self._size: tuple[int, int] = (size[0], size[1])
        facts = getattr(model, "pretrained_cfg", None) or {}
        self._mean = torch.tensor(facts.get("mean", (0.5, 0.5, 0.5)))
        self._std = torch.tensor(facts.get("std", (0.5, 0.5, 0.5)))
        sites = self._grid[0] * self._grid[1]
        with torch.no_grad():
            probe = self._model.forward_features(torch.zeros(1, 3, *self._size))
        if probe.ndim != 3 or probe.shape[1] != self._model.num_prefix_tokens + sites:
            raise ConfigError(_no_patches(name, f"it gives {tuple(probe.shape)} for a grid of {self._grid}"))
        self.channels: int = probe.shape[-1]

    def to(self, device: torch.device) -> "TeacherEncoder":
        """Move the encoder."""
        self._model.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self

    def fingerprint(self) -> str:
        """Return a hash of the weights, for a continued run must have the teacher that it was started with."""
        digest = hashlib.sha256()
        for name, value in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def feature_hash(self) -> str:
        """Return a hash of all that its features depend on: the weights, and the size and statistics of what it sees."""
        facts = [self.fingerprint(), self._size, self._grid, self._mean.tolist(), self._std.tolist()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @torch.no_grad()
    def __call__(self, frames: UInt8[Tensor, "n 3 h w"], grid: tuple[int, int]) -> Float[Tensor, "n gh gw d"]:
        """Return the patch features of frames, resized to `grid` (rows, columns), in float32.

        A frame is stretched to the teacher's square; sites of the features correspond to sites of the frame all the same.
        """
        found = [self._features(part, grid) for part in frames.split(self._frames_per_pass)]
        return torch.cat(found) if found else frames.new_zeros(0, *grid, self.channels, dtype=torch.float32)

    def _features(self, frames: UInt8[Tensor, "n 3 h w"], grid: tuple[int, int]) -> Float[Tensor, "n gh gw d"]:
        pixels = _resize(frames.float() / 255, self._size)
        pixels = (pixels - self._mean[:, None, None]) / self._std[:, None, None]
        tokens = self._model.forward_features(pixels)[:, self._model.num_prefix_tokens :].float()
        features = rearrange(tokens, "n (h w) d -> n d h w", h=self._grid[0])
        return rearrange(_resize(features, grid), "n d h w -> n h w d")


class TeacherHead(nn.Module):
    """The projector from the network's width to the teacher's (REPA: three layers with SiLU), and where it reads.

    Args:
        width: Of the network.
        hidden: Of the projector.
        channels: Of the teacher's features.
        block: Number of the block whose output is read.
    """

    def __init__(self, width: int, hidden: int, channels: int, *, block: int) -> None:
        super().__init__()
        self.block = block
        self.projector = nn.Sequential(
            *(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, channels))
        )

    def forward(self, tokens: Float[Tensor, "b v t h w d"]) -> Float[Tensor, "b v t h w c"]:
        """Return the features that the tokens stand for."""
        return self.projector(tokens)


@dataclass(frozen=True, kw_only=True)
class AlignmentTerms:
    """Sums over the sites that carry a loss, and their counts."""

    cosine_sum: Float[Tensor, ""]
    count: Float[Tensor, ""]
    shuffled_sum: Float[Tensor, ""]
    """The control: the same predictions against the features of another sample of the batch."""
    shuffled_count: Float[Tensor, ""]


def alignment_terms(
    predicted: Float[Tensor, "b v t h w d"], features: Float[Tensor, "b v t h w d"], mask: Bool[Tensor, "b v t"]
) -> AlignmentTerms:
    """Return the cosines of predicted and real features, summed over the sites of the frames in `mask`.

    The loss is `-cosine_sum / count`, with the count of the whole step.
    """
    half = features.shape[0] // 2  # neighbours are often of one episode, whose frames are alike
    cosines = _masked_cosines(predicted, features, mask)
    with torch.no_grad():
        other = mask & mask.roll(half, dims=0) if half else torch.zeros_like(mask)
        shuffled = _masked_cosines(predicted.detach(), features.roll(half, dims=0), other)
    sites = features.shape[3] * features.shape[4]
    return AlignmentTerms(
        cosine_sum=cosines,
        count=mask.sum().float() * sites,
        shuffled_sum=shuffled,
        shuffled_count=other.sum().float() * sites,
    )


def _masked_cosines(
    predicted: Float[Tensor, "b v t h w d"], features: Float[Tensor, "b v t h w d"], mask: Bool[Tensor, "b v t"]
) -> Float[Tensor, ""]:
    cosines = F.cosine_similarity(predicted.float(), features.float(), dim=-1)
    # Not a product: what was never recorded may hold anything.
    return torch.where(mask[..., None, None], cosines, torch.zeros_like(cosines)).sum()


@dataclass(kw_only=True)
class Reading:
    """What was read of one forward pass."""

    tokens: Tensor | None = None
    """The first stream of tokens after the block."""
    latents: tuple[int, ...] = ()
    """Shape of the latents, `b v c t h w`."""
    copies: int = 0
    """Latent frames of the clean history, whose tokens come before those of the latents (`chunks.History`)."""

    def video_tokens(self, patch: Sequence[int]) -> Float[Tensor, "b v t h w d"]:
        """Return the tokens of the latents on their grid: frame by frame, all views and sites of a frame together.

        Args:
            patch: Latent frames, rows and columns in a token.
        """
        if self.tokens is None:
            raise RuntimeError("the block was not run as a module, so its hook was not called")
        views = self.latents[1]
        frames, height, width = (size // cells for size, cells in zip(self.latents[3:], patch, strict=True))
        per_frame = views * height * width
        first = self.copies // patch[0] * per_frame
        if self.tokens.shape[1] < first + frames * per_frame:
            raise RuntimeError(
                f"{self.tokens.shape[1]} tokens can't hold {frames} frames of {per_frame} from {first} on"
            )
        video = self.tokens[:, first : first + frames * per_frame]
        return rearrange(video, "b (t v h w) d -> b v t h w d", v=views, h=height, w=width)


@contextmanager
def read_block(network: nn.Module, block: nn.Module) -> Iterator[Reading]:
    """Read what a block of the network puts out while the context lasts, for one forward pass.

    The hooks are gone when the backward pass computes a checkpointed block again, which then neither reads nor keeps anything.
    """
    reading = Reading()

    def begin(_network: nn.Module, _inputs: Any, named: dict[str, Any]) -> None:
        reading.latents = tuple(named["latents"].shape)
        reading.copies = 0 if named.get("history") is None else named["history"].num_frames

    def keep(_block: nn.Module, _inputs: Any, output: Any) -> None:
        reading.tokens = output[0]

    handles = [network.register_forward_pre_hook(begin, with_kwargs=True), block.register_forward_hook(keep)]
    try:
        yield reading
    finally:
        for handle in handles:
            handle.remove()


def load_teacher(config: TeacherConfig) -> TeacherEncoder:
    """Build the encoder with its weights, frozen, on the CPU.

    Raises:
        MissingDependencyError: timm is not installed.
        ConfigError: timm does not have the model or its weights, or the model gives no patch tokens.
        CheckpointError: The file does not hold the model's weights.
    """
    timm, name = _import_timm(), str(config.model)
    if ":" not in name and not timm.is_model(name):  # with a colon, a place of timm's own: hf-hub:, local-dir:
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"teacher.model is {name!r}, which timm {timm.__version__} does not have.{hint}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = timm.create_model(name, pretrained=config.checkpoint is None, num_classes=0)
        except (OSError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"teacher.model {name!r} can't be loaded: {reason}; give its weights as teacher.checkpoint=FILE.safetensors"
            ) from error
    if config.checkpoint is not None:
        _load_weights(model, Path(config.checkpoint), name)
    if config.image_size is not None:
        _set_input_size(model, config.image_size, name)
    return TeacherEncoder(model, name=name, frames_per_pass=config.frames_per_pass)


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError("timm", "vision", "a teacher") from error
    except RuntimeError as error:  # a torchvision that does not fit torch: "operator torchvision::nms does not exist"
        raise ConfigError(
            f"a teacher needs timm, which can't be imported: {first_line(error)}; install the torchvision that fits your torch"
        ) from error
    return timm


def _load_weights(model: nn.Module, path: Path, name: str) -> None:
    """Load every weight; a classifier in the file, which the model is built without, is left there."""
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"teacher.checkpoint {str(path)!r} can't be read: {error}") from error
    own = model.state_dict()
    weights = {key: value for key, value in weights.items() if key in own or not key.startswith(("head", "fc"))}
    wrong = sorted(own.keys() ^ weights.keys()) or [key for key in own if own[key].shape != weights[key].shape]
    if wrong:
        raise CheckpointError(
            f"teacher.checkpoint {str(path)!r} does not hold the weights of {name!r}: {wrong[0]} differs"
        )
    model.load_state_dict(weights)


def _set_input_size(model: Any, side: int, name: str) -> None:
    if not hasattr(model, "set_input_size"):
        raise ConfigError(f"teacher.image_size can't be set: {name!r} sees one size only; leave it out")
    try:
        model.set_input_size(img_size=(side, side))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"teacher.image_size is {side}, which {name!r} does not take: {error}") from error
    cells = model.patch_embed.patch_size
    if side % cells[0] or side % cells[1]:
        raise ConfigError(f"teacher.image_size is {side}; allowed: multiples of {name!r}'s patches, {tuple(cells)}")


def _no_patches(name: str, why: str) -> str:
    return f"teacher.model is {name!r}, which can't be a teacher: {why}; allowed: vision transformers of timm"


def _resize(images: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c h2 w2"]:
    """Resize bilinearly; where it becomes smaller, over the whole area of a new site."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
