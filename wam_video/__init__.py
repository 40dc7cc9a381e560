"""wam_video: train and run world action models, where a mode is a path across the noise square.

Importing the package is cheap: public names are resolved when they are first used, so that `wam-video --help` and the
data tools never wait for torch or diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wam_video.data.processor import WAMProcessor
    from wam_video.flow.scheduler import WAMScheduler
    from wam_video.inference.diffusion_policy import DiffusionPolicyPipeline
    from wam_video.inference.opening import open_checkpoint
    from wam_video.inference.outputs import WAMOutput
    from wam_video.inference.pipeline import WAMPipeline
    from wam_video.inference.stream import StreamSession
    from wam_video.models.diffusion_policy import DiffusionPolicyTransformer
    from wam_video.models.transformer import WAMTransformer
    from wam_video.models.video_codec import PixelCodec
    from wam_video.tensors import Batch, Mode, Prediction

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "DiffusionPolicyPipeline",
    "DiffusionPolicyTransformer",
    "Mode",
    "PixelCodec",
    "Prediction",
    "StreamSession",
    "WAMOutput",
    "WAMPipeline",
    "WAMProcessor",
    "WAMScheduler",
    "WAMTransformer",
    "__version__",
    "open_checkpoint",
]

_PUBLIC = {
    "Batch": "wam_video.tensors",
    "DiffusionPolicyPipeline": "wam_video.inference.diffusion_policy",
    "DiffusionPolicyTransformer": "wam_video.models.diffusion_policy",
    "Mode": "wam_video.tensors",
    "PixelCodec": "wam_video.models.video_codec",
    "Prediction": "wam_video.tensors",
    "StreamSession": "wam_video.inference.stream",
    "WAMOutput": "wam_video.inference.outputs",
    "WAMPipeline": "wam_video.inference.pipeline",
    "WAMProcessor": "wam_video.data.processor",
    "WAMScheduler": "wam_video.flow.scheduler",
    "WAMTransformer": "wam_video.models.transformer",
    "open_checkpoint": "wam_video.inference.opening",
}
"""Public name -> the module that defines it. Every component class of the pipeline must stand here, because diffusers
looks classes up as attributes of the library that a checkpoint's index names (see inference/registration.py)."""

_DIFFUSERS = {
    "ModelMixin": "diffusers.models.modeling_utils",
    "SchedulerMixin": "diffusers.schedulers.scheduling_utils",
}
"""Base classes that diffusers looks up on the library of a component, which for ours is this package."""


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        if _PUBLIC[name] != "wam_video.tensors":  # a component of the pipeline, the pipeline itself, or what makes one
            from wam_video.inference.registration import register_components

            register_components()
        value = getattr(import_module(_PUBLIC[name]), name)
    elif name in _DIFFUSERS:
        value = getattr(import_module(_DIFFUSERS[name]), name)
    else:
        raise AttributeError(f"module 'wam_video' has no attribute {name!r}; public names: {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
