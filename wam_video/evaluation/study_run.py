"""Run the studies of one model on one body: what they need is opened once, what they lack is said."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wam_video.data.processor import WAMProcessor
from wam_video.data.simulation import Environment, open_environment
from wam_video.errors import ConfigError
from wam_video.evaluation.intervals import BootstrapConfig
from wam_video.evaluation.open_loop import Group, Sampler
from wam_video.evaluation.study import Findings, Study, StudyOptions, Subject
from wam_video.evaluation.windows import EvalData
from wam_video.inference.pipeline import WAMPipeline

_SHARED = (
    "num_context_frames",
    "num_future_frames",
    "context_stride_s",
    "future_stride_s",
    "action_horizon",
    "max_views",
    "height",
    "width",
)
"""Of the windows of a model and of the one that reads the actions out of its video."""


@dataclass(frozen=True, kw_only=True)
class Studied:
    """A study with what it found."""

    study: Study
    findings: Findings

    def to_dict(self) -> dict[str, Any]:
        """Return what `metrics.json` keeps."""
        found = self.findings
        return {
            "name": self.study.name,
            "rows": [row.to_dict() for row in found.rows],
            "checks": [a.to_dict() for a in found.answers],
            "left_out": [{"metric": metric, "reason": reason} for metric, reason in found.left_out],
            **({"timing": found.timing} if found.timing else {}),
        }


def run_studies(studies: Sequence[Study], subject: Subject) -> list[Studied]:
    """Run each study; the random state of torch is put back after each, so that none depends on those before it."""
    found = []
    for study in studies:
        state = torch.random.get_rng_state()
        found.append(Studied(study=study, findings=study.run(subject)))
        torch.random.set_rng_state(state)
    return found


def make_subject(
    name: str,
    pipe: WAMPipeline,
    sampler: Sampler,
    data: EvalData,
    group: Group,
    *,
    options: StudyOptions,
    inverse: Sampler | None,
    settings: "StudySettings",
) -> Subject:
    """Return one model on one body, with its simulator where one was named."""
    return Subject(
        name=name,
        pipe=pipe,
        sampler=sampler,
        data=data,
        group=group,
        options=options,
        seed=settings.seed,
        batch_size=settings.batch_size,
        num_inference_steps=settings.num_inference_steps,
        device=settings.device,
        bootstrap=BootstrapConfig(seed=settings.seed),
        inverse=inverse,
        open_environment=_opener(options, pipe, group),
    )


def check_reader(name: str, model: WAMProcessor, reader: WAMProcessor) -> None:
    """Check that an inverse model reads windows like those that the scored model makes.

    Raises:
        ConfigError: Their frames lie at other times or are of another size, or their chunks of actions are not as long.
    """
    differences = [
        f"{field} {getattr(reader.window, field)} (model {name!r}: {getattr(model.window, field)})"
        for field in _SHARED
        if getattr(reader.window, field) != getattr(model.window, field)
    ]
    if differences:
        raise ConfigError(
            f"--inverse-model reads windows with {', '.join(differences)}; give one that was trained on windows of the same shape"
        )


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What all subjects of a run share."""

    seed: int
    batch_size: int
    num_inference_steps: int | None
    device: str


def _opener(options: StudyOptions, pipe: WAMPipeline, group: Group) -> Callable[[], Environment] | None:
    if options.env is None:
        return None
    env, window = options.env, pipe.processor.window
    if window.height is None or window.width is None:
        raise ConfigError(
            f"--env is {env!r}, but the model does not say what size of pictures it reads; leave out the studies that simulate"
        )
    size = (window.height, window.width)

    def open_it() -> Environment:
        return open_environment(env, size, **options.env_options)

    world = open_it()
    fits = world.spec.name == group.spec.name
    world.close()
    return open_it if fits else None
