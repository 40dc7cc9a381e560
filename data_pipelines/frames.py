"""Views of frames that are no video: encoded images in memory, and any view turned the right way up."""

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from wam_video.data.schema import ViewSource
from wam_video.data.video import MAX_FRAME_PIXELS
from wam_video.errors import DataError

TURNS = ("none", "flip", "mirror", "rotate")
"""`flip` is upside down to upright, `mirror` left to right, `rotate` both."""

_STEPS = {"none": (1, 1), "flip": (-1, 1), "mirror": (1, -1), "rotate": (-1, -1)}


def decode_image(content: bytes, where: str, *, swap_colours: bool = False) -> UInt8[np.ndarray, "h w c"]:
    """Decode one JPEG, PNG or their like to RGB.

    Args:
        content: The file's bytes; zeros after its end are allowed.
        where: For messages.
        swap_colours: Exchange red and blue, for images whose writer took one order for the other.

    Raises:
        DataError: No readable image, or one with more than `MAX_FRAME_PIXELS`, which is not decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is stricter
            image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP", "BMP"))
        if image.width * image.height > MAX_FRAME_PIXELS:
            raise DataError(f"{where}: image of {image.width}x{image.height}; at most {MAX_FRAME_PIXELS} pixels")
        frame = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: not a readable image ({error}); it may be truncated") from error
    return frame[..., ::-1] if swap_colours else frame


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedImagesView:
    """A camera whose frames are encoded images in memory, decoded when read (a `schema.ViewSource`)."""

    images: Sequence[bytes]
    times: Float[np.ndarray, " f"]
    where: str
    """For messages, e.g. the file and the name of the camera in it."""

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Yield every frame in order.

        Raises:
            DataError: One is no readable image.
        """
        for number, content in enumerate(self.images):
            yield decode_image(content, f"{self.where}, frame {number}")


@dataclass(frozen=True, kw_only=True, eq=False)
class TurnedView:
    """Another view, turned."""

    view: ViewSource
    turn: str
    """One of `TURNS`."""

    @property
    def times(self) -> Float[np.ndarray, " f"]:
        """Seconds of each frame."""
        return self.view.times

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Yield every frame in order."""
        down, right = _STEPS[self.turn]
        for frame in self.view.frames():
            yield np.ascontiguousarray(frame[::down, ::right])


def as_uint8(frame: Shaped[np.ndarray, "h w c"], where: str) -> UInt8[np.ndarray, "h w c"]:
    """Return an image as uint8 `h w 3`: other types hold 0 to 255, too.

    Raises:
        DataError: It is no colour image, or its values are others.
    """
    if frame.ndim != 3 or frame.shape[-1] not in (3, 4):
        raise DataError(f"{where}: frame of shape {frame.shape}; expected height, width, 3")
    frame = frame[..., :3]
    if frame.dtype == np.uint8:
        return frame
    if frame.dtype.kind not in "fiu" or not np.isfinite(frame).all() or frame.min() < 0 or frame.max() > 255:
        raise DataError(f"{where}: {frame.dtype} values from {frame.min()} to {frame.max()}; expected 0 to 255")
    return np.rint(frame).astype(np.uint8)
