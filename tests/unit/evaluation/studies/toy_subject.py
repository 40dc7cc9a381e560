"""The toy world as the subject of a study."""

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

from tests.unit.evaluation import toy_world
from wam_video.data.processor import WAMProcessor
from wam_video.evaluation.intervals import BootstrapConfig
from wam_video.evaluation.open_loop import Sampler
from wam_video.evaluation.study import StudyOptions, Subject
from wam_video.models.masks import AttentionConfig

WINDOW = {
    "num_context_frames": toy_world.CONTEXT,
    "num_future_frames": toy_world.FUTURE,
    "action_horizon": toy_world.FUTURE,
    "height": toy_world.SIDE,
    "width": toy_world.SIDE,
}


def toy_processor(spec: Any = toy_world.SPEC, window: Any = WINDOW) -> WAMProcessor:
    """The processor of a model that was trained on actions of -2 to 2."""
    row = {"mean": 0.0, "std": 2.0**0.5, "min": -2.0, "max": 2.0, "q01": -2.0, "q99": 2.0}
    stats = {
        what: {k: [v] * width for k, v in row.items()} | {"count": 1000}
        for what, width in (("actions", spec.action_dim), ("state", spec.state_dim))
    }
    return WAMProcessor([asdict(spec)], {spec.name: stats}, window=window)


def toy_subject(sampler: Sampler, n: int = 40, processor: WAMProcessor | None = None, **changes: Any) -> Subject:
    """A model on windows of the toy world."""
    attention = SimpleNamespace(attention=AttentionConfig())
    values: dict[str, Any] = {
        "name": "toy",
        "pipe": SimpleNamespace(transformer=attention, processor=processor or toy_processor()),
        "sampler": sampler,
        "data": SimpleNamespace(dataset=SimpleNamespace(batch=toy_world.fetch), facts={}, groups=()),
        "group": toy_world.make_group(n),
        "options": StudyOptions(),
        "seed": 0,
        "batch_size": 16,
        "num_inference_steps": None,
        "device": "cpu",
        "bootstrap": BootstrapConfig(num_draws=200),
    }
    return Subject(**values | changes)
