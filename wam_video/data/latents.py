"""Pre-encoded windows in shards: how bfloat16 is stored, and what a folder's latents were made by.

A member `<key>.latents.<view>.npy` holds the latents of one view of every window of the clip, `n c t h w`, in the order of
`windows.anchors` (every `every`-th of them), and `<key>.teacher.<view>.npy` a teacher's features of their token frames,
`n d t h w`. npy knows no bfloat16: the array is uint16, the number's own 16 bits. Windows
are encoded one by one and not clips, because a causal codec's latent depends on where its window began.
"""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt16
from torch import Tensor

from wam_video.data.windows import WindowConfig
from wam_video.errors import DataError

OPTION = "encoded"
"""Key of `Manifest.options` under which an `Encoding` is kept."""

_VERSION = 1
_SHARED = ("num_context_frames", "num_future_frames", "context_stride_s", "future_stride_s", "height", "width")


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What the latents of a folder of shards are."""

    codec: str
    """Hash of the codec: configuration and weights."""
    about: Mapping[str, Any]
    """The codec's configuration, for people."""
    window: Mapping[str, Any]
    """The fields of `WindowConfig` that the latents depend on."""
    max_views: int
    """Views that were encoded; fewer may be read."""
    every: int = 1
    """Only every so manieth window of a clip was encoded."""
    keep_video: bool = False
    """The pixels are there, too."""
    teacher: Mapping[str, Any] = field(default_factory=dict)
    """What a teacher's features are, where they were stored too: `hash`, `model` and `patch_size` of the network's tokens."""
    dtype: str = "bfloat16 as uint16"
    version: int = _VERSION

    @classmethod
    def of(
        cls,
        codec: str,
        about: Mapping[str, Any],
        window: WindowConfig,
        *,
        every: int,
        keep_video: bool,
        teacher: Mapping[str, Any] | None = None,
    ) -> "Encoding":
        """Describe latents that are about to be made."""
        shared = {name: getattr(window, name) for name in _SHARED}
        return cls(
            codec=codec,
            about=about,
            window=shared,
            max_views=window.max_views,
            every=every,
            keep_video=keep_video,
            teacher=teacher or {},
        )

    def to_option(self) -> dict[str, Any]:
        """Return what the manifest keeps."""
        return asdict(self)

    def check_window(self, window: WindowConfig, name: str) -> None:
        """Refuse windows that are not those that were encoded.

        Raises:
            DataError: The message names the first difference.
        """
        for key in _SHARED:
            wanted, held = getattr(window, key), self.window.get(key)
            if wanted != held:
                raise DataError(
                    f"dataset {name!r} holds latents of windows with {key} {held}, the run has {wanted}; set data.window.{key} "
                    "or encode the dataset again"
                )
        if window.max_views > self.max_views:
            raise DataError(
                f"dataset {name!r} holds latents of {self.max_views} view(s), the run has max_views {window.max_views}; "
                "encode the dataset again with more"
            )


def encoding_of(options: Mapping[str, Any], name: str) -> Encoding | None:
    """Return what a manifest's options say of latents; None if the folder has none.

    Raises:
        DataError: They are of a newer version.
    """
    if OPTION not in options:
        return None
    try:
        encoding = Encoding(**options[OPTION])
    except TypeError as error:
        raise DataError(f"dataset {name!r}: its record of latents is broken ({error}); encode it again") from error
    if encoding.version > _VERSION:
        raise DataError(
            f"dataset {name!r}: latents of version {encoding.version}; this library reads up to {_VERSION}: update wam-video"
        )
    return encoding


def to_npy(latents: Float[Tensor, "*shape"]) -> bytes:
    """Return an npy file of the numbers rounded to bfloat16, as uint16."""
    bits = latents.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint16).numpy()
    sink = io.BytesIO()
    np.lib.format.write_array(sink, bits, version=(1, 0), allow_pickle=False)
    return sink.getvalue()


def from_bits(bits: UInt16[np.ndarray, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the bfloat16 numbers that `to_npy` stored.

    >>> from_bits(np.array([0x3F80, 0xC000], np.uint16)).tolist()
    [1.0, -2.0]
    """
    return torch.from_numpy(np.ascontiguousarray(bits)).view(torch.bfloat16)
