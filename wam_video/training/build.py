"""From a configuration and a dataset to the parts of a model: codec, text encoder, processor, network."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from diffusers import AutoencoderKLWan
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPVisionModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
    UMT5EncoderModel,
)

from wam_video.data.processor import WAMProcessor
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.windows import WindowConfig
from wam_video.errors import CheckpointError, ConfigError, first_line
from wam_video.models.adapters import folder_hash
from wam_video.models.backbones import backbone_arguments
from wam_video.models.diffusion_policy import DiffusionPolicyTransformer
from wam_video.models.image_context import ImageContext
from wam_video.models.image_encoder import Fit
from wam_video.models.teacher import TeacherHead, read_block
from wam_video.models.text import build_byte_t5, encode_text
from wam_video.models.transformer import WAMTransformer
from wam_video.models.video_codec import Codec, PixelCodec, latent_channels, num_latents, spatial_factor
from wam_video.training.activations import checkpoint_activations
from wam_video.training.adapters import add_adapter
from wam_video.training.config import CodecConfig, ImageEncoderConfig, TextConfig, TrainConfig
from wam_video.training.sample import TrainingSample

_TABLES = ("action_embedder.", "state_embedder.", "action_proj_out.")


@dataclass(kw_only=True)
class Parts:
    """What a model is made of, and what an exporter gets (then with the averaged weights in place)."""

    transformer: WAMTransformer | DiffusionPolicyTransformer
    codec: Codec
    tokenizer: PreTrainedTokenizerBase
    text_encoder: PreTrainedModel
    processor: WAMProcessor
    image_encoder: CLIPVisionModel | None = None
    """Frozen; None where the network reads no image context."""
    base_hash: str = ""
    """Of the weights that an adapter is for, where a checkpoint folder holds them."""
    base_name: str = ""

    @property
    def wam(self) -> WAMTransformer:
        """The network where it is ours, which the caller knows."""
        if not isinstance(self.transformer, WAMTransformer):
            raise TypeError(f"the network is a {type(self.transformer).__name__}")
        return self.transformer


class Exporter(Protocol):
    """Writes a model folder that inference can load; handed in by the command line."""

    def __call__(self, folder: Path, parts: Parts, config: TrainConfig) -> None: ...


class TrainingModule(nn.Module):
    """The trained parts as one module, which is what a distributed engine wraps."""

    def __init__(self, parts: Parts, *, train_text: bool, head: TeacherHead | None = None) -> None:
        super().__init__()
        self.transformer = parts.wam
        self.text_encoder: PreTrainedModel | None = parts.text_encoder if train_text else None
        self.head = head
        self._tokenizer = parts.tokenizer

    def forward(self, sample: TrainingSample, *, taught: bool = False) -> tuple[Tensor | None, ...]:
        """Predict the video and the actions of a noisy sample; a tuple, for DeepSpeed finds tensors in nothing richer.

        With `taught` there is a third thing in it: what the head makes of the video tokens, `b v t h w d`.
        """
        if not taught:
            return self._predict(sample)
        if self.head is None:
            raise ValueError("nothing is taught without a head")
        with read_block(self.transformer, self.transformer.blocks[self.head.block]) as reading:
            video, actions = self._predict(sample)
        return video, actions, self.head(reading.video_tokens(self.transformer.config["patch_size"]))

    def _predict(
        self, sample: TrainingSample
    ) -> tuple[Float[Tensor, "b v c t h w"] | None, Float[Tensor, "b ta da"] | None]:
        dtype = self.transformer.proj_out.weight.dtype
        text = self._encode(sample.prompts) if sample.text_embeds is None else sample.text_embeds
        noisy = sample.noisy
        if noisy.x_t.video is None or noisy.clocks.video is None:
            raise ValueError("a training sample has at least its context frames")
        prediction = self.transformer(
            latents=noisy.x_t.video.to(dtype),
            t_video=noisy.clocks.video,
            latent_times=sample.latent_times,
            text_embeds=text.to(dtype),
            embodiment=sample.embodiment,
            actions=None if noisy.x_t.actions is None else noisy.x_t.actions.to(dtype),
            t_action=noisy.clocks.actions,
            action_times=sample.action_times,
            state=sample.state,
            state_mask=sample.state_mask,
            view_mask=sample.view_mask,
            condition=sample.condition,
            image_embeds=None if sample.image_embeds is None else sample.image_embeds.to(dtype),
            num_context=sample.num_context,
            history=sample.history,
        )
        return prediction.video, prediction.actions

    def _encode(self, prompts: tuple[str, ...]) -> Tensor:
        if self.text_encoder is None:
            raise ValueError("the text encoder is frozen, so the sample must bring text_embeds")
        distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        rows = encode_text(self._tokenizer, self.text_encoder, list(distinct))
        return rows[[distinct[prompt] for prompt in prompts]]


def build_parts(config: TrainConfig, embodiments: Mapping[str, EmbodimentSpec], processor: WAMProcessor) -> Parts:
    """Build every part of the model; the trained ones with weights drawn from the seed, or of `backbone` or `init_from`.

    Raises:
        ConfigError: The windows don't fit the codec and the patches, or the parts don't fit the backbone.
        CheckpointError: `backbone` or `init_from` does not fit.
    """
    codec = build_codec(config.codec)
    check_sizes(config, codec, processor.window)
    tokenizer, text_encoder = build_text(config.text, config.seed)
    _check_widths(config, latent_channels(codec), text_encoder.config.d_model)
    arguments = transformer_arguments(config, embodiments, latent_channels(codec), text_encoder.config.d_model)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        transformer = _build_transformer(config.backbone, arguments)
    parts = Parts(
        transformer=transformer,
        codec=codec,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        processor=processor,
        image_encoder=build_image_encoder(config.image_encoder),
    )
    image_context(parts, config.image_encoder)
    if config.init_from is not None:
        load_initial_weights(parts, Path(config.init_from))
        if config.adapter.kind != "none":
            parts.base_hash, parts.base_name = folder_hash(Path(config.init_from) / "transformer"), config.init_from
    add_adapter(transformer, config.adapter, config.seed)
    parts.codec.requires_grad_(False).eval()
    parts.text_encoder.requires_grad_(config.text.train)
    checkpoint_activations(transformer, config.gradient_checkpointing)
    return parts


def _build_transformer(backbone: str | None, arguments: dict[str, Any]) -> WAMTransformer:
    if backbone is None:
        return WAMTransformer(**arguments)
    return WAMTransformer.from_wan(backbone, **arguments).train()


def check_sizes(config: TrainConfig, codec: Codec, window: WindowConfig) -> None:
    """Refuse windows that do not fill whole latents and patches.

    Raises:
        ConfigError: The message names the key.
    """
    num_latents(codec, window.num_context_frames)
    num_latents(codec, window.num_frames)
    patch = config.model.get("patch_size", (1, 2, 2))
    for name, size, cells in (("height", window.height, patch[1]), ("width", window.width, patch[2])):
        side = spatial_factor(codec) * int(cells)
        if size is not None and size % side:
            raise ConfigError(
                f"data.window.{name} is {size} pixels; allowed: multiples of {side} (the codec's {spatial_factor(codec)} times "
                f"model.patch_size's {cells}); set data.window.height and width, codec.patch_size or model.patch_size"
            )


def build_on_meta(config: TrainConfig, embodiments: Mapping[str, EmbodimentSpec]) -> WAMTransformer:
    """Return the network without memory for its weights; reads those configs of pretrained parts that yours leaves open.

    Raises:
        ConfigError: The network is not ours, or the parts don't fit it.
    """
    if config.network != "wam":
        raise ConfigError(f"network is {config.network!r}; allowed here: 'wam'")
    codec = config.codec
    channels = codec.latent_channels or _wan_channels(codec) if codec.kind == "wan" else 3 * codec.patch_size**2
    arguments = transformer_arguments(config, embodiments, channels, text_channels(config.text))
    if config.backbone is not None:
        arguments = backbone_arguments(WAMTransformer, config.backbone, arguments)
    with torch.device("meta"):
        transformer = WAMTransformer(**arguments)
    if config.teacher.kind != "none":
        config.teacher.block(len(transformer.blocks))
    return transformer


def text_channels(text: TextConfig) -> int:
    """Return the width of the text embeddings; reads the encoder's config where yours leaves it open.

    Raises:
        CheckpointError: It can't be read.
    """
    if text.kind == "byte_t5":
        return text.d_model
    if text.channels:
        return text.channels
    with _loading("text.path", text.path, "a T5 encoder and its subfolder"):
        return AutoConfig.from_pretrained(str(text.path), subfolder=text.subfolder).d_model


def _wan_channels(codec: CodecConfig) -> int:
    with _loading("codec.path", codec.path, "a folder or hub id of an AutoencoderKLWan"):
        config: Any = AutoencoderKLWan.load_config(str(codec.path), subfolder=codec.subfolder)
    return int(config["z_dim"])


def count_parameters(config: TrainConfig, embodiments: Mapping[str, EmbodimentSpec]) -> int:
    """Return the number of parameters of the network, built on the meta device; reads no weights."""
    return sum(p.numel() for p in build_on_meta(config, embodiments).parameters())


def _check_widths(config: TrainConfig, channels: int, text_dim: int) -> None:
    """Refuse widths in the configuration that the loaded parts do not have."""
    declared = {"codec.latent_channels": config.codec.latent_channels, "text.channels": config.text.channels}
    for (name, value), real in zip(declared.items(), (channels, text_dim), strict=True):
        if value is not None and value != real:
            raise ConfigError(f"{name} is {value}, but the part that was loaded has {real}; set it so, or leave it out")


@contextmanager
def _loading(key: str, path: str | None, wanted: str) -> Iterator[None]:
    """Turn what diffusers and transformers raise for a path into one line; no hub is asked for what can't be an id."""
    if not Path(str(path)).exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise CheckpointError(f"{key} {path!r} is no folder and no hub id 'owner/name'; give {wanted}")
    try:
        yield
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{key} {path!r} can't be loaded ({first_line(error)}); give {wanted}") from error


