"""`wam-video rollout` as a function: policies and an environment in; a record, figures and films out."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wam_video import __version__
from wam_video.data.simulation import Environment, open_environment
from wam_video.errors import ConfigError, DataError
from wam_video.evaluation.agents import CONTROLS, Control, ModelAgent, ModelOptions, control_agents
from wam_video.evaluation.evaluate import commit, environment
from wam_video.evaluation.films import imagination
from wam_video.evaluation.intervals import BootstrapConfig, estimate
from wam_video.evaluation.real_time import RealTimeAgent, RealTimeOptions, real_time
from wam_video.evaluation.rollout import Agent, Episode, Job, LoopConfig, execution_steps, roll
from wam_video.evaluation.success import Comparison, compare, compare_progress, paired, success_rate
from wam_video.inference import loading
from wam_video.inference.opening import Acting, open_checkpoint
from wam_video.inference.speed import speed_up

SCHEMA_VERSION = 1
"""Of `rollout.json`."""

_SIMULATORS = ("gym-pusht", "pymunk", "metaworld", "mujoco", "gymnasium")
_MIN_TASKS = 5
"""Fewer tasks than this say nothing about other tasks, so no interval over tasks is given."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """What is rolled out, and how."""

    models: dict[str, str]
    """Name on the page -> checkpoint folder or Hub id; may be empty where controls are not."""
    env: str
    env_options: dict[str, str] = field(default_factory=dict)
    episodes: int = 20
    """Of each task."""
    controls: tuple[str, ...] = ("expert", "random", "hold")
    size: tuple[int, int] | None = None
    """Of the frames, height and width; None: what the model reads."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    options: ModelOptions = field(default_factory=ModelOptions)
    real_time: RealTimeOptions | None = None
    """Decide while acting, in simulated time; None: a latency is only waited for."""
    against: tuple[str, ...] = ()
    """Records of earlier runs on the same starts, to compare with."""

    def __post_init__(self) -> None:
        if not self.models and not self.controls:
            raise ConfigError("there is nothing to roll out; give a model or a control")
        if self.episodes < 1:
            raise ConfigError(f"episodes is {self.episodes}; allowed: 1 or more")


@dataclass(frozen=True, kw_only=True)
class Played:
    """A policy and how its episodes went."""

    name: str
    is_model: bool
    episodes: Sequence[Episode]
    record: Mapping[str, Any]
    """Its part of the document."""


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """All that a run found."""

    played: Sequence[Played]
    comparisons: Sequence[Comparison]
    document: Mapping[str, Any]
    """The contents of `rollout.json`."""
    action_rate: float


