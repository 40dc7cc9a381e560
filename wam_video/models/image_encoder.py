"""The image context of Wan's image-to-video networks: CLIP tokens of the first frame."""

from typing import Literal, cast

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

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
