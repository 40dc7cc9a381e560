"""`wam-video evaluate` as a function: models and data in; figures, a page and their provenance out."""

import json
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from wam_video import __version__
from wam_video.data.simulation import environment_targets
from wam_video.errors import ConfigError, DataError, one_of
from wam_video.evaluation.by_episode import EpisodeSums, sums_by_episode
from wam_video.evaluation.intervals import BootstrapConfig
from wam_video.evaluation.opened import EvaluateConfig, Opened, open_model, pipeline_sampler
from wam_video.evaluation.processes import measure_groups
from wam_video.evaluation.report import Report
from wam_video.evaluation.scores import answer_checks, score_rows
from wam_video.evaluation.sections import Unit
from wam_video.evaluation.studies import STUDIES
from wam_video.evaluation.study import select
from wam_video.evaluation.study_run import Studied, StudySettings, check_reader, make_subject, run_studies
from wam_video.evaluation.windows import EvalData
from wam_video.evaluation.wording import LEFT_OUT
from wam_video.inference import loading
from wam_video.inference.opening import Acting
from wam_video.inference.pipeline import WAMPipeline
from wam_video.log import get_logger

_LOG = get_logger(__name__)

SCHEMA_VERSION = 1
"""Of `metrics.json`."""


def evaluate(
    config: EvaluateConfig,
    command: str = "",
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Report:
    """Score every model in every mode.

    Args:
        config: What to do.
        command: For the record.
        on_progress: Called with the model's name, the windows done and their number.

    Raises:
        ConfigError: The request doesn't fit a model.
        CheckpointError: A model can't be loaded.
        DataError: The data or a training log can't be read.
        WorkerDiedError: One of the processes died.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    check_files(config)
    training = {name: read_log(path) for name, path in config.training_logs.items()}
    units: list[Unit] = []
    models: list[dict[str, Any]] = []
    studies: dict[str, list[tuple[str, Studied]]] = {}
    sums: dict[str, list[EpisodeSums]] = {}
    facts: Mapping[str, Any] = {}
    for name in config.models:
        opened = open_model(config, name)
        facts = facts or opened.data.facts
        found, sums[name], seconds = _run_model(config, name, opened, on_progress)
        units += found
        studied = _study_model(config, name, opened.pipe, opened.data)
        studies[name] = studied
        models.append(
            _describe(name, config, opened, found)
            | {"studies": [{"embodiment": body} | s.to_dict() for body, s in studied]}
            | {"timing": {"seconds": round(seconds, 3)}}
        )
    document = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "library_version": __version__,
        "commit": commit(),
        "data": dict(facts),
        "settings": {"modes": " ".join(config.modes), "seed": config.seed, "confidence": "95 % over episodes"},
        "environment": environment(config.device),
        "models": models,
        "left_out": [{"metric": metric, "reason": reason} for metric, reason in LEFT_OUT],
        "timing": {
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 3),
            "processes": config.processes,
        },
    }
    return Report(units=units, modes=config.modes, document=document, training=training, studies=studies, sums=sums)


def check_files(config: EvaluateConfig) -> None:
    """Refuse what studies could not open, before the work that would be lost.

    Raises:
        ConfigError: There is no such environment, file or checkpoint.
    """
    options = config.study_options
    if options.env is not None and (name := options.env.partition(":")[0]) not in environment_targets():
        raise ConfigError(one_of("--env", name, environment_targets()))
    for metric, file in options.weights.items():
        if not Path(file).is_file():
            raise ConfigError(f"--weights {metric}={file} is no file; give the safetensors file of its network")
    if options.inverse_model is not None:
        loading.resolve(options.inverse_model)


def _study_model(config: EvaluateConfig, name: str, pipe: Acting, data: EvalData) -> list[tuple[str, Studied]]:
    """Run the studies on every body that the data hold; they ask for video, so that a policy alone has none."""
    chosen = select(config.studies, STUDIES)
    if not chosen:
        return []
    if not isinstance(pipe, WAMPipeline):
        _LOG.warning("studies are left out for %s: it makes no video", name)
        return []
    options, sampler = config.study_options, pipeline_sampler(pipe, config.num_inference_steps)
    reader = _separate_reader(config, name, pipe)
    settings = StudySettings(
        seed=config.seed,
        batch_size=config.batch_size,
        num_inference_steps=config.num_inference_steps,
        device=config.device,
    )
    found = []
    for group in data.groups:
        knows = reader is not None and group.spec.name in {
            spec["name"] for spec in reader.processor.config["embodiments"]
        }
        inverse = pipeline_sampler(reader) if reader is not None and knows else None
        subject = make_subject(name, pipe, sampler, data, group, options=options, inverse=inverse, settings=settings)
        found += [(group.spec.name, studied) for studied in run_studies(chosen, subject)]
    return found


def _separate_reader(config: EvaluateConfig, name: str, pipe: WAMPipeline) -> WAMPipeline | None:
    """Return the inverse model, unless it is the scored one: a model that reads its own video may collude with itself."""
    if config.study_options.inverse_model is None:
        return None
    folder, own = (loading.resolve(path) for path in (config.study_options.inverse_model, config.models[name]))
    if loading.model_hash(folder) == loading.model_hash(own):
        return None
    reader = WAMPipeline.from_pretrained(folder).to(config.device)
    check_reader(name, pipe.processor, reader.processor)
    return reader


def _run_model(
    config: EvaluateConfig, name: str, opened: Opened, on_progress: Callable[[str, int, int], None]
) -> tuple[list[Unit], list[EpisodeSums], float]:
    data = opened.data
    clock, done, total = time.monotonic(), 0, sum(len(g) for g in data.groups)
    draws = BootstrapConfig(seed=config.seed)
    units, sums = [], []

    def advance(count: int) -> None:
        nonlocal done
        done += count
        on_progress(name, done, total)

    for group, measured in zip(data.groups, measure_groups(config, name, opened, advance), strict=True):
        sums.append(sums_by_episode(measured, group))
        title = name if len(data.groups) == 1 else f"{name}, {group.spec.name}"
        units.append(
            Unit(
                title=title,
                model=name,
                spec=group.spec,
                rows=score_rows(measured, group, draws),
                answers=answer_checks(measured, group, config.modes, draws),
                shown=measured.shown,
            )
        )
    return units, sums, time.monotonic() - clock


def _describe(name: str, config: EvaluateConfig, opened: Opened, units: Sequence[Unit]) -> dict[str, Any]:
    folder, pipe, data = opened.folder, opened.pipe, opened.data
    answers = [a for unit in units for a in unit.answers]
    sampling = pipe.sampling_facts(config.num_inference_steps)
    adapter = config.adapters.get(name)
    adapted = {"adapter": adapter, "adapter_hash": loading.model_hash(loading.resolve(adapter))} if adapter else {}
    return adapted | {
        "name": name,
        "path": str(folder),
        "model_hash": loading.model_hash(folder),
        "num_parameters": sum(p.numel() for p in pipe.transformer.parameters()),
        "num_inference_steps": sampling["num_inference_steps"],
        "solver": sampling["solver"],
        "unanswered_modes": sorted(pipe.unanswered()),
        "window": pipe.processor.config["window"],
        "data": dict(data.facts),
        "rows": [row.to_dict() for unit in units for row in unit.rows],
        "checks": [a.to_dict() for a in answers],
        "flags": [f"{a.embodiment}: {a.check.flag}" for a in answers if a.status == "no"],
    }


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Read a training log, one JSON object a line.

    Raises:
        DataError: The file is missing, or a line is no JSON object.
    """
    if not Path(path).is_file():
        raise DataError(f"training log {str(path)!r} does not exist; give the metrics.jsonl of a run, or leave it out")
    lines = []
    for number, text in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise DataError(
                f"training log {path}, line {number}, is no JSON ({error}); give a metrics.jsonl"
            ) from error
        if not isinstance(line, dict):
            raise DataError(f"training log {path}, line {number}, is no JSON object; give a metrics.jsonl")
        lines.append(line)
    return lines


def environment(device: str) -> dict[str, Any]:
    """Return what the figures were made on."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """Return the commit of this package's own repository; None where it isn't part of one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", str(here.parent))
        return git("rev-parse", "HEAD") + (" and changes" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None