def build_codec(config: CodecConfig) -> Codec:
    """Build the video codec, frozen.

    Raises:
        CheckpointError: It can't be loaded.
    """
    if config.kind == "wan":
        with _loading("codec.path", config.path, "a folder or hub id of an AutoencoderKLWan"):
            return AutoencoderKLWan.from_pretrained(config.path, subfolder=config.subfolder)
    return PixelCodec(patch_size=config.patch_size, mean=config.mean, std=config.std)


def build_text(config: TextConfig, seed: int) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Build or load the text encoder and its tokenizer.

    Raises:
        CheckpointError: It can't be loaded.
    """
    if config.kind == "byte_t5":
        return build_byte_t5(
            d_model=config.d_model,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            max_length=config.max_length,
            seed=seed,
        )
    with _loading("text.path", config.path, "a T5 encoder, its subfolder and that of its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            config.path, subfolder=config.tokenizer_subfolder, model_max_length=config.max_length
        )
        umt5 = AutoConfig.from_pretrained(str(config.path), subfolder=config.subfolder).model_type == "umt5"
        kind = UMT5EncoderModel if umt5 else T5EncoderModel
        return tokenizer, kind.from_pretrained(str(config.path), subfolder=config.subfolder).eval()


def build_image_encoder(config: ImageEncoderConfig) -> CLIPVisionModel | None:
    """Load the encoder of first frames, frozen; None where there is none.

    Raises:
        CheckpointError: It can't be loaded.
    """
    if config.kind == "none":
        return None
    with _loading("image_encoder.path", config.path, "a CLIP vision model and its subfolder"):
        encoder = CLIPVisionModel.from_pretrained(str(config.path), subfolder=config.subfolder)
    return encoder.requires_grad_(False).eval()


def image_context(parts: Parts, config: ImageEncoderConfig) -> ImageContext:
    """Return what makes the first-frame condition and image context that our network reads, if it reads any.

    Raises:
        ConfigError: Network, codec and image encoder do not fit each other.
    """
    return ImageContext(parts.wam.config, parts.codec, parts.image_encoder, cast(Fit, config.fit))


def transformer_arguments(
    config: TrainConfig, embodiments: Mapping[str, EmbodimentSpec], channels: int, text_dim: int
) -> dict[str, Any]:
    """Return every argument of the network: the configured ones and those that follow from the other parts."""
    given = dict(config.model)
    if "patch_size" in given:
        given["patch_size"] = tuple(given["patch_size"])
    bodies = [
        {"name": spec.name, "action_dim": spec.action_dim, "state_dim": spec.state_dim} for spec in embodiments.values()
    ]
    return {
        **given,
        "embodiments": bodies,
        "num_views": config.data.window.max_views,
        "in_channels": channels,
        "text_dim": text_dim,
    }


def load_initial_weights(parts: Parts, folder: Path) -> None:
    """Copy the weights of a checkpoint folder into `parts`; tables of embodiments by name, the rest by key.

    Raises:
        CheckpointError: The folder has no transformer, or a weight has another shape.
    """
    if not (folder / "transformer" / "config.json").is_file():
        raise CheckpointError(
            f"init_from is {str(folder)!r}, which has no transformer/config.json; give a checkpoint folder"
        )
    source = WAMTransformer.from_pretrained(folder / "transformer")
    old = {body["name"]: row for row, body in enumerate(source.config["embodiments"])}
    new = {body["name"]: row for row, body in enumerate(parts.wam.config["embodiments"])}
    target, weights = parts.wam.state_dict(), source.state_dict()
    with torch.no_grad():
        for name, value in target.items():
            if name not in weights:
                raise CheckpointError(
                    f"init_from {str(folder)!r} has no weight {name!r}; its model.* settings differ from yours"
                )
            if name.startswith(_TABLES):
                for body in old.keys() & new.keys():
                    _copy_corner(weights[name][old[body]], value[new[body]])
            elif name == "view_embedding":
                _copy_corner(weights[name], value)
            elif weights[name].shape != value.shape:
                raise CheckpointError(
                    f"init_from: {name} is {tuple(weights[name].shape)} in {str(folder)!r} and {tuple(value.shape)} here; "
                    "use the model.*, codec.* and text.* settings of that checkpoint"
                )
            else:
                value.copy_(weights[name])
    text = folder / "text_encoder"
    if (text / "config.json").is_file():
        parts.text_encoder.load_state_dict(type(parts.text_encoder).from_pretrained(text).state_dict())


def _copy_corner(source: Tensor, target: Tensor) -> None:
    corner = tuple(slice(0, min(a, b)) for a, b in zip(source.shape, target.shape, strict=True))
    target[corner] = source[corner].to(target)
