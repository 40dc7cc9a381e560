"""wam_video: train and run world action models, where a mode is a path across the noise square.

Importing the package is cheap: public names are resolved when they are first used, so that `wam-video --help` and the
data tools never wait for torch or diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wam_video.data.processor import WAMProcessor
    from wam_video.inference.pipeline import WAMPipeline
    from wam_video.models.transformer import WAMTransformer
    from wam_video.tensors import Batch, Mode, Prediction

__version__ = "0.1.0"

__all__ = ["Batch", "Mode", "Prediction", "WAMPipeline", "WAMProcessor", "WAMTransformer", "__version__"]

_PUBLIC = {
    "Batch": "wam_video.tensors",
    "Mode": "wam_video.tensors",
    "Prediction": "wam_video.tensors",
    "WAMPipeline": "wam_video.inference.pipeline",
    "WAMProcessor": "wam_video.data.processor",
    "WAMTransformer": "wam_video.models.transformer",
}
"""Public name -> the module that defines it. Component classes of the pipeline must stand here (see below)."""

_DIFFUSERS = {"ModelMixin": "diffusers.models.modeling_utils", "SchedulerMixin": "diffusers.schedulers.scheduling_utils"}
"""Base classes that diffusers looks up on the library of a component, which for ours is this package."""


def register_with_diffusers() -> None:
    """Make `save_pretrained` and `from_pretrained` of diffusers pipelines know this package's components.

    Diffusers writes a component of an unknown library as its full module path and refuses to load it from a hub
    folder. Once the package is in its table, the index holds `["wam_video", "WAMTransformer"]`, and the class and
    its bases are looked up as attributes of `wam_video`. Harmless when called again. Every module that defines a
    pipeline calls it at import; resolving a public component class here does so too.
    """
    from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES

    methods = {name: ["save_pretrained", "from_pretrained"] for name in (*_DIFFUSERS, "WAMProcessor")}
    LOADABLE_CLASSES.setdefault("wam_video", {}).update(methods)
    ALL_IMPORTABLE_CLASSES.update(methods)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        if name.startswith("WAM"):
            register_with_diffusers()
        value = getattr(import_module(_PUBLIC[name]), name)
    elif name in _DIFFUSERS:
        value = getattr(import_module(_DIFFUSERS[name]), name)
    else:
        raise AttributeError(f"module 'wam_video' has no attribute {name!r}; public names: {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