def run(config: RolloutConfig, command: str = "", on_progress: Progress = lambda what, done, total: None) -> Rollouts:
    """Roll out every model and control on the same starts.

    Args:
        config: What to do.
        command: For the record.
        on_progress: Called with a policy's name, the episodes done and their number.

    Raises:
        ConfigError: The request fits neither environment nor model.
        CheckpointError: A model can't be loaded.
        DataError: A record to compare with can't be read, or had other starts.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    earlier = [policy for path in config.against for policy in _read_record(path)]
    played: list[Played] = []
    size, worlds = config.size, []
    for name, path in config.models.items():
        pipe = open_checkpoint(path).to(config.options.device)
        speed = {"speed": speed_up(pipe, config.options.speed)}
        size = _size(config, pipe, name)
        worlds = _worlds(config, size, worlds)
        agent = ModelAgent(name, pipe, worlds[0].spec, config.options)
        facts = _model_facts(agent, loading.resolve(path), config) | speed
        if config.real_time is not None:
            agent = RealTimeAgent(agent, config.loop, config.real_time)
        played.append(_play(config, worlds, agent, facts, on_progress))
    worlds = _worlds(config, size or (96, 96), worlds)
    for control in control_agents(config.controls, worlds[0]):
        played.append(_play(config, worlds, control, {"kind": "control"}, on_progress))  # noqa: PERF401 - it takes minutes
    comparisons = _compare(played, earlier)
    spec, tasks, limit = worlds[0].spec, worlds[0].tasks, config.loop.max_steps or worlds[0].max_steps
    for world in worlds:
        world.close()
    document = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "library_version": __version__,
        "commit": commit(),
        "settings": {
            "env": config.env, "env_options": dict(config.env_options), "tasks": list(tasks), "episodes_per_task": config.episodes,
            "max_steps": limit, "action_rate": spec.action_rate, "embodiment": spec.name, **_loop_facts(config.loop),
        },
        "simulators": {name: found for name in _SIMULATORS if (found := _version(name))},
        "environment": environment(config.options.device),
        "policies": [p.record for p in played],
        "comparisons": [c.to_dict() for c in comparisons],
        "timing": {"started": started.isoformat(timespec="seconds"), "seconds": round(time.monotonic() - clock, 3)},
    }  # fmt: skip
    return Rollouts(played=played, comparisons=comparisons, document=document, action_rate=spec.action_rate)


def _size(config: RolloutConfig, pipe: Acting, name: str) -> tuple[int, int]:
    window = pipe.processor.window
    if window.height is not None and window.width is not None:
        return window.height, window.width
    if config.size is None:
        raise ConfigError(f"model {name!r} does not say what size of pictures it reads; give --size, that of its data")
    return config.size


def _worlds(config: RolloutConfig, size: tuple[int, int], present: Sequence[Environment]) -> list[Environment]:
    """Return one environment a row that draws at this size, the present ones if they do."""
    if present and getattr(present[0], "size", None) == size:
        return list(present)
    for world in present:
        world.close()
    first = open_environment(config.env, size, **config.env_options)
    count = min(config.loop.rows, config.episodes * len(first.tasks))
    return [first, *(open_environment(config.env, size, **config.env_options) for _ in range(count - 1))]


def _play(
    config: RolloutConfig, worlds: Sequence[Environment], agent: Agent, facts: Mapping[str, Any], on_progress: Progress
) -> Played:
    tasks = worlds[0].tasks
    is_model = not isinstance(agent, Control)
    films = config.loop.films if is_model else 0
    jobs = [Job(task=t, index=i, filmed=i < films) for t in tasks for i in range(config.episodes)]
    clock, count = time.monotonic(), 0

    def count_up(episode: Episode) -> None:
        nonlocal count
        count += 1
        on_progress(agent.name, count, len(jobs))

    # a control shows what the world allows: it decides at every step and at once
    loop = real_time(config.loop) if isinstance(agent, RealTimeAgent) else config.loop
    loop = loop if is_model else replace(config.loop, execute=1, latency=0, deadline_s=None)
    episodes = roll(worlds, agent, jobs, loop, on_episode=count_up)
    pace = execution_steps(agent, loop)
    if isinstance(agent, RealTimeAgent):
        facts = {**facts, "real_time": agent.facts()}
    succeeded = [episode.success_step is not None for episode in episodes]
    record: dict[str, Any] = {
        "name": agent.name,
        **facts,
        "action_horizon": agent.horizon,
        "replan_interval_steps": pace,
        "replan_interval_s": pace / worlds[0].spec.action_rate,
        "success": success_rate(sum(succeeded), len(episodes)).to_dict(),
        "mean_best_progress": float(np.mean([max(o.progress for o in e.outcomes) for e in episodes])),
        "tasks": {task: _task_facts(task, episodes) for task in tasks},
        "over_tasks": _over_tasks(episodes, tasks),
        "late_decisions": sum(e.late for e in episodes),
        "held_steps": sum(e.held for e in episodes),
        "imagination": imagination([e for e in episodes if e.film], pace) if films else None,
        "episodes": [e.to_dict() for e in episodes],
        "timing": {"seconds": round(time.monotonic() - clock, 3), **_decision_times(agent)},
    }
    return Played(name=agent.name, is_model=is_model, episodes=episodes, record=record)


def _task_facts(task: str, episodes: Sequence[Episode]) -> dict[str, Any]:
    mine = [e for e in episodes if e.job.task == task]
    rate = success_rate(sum(e.success_step is not None for e in mine), len(mine))
    progress = float(np.mean([max(o.progress for o in e.outcomes) for e in mine]))
    return {"prompt": mine[0].prompt, **rate.to_dict(), "mean_best_progress": progress}


def _over_tasks(episodes: Sequence[Episode], tasks: Sequence[str]) -> dict[str, Any] | None:
    """Return the mean rate over tasks with an interval for other tasks like these (tasks are drawn again)."""
    if len(tasks) < _MIN_TASKS:
        return None
    sums = torch.tensor([[float(e.success_step is not None), 1.0] for e in episodes])
    found = estimate(sums, [e.job.task for e in episodes], lambda s: s[..., :1] / s[..., 1:], BootstrapConfig())[0]
    known = found.low != found.high  # all tasks alike: drawing them again says nothing of others
    low, high = (found.low, found.high) if known else (None, None)
    return {"rate": found.value, "low": low, "high": high, "tasks": len(tasks)}


def _decision_times(agent: Agent) -> dict[str, Any]:
    if not isinstance(agent, ModelAgent | RealTimeAgent) or not agent.calls:
        return {}
    seconds = [s for _, s in agent.calls]
    return {
        "decision_calls": len(agent.calls),
        "rows_a_call": round(float(np.mean([n for n, _ in agent.calls])), 2),
        "call_ms_median": round(1000 * float(np.median(seconds)), 2),
        "call_ms_p95": round(1000 * float(np.quantile(seconds, 0.95)), 2),
    }


def _model_facts(agent: ModelAgent, folder: Path, config: RolloutConfig) -> dict[str, Any]:
    pipe = agent.pipe
    return {
        "kind": "model",
        "path": str(folder),
        "model_hash": loading.model_hash(folder),
        "stats_hash": pipe.processor.config["stats_hash"],
        "num_parameters": sum(p.numel() for p in pipe.transformer.parameters()),
        "continuation": config.options.continuation,
        "clocks": pipe.sampling_facts(config.options.num_inference_steps, config.options.policy_path),
    }


def _loop_facts(loop: LoopConfig) -> dict[str, Any]:
    return {
        "seed": loop.seed,
        "rows": loop.rows,
        "execute": loop.execute,
        "latency_steps": loop.latency,
        "deadline_s": loop.deadline_s,
        "disturbance": asdict(loop.disturbance),
    }


def _compare(played: Sequence[Played], earlier: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """Compare every two models, every model with the controls, and each with earlier ones."""
    models = [p.record for p in played if p.is_model]
    controls = [p.record for p in played if not p.is_model]
    old = [dict(policy, name=f"{policy['name']} (earlier)") for policy in earlier]
    # two questions, each with its own correction: which model is better, and does it beat what needs no model
    families = (
        [*combinations(models, 2), *((o, m) for m in models for o in old)],
        [(c, m) for m in models for c in controls],
    )
    return [_compare_two(a, b, len(family)) for family in families for a, b in family]


def _compare_two(a: Mapping[str, Any], b: Mapping[str, Any], comparisons: int) -> Comparison:
    pairs = paired(a["episodes"], b["episodes"])
    names = [CONTROLS[p["name"]].split(",")[0] if p["kind"] == "control" else p["name"] for p in (a, b)]
    found = compare(names[0], names[1], [(x["success"], y["success"]) for x, y in pairs], comparisons=comparisons)
    way = compare_progress([(x["best_progress"], y["best_progress"]) for x, y in pairs], comparisons=comparisons)
    farther = {"first": names[0], "second": names[1]}.get(way["verdict"])
    if farther and found.verdict == "none":
        shares = f"{100 * way['second']:.0f} against {100 * way['first']:.0f} % for {names[1]} and {names[0]}"
        found = replace(
            found,
            sentence=f"{found.sentence} But {farther} comes farther on the way: {shares} (p = {way['p_value']:.2g}).",
        )
    return replace(found, progress=way)


def _read_record(path: str) -> list[Mapping[str, Any]]:
    file = Path(path) / "rollout.json" if Path(path).is_dir() else Path(path)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if document["schema_version"] > SCHEMA_VERSION:
            raise DataError(
                f"record {str(file)!r} is of schema {document['schema_version']}; this library reads {SCHEMA_VERSION}"
            )
        return [policy for policy in document["policies"] if policy["kind"] == "model"]
    except OSError as error:
        raise DataError(
            f"record {str(file)!r} can't be read ({error.strerror}); give a rollout.json or its folder"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"record {str(file)!r} is no rollout.json ({error}); give one that this command wrote"
        ) from error


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
