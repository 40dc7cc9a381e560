"""What is evaluated, and one of its models opened with its windows: the same in every process."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from wam_video.errors import ConfigError, one_of
from wam_video.evaluation.open_loop import Generated, OpenLoopConfig, Sampler
from wam_video.evaluation.studies import STUDIES
from wam_video.evaluation.study import StudyOptions
from wam_video.evaluation.windows import EvalData, open_windows
from wam_video.inference import loading
from wam_video.inference.opening import Acting, open_checkpoint
from wam_video.tensors import Batch, Mode


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is evaluated, and how."""

    models: dict[str, str]
    """Name on the page -> checkpoint folder; shown side by side."""
    adapters: dict[str, str] = field(default_factory=dict)
    """Name on the page -> folder of the adapter that is put into that model."""
    data: str
    """Folder of shards."""
    modes: tuple[Mode, ...] = tuple(Mode)
    split: str = "val"
    num_windows: int = 128
    num_inference_steps: int | None = None
    """None: each checkpoint's own."""
    seed: int = 0
    batch_size: int = 16
    processes: int = 1
    """Among which the windows of the modes are shared out, whole batches at a time; changes no figure."""
    device: str = "cpu"
    training_logs: dict[str, str] = field(default_factory=dict)
    """Name -> `metrics.jsonl` of a run."""
    studies: tuple[str, ...] = ()
    """Names of `studies.STUDIES`, or `all`."""
    study_options: StudyOptions = field(default_factory=StudyOptions)

    def __post_init__(self) -> None:
        if not self.models or not self.modes:
            raise ConfigError("there is nothing to evaluate; give at least one model and one mode")
        for name in self.adapters:
            if name not in self.models:
                raise ConfigError(one_of("model of an adapter", name, self.models))
        for name in self.studies:
            if name not in (*STUDIES, "all"):
                raise ConfigError(one_of("--studies", name, (*STUDIES, "all")))
        if self.batch_size < 1:
            raise ConfigError(f"batch size is {self.batch_size}; allowed: 1 or more")
        if self.processes < 1:
            raise ConfigError(f"--processes is {self.processes}; allowed: 1 or more")


def pipeline_sampler(pipe: Acting, num_inference_steps: int | None = None) -> Sampler:
    """Return the pipeline as a sampler of recorded windows."""
    pipe.set_progress_bar_config(disable=True)

    def sample(mode: Mode, batch: Batch, seeds: Sequence[int]) -> Generated:
        made = pipe.predict(
            batch, mode.value, num_inference_steps=num_inference_steps, generator=list(seeds), output_type="pt"
        )
        actions, video = (None if x is None else torch.as_tensor(x) for x in (made.actions, made.video))
        return Generated(actions=actions, video=video)

    return sample


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model and the windows that it is scored on."""

    folder: Path
    pipe: Acting
    data: EvalData
    sampler: Sampler
    options: OpenLoopConfig


def open_model(config: EvaluateConfig, name: str) -> Opened:
    """Load a model of the request, and choose its windows.

    Raises:
        ConfigError: The request doesn't fit the model.
        CheckpointError: The model can't be loaded.
        DataError: The data can't be read.
    """
    folder = loading.resolve(config.models[name])
    pipe = open_checkpoint(folder)
    if name in config.adapters:
        pipe.load_adapter(config.adapters[name])
    pipe.to(config.device)
    return Opened(
        folder=folder,
        pipe=pipe,
        data=open_windows(pipe.processor, config.data, config.split, config.num_windows),
        sampler=pipeline_sampler(pipe, config.num_inference_steps),
        options=OpenLoopConfig(
            modes=config.modes,
            unanswered=pipe.unanswered(),
            batch_size=config.batch_size,
            seed=config.seed,
        ),
    )
