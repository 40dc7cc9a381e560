"""Whether the parts of a checkpoint belong together, and which modes its attention can answer."""

from diffusers import AutoencoderKLWan
from transformers import BaseImageProcessor, CLIPVisionModel, PreTrainedModel

from wam_video.data.processor import WAMProcessor
from wam_video.errors import CheckpointError, ConfigError
from wam_video.flow.modes import MODES, ModeSpec, Role
from wam_video.models import video_codec
from wam_video.models.image_context import ImageContext
from wam_video.models.image_encoder import processor_fit
from wam_video.models.masks import AttentionConfig
from wam_video.models.transformer import WAMTransformer
from wam_video.models.video_codec import PixelCodec
from wam_video.tensors import Mode


def check_components(
    transformer: WAMTransformer,
    codec: PixelCodec | AutoencoderKLWan,
    text_encoder: PreTrainedModel | None,
    processor: WAMProcessor,
) -> None:
    """Check that network, codec, text encoder and processor are of one model.

    Raises:
        CheckpointError: They are not; the message says which numbers differ.
    """
    _check_embodiments(transformer, processor)
    config, channels = transformer.config, video_codec.latent_channels(codec)
    if channels != config["in_channels"]:
        raise CheckpointError(
            f"vae has {channels} latent channels, transformer reads {config['in_channels']}; they are of two models"
        )
    if processor.num_views > config["num_views"]:
        raise CheckpointError(
            f"processor has {processor.num_views} views, transformer at most {config['num_views']}; they are of two models"
        )
    width = getattr(getattr(text_encoder, "config", None), "d_model", config["text_dim"])
    if width != config["text_dim"]:
        raise CheckpointError(
            f"text_encoder is {width} wide, transformer reads {config['text_dim']}; they are of two models"
        )
    window, side = processor.window, video_codec.spatial_factor(codec)
    try:
        context = video_codec.num_latents(codec, window.num_context_frames)
        total = video_codec.num_latents(codec, window.num_context_frames + window.num_future_frames)
    except ConfigError as error:
        raise CheckpointError(f"the processor's window does not fit the vae: {error}") from error
    frames, rows, columns = config["patch_size"]
    for what, length, step in (
        ("context latents", context, frames),
        ("latents", total, frames),
        ("height", window.height, side * rows),
        ("width", window.width, side * columns),
    ):
        if length is not None and length % step:
            raise CheckpointError(
                f"the processor's window has {what} {length}; vae and transformer need a multiple of {step}"
            )


def image_context(
    transformer: WAMTransformer,
    codec: PixelCodec | AutoencoderKLWan,
    encoder: CLIPVisionModel | None,
    processor: BaseImageProcessor | None,
) -> ImageContext:
    """Return what makes the first-frame condition and the image context of a network, if it reads them.

    Raises:
        CheckpointError: A part that this needs is missing or of another model.
    """
    if (encoder is None) != (processor is None):
        there, missing = (
            ("image_processor", "image_encoder") if encoder is None else ("image_encoder", "image_processor")
        )
        raise CheckpointError(f"there is an {there}, but no {missing}; they go together")
    try:
        fit = "crop" if encoder is None else processor_fit(processor, encoder)
        return ImageContext(transformer.config, codec, encoder, fit)
    except ConfigError as error:
        raise CheckpointError(f"the parts of the image context do not fit: {error}") from error


def _check_embodiments(transformer: WAMTransformer, processor: WAMProcessor) -> None:
    keys = ("name", "action_dim", "state_dim")
    network = [tuple(body[key] for key in keys) for body in transformer.config["embodiments"]]
    known = [tuple(body[key] for key in keys) for body in processor.config["embodiments"]]
    for i, (ours, theirs) in enumerate(zip(network, known, strict=False)):
        if ours != theirs:
            raise CheckpointError(
                f"embodiment {i} (name, action_dim, state_dim) is {ours} in transformer and {theirs} in processor; "
                "they are of two models"
            )
    if len(network) != len(known):
        raise CheckpointError(
            f"transformer has {len(network)} embodiments, processor {len(known)}; they are of two models"
        )


def check_answer(rule: AttentionConfig, spec: ModeSpec) -> None:
    """Refuse a mode whose answer can't depend on what it is given, whatever the training.

    Raises:
        ConfigError: The message says which setting of the network it is.
    """
    if spec.gives_video and spec.actions is Role.GIVEN and not rule.video_sees_actions:
        raise ConfigError(
            "mode is 'forward', but this network's video is deaf to actions (model.attention.video_sees_actions is false): "
            "it would show the same future whatever they are; use mode 'video', or a network whose video sees them"
        )
    if spec.gives_actions and spec.video is Role.GIVEN and rule.actions_see_video == "observed":
        raise ConfigError(
            "mode is 'inverse', but this network's actions are blind to the future (model.attention.actions_see_video is "
            "'observed'): they would be a guess; use mode 'policy', or a network whose actions see it"
        )


def unanswered(rule: AttentionConfig) -> frozenset[Mode]:
    """Return the modes that `check_answer` refuses."""
    refused = set()
    for mode, spec in MODES.items():
        try:
            check_answer(rule, spec)
        except ConfigError:
            refused.add(mode)
    return frozenset(refused)
