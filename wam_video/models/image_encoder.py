"""The image context of Wan's image-to-video networks: CLIP tokens of the first frame."""

from typing import Any, Literal, cast

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import CLIPImageProcessorPil, CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling

from wam_video.errors import ConfigError, one_of

Fit = Literal["crop", "stretch"]


def encode_image(
    encoder: CLIPVisionModel, image: Float[Tensor, "b 3 h w"], *, fit: Fit = "crop"
) -> Float[Tensor, "b i di"]:
    """Return the tokens of an image before CLIP's last layer: `b 257 1280` for the ViT-H/14 that Wan uses.

    Args:
        encoder: A CLIP vision model.
        image: In [-1, 1].
        fit: How the image becomes a square. "crop": the middle of it, as diffusers' `WanImageToVideoPipeline.encode_image`
            with the image processor of the released folders. "stretch": all of it, as in Wan's own code and DreamZero.

    Raises:
        ConfigError: `fit` is neither.
    """
    side = cast(int, encoder.config.image_size)
    if fit == "crop":
        pixels = _shortest_side(image.float(), side)
        top, left = (pixels.shape[-2] - side) // 2, (pixels.shape[-1] - side) // 2
        pixels = pixels[..., top : top + side, left : left + side]
    elif fit == "stretch":
        pixels = interpolate(image.float(), (side, side), mode="bicubic", align_corners=False)
    else:
        raise ConfigError(one_of("fit", fit, Fit.__args__))
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    pixels = ((pixels + 1) / 2 - mean) / std
    return encoder(pixels.to(encoder.dtype), output_hidden_states=True).hidden_states[-2].to(image)


def _shortest_side(image: Float[Tensor, "b 3 h w"], side: int) -> Float[Tensor, "b 3 h2 w2"]:
    """Resize so that the shorter side is `side`: bicubic and smoothed, in 256 levels after each axis, as Pillow does."""
    height, width = image.shape[-2:]
    short = min(height, width)
    new_height, new_width = height * side // short, width * side // short
    for size in ((height, new_width), (new_height, new_width)):
        if size != tuple(image.shape[-2:]):
            image = interpolate(image, size, mode="bicubic", antialias=True, align_corners=False)
            image = ((image + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
    return image


def image_processor(encoder: CLIPVisionModel, fit: str) -> CLIPImageProcessorPil:
    """Return the processor that goes beside an encoder in a checkpoint folder and says how pictures are made square.

    Raises:
        ConfigError: `fit` is unknown.
    """
    side = cast(int, encoder.config.image_size)
    if fit not in Fit.__args__:
        raise ConfigError(one_of("fit", fit, Fit.__args__))
    square = {"height": side, "width": side}
    crops = fit == "crop"
    return CLIPImageProcessorPil(
        size={"shortest_edge": side} if crops else square, crop_size=square, do_center_crop=crops
    )


def processor_fit(processor: Any, encoder: CLIPVisionModel) -> Fit:
    """Return how an image processor makes pictures square, which must be a way that `encode_image` knows.

    Raises:
        ConfigError: It is another way, or made for another encoder.
    """
    side, size = encoder.config.image_size, processor.size
    if processor.do_center_crop:
        fit, sides = "crop", (size["shortest_edge"], processor.crop_size["height"], processor.crop_size["width"])
    else:
        fit, sides = "stretch", (size["height"], size["width"])
    if any(length != side for length in sides):
        raise ConfigError(f"image_processor makes pictures of {sides} pixels, image_encoder reads {side}")
    numbers = (tuple(processor.image_mean), tuple(processor.image_std), processor.resample)
    wanted = (tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD), PILImageResampling.BICUBIC)
    if numbers != wanted:
        raise ConfigError(
            f"image_processor has image_mean, image_std and resample {numbers}; allowed: CLIP's own, {wanted}"
        )
    return cast(Fit, fit)
