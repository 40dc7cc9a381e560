"""What a frozen codec is, as a hash: latents that were stored by one are refused by another."""

import hashlib
import json
from functools import lru_cache

import torch

from wam_video.models.video_codec import Codec


@lru_cache(maxsize=2)
def codec_hash(codec: Codec) -> str:
    """Return a hash of a codec's class, configuration and float32 weights; the same on every device."""
    config = {key: value for key, value in codec.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps([type(codec).__name__, config], sort_keys=True, default=str).encode())
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
