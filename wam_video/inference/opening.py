"""Opening a checkpoint whose kind its folder tells: a world action model, or the baseline that only acts."""

from os import PathLike, fspath
from typing import Any

from wam_video.errors import CheckpointError, one_of
from wam_video.inference import loading
from wam_video.inference.checkpoint import HUB_OPTIONS
from wam_video.inference.diffusion_policy import DiffusionPolicyPipeline
from wam_video.inference.pipeline import WAMPipeline

Acting = WAMPipeline | DiffusionPolicyPipeline
"""Whatever can be asked for actions: `predict` in mode `policy`, `unanswered`, `sampling_facts`, `processor`."""

KINDS: dict[str, type[WAMPipeline] | type[DiffusionPolicyPipeline]] = {
    kind.__name__: kind for kind in (WAMPipeline, DiffusionPolicyPipeline)
}


def open_checkpoint(name_or_path: str | PathLike[str], **kwargs: Any) -> Acting:
    """Load the pipeline that a checkpoint's `model_index.json` names; arguments as of `WAMPipeline.from_pretrained`.

    Raises:
        CheckpointError: There is no such folder, it is damaged, or it is of another library's pipeline.
    """
    hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
    folder = loading.resolve(fspath(name_or_path), **hub)
    name = str(loading.read_json(folder / loading.INDEX).get("_class_name"))
    if name not in KINDS:
        raise CheckpointError(one_of(f"pipeline in {folder / loading.INDEX}", name, KINDS))
    return KINDS[name].from_pretrained(folder, **kwargs)
