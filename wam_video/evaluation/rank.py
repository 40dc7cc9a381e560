"""`wam-video rank` as a function: policies are rolled out in a simulator and in a world model, from the same starts.

The question is whether the world model would have put the policies in the right order. Policies act in it unchanged; a judge
reads success and progress off its pictures. The judge learns on other starts of the simulator, played by the same policies and
by the expert; what it makes of real pictures is the best that any world model can reach with it, and stands beside the model's
figures, as do a world model that is told other actions and one in which nothing moves.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from scipy.stats import kruskal
from torch import Tensor

from wam_video import __version__
from wam_video.evaluation.evaluate import commit, environment
from wam_video.evaluation.imagined_world import Dreamer, Foresight, Frozen, ImaginedWorld, Shuffled
from wam_video.evaluation.intervals import BootstrapConfig, Estimate
from wam_video.evaluation.judge import LinearMotion, PictureJudge
from wam_video.evaluation.rank_stage import Progress, RankConfig, Stage
from wam_video.evaluation.ranking import advantage, measure
from wam_video.evaluation.scores import Answer
from wam_video.evaluation.study import answer, question
from wam_video.evaluation.success import success_rate
from wam_video.evaluation.witness import Track

SCHEMA_VERSION = 1
"""Of `rank.json`."""
CONDITIONS: dict[str, str] = {
    "model": "imagined by the world model",
    "judge": "the judge on real pictures",
    "shuffled": "imagined, told other actions",
    "frozen": "nothing moves",
}
"""Ways to see the policies, in the order of the page: the model, the best that its judge allows, and two broken ones."""
KINDS = ("success", "progress")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How a policy did under one condition, start by start."""

    success: Sequence[float]
    progress: Sequence[float]
    """The farthest it came."""

    @classmethod
    def of(cls, ends: Sequence[tuple[bool, float]]) -> "Scores":
        """Make them from (success, progress) of each start."""
        return cls(success=[float(won) for won, _ in ends], progress=[far for _, far in ends])


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A start as it went and as it was imagined."""

    policy: str
    start_id: str
    prompt: str
    real: Track
    imagined: Track


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """All that a run found."""

    real: Mapping[str, Scores]
    """Policy -> what happened in the simulator."""
    seen: Mapping[str, Mapping[str, Scores]]
    """Condition -> policy -> how it looked there."""
    measures: Mapping[tuple[str, str], Mapping[str, Estimate]]
    """(condition, kind) -> measure -> figure."""
    answers: Sequence[Answer]
    pairs: Sequence[Pair]
    document: Mapping[str, Any]


@dataclass(kw_only=True)
class _Played:
    """What the evaluation's episodes gave."""

    starts: list[str]
    tasks: list[str]
    real: dict[str, Scores]
    seen: dict[str, dict[str, Scores]]
    pairs: list[Pair]
    motion_errors: list[list[float]]
    alike: list[str] = field(default_factory=list[str])
    """Kinds of score in which the policies did not differ in the simulator."""


def run(config: RankConfig, command: str = "", on_progress: Progress = lambda what, done, total: None) -> Ranking:
    """Rank policies in a simulator and in a world model.

    Args:
        config: What to do.
        command: For the record.
        on_progress: Called with what is being played, the policies done and their number.

    Raises:
        ConfigError: The request fits neither environment nor models.
        CheckpointError: A model can't be loaded.
    """
    with closing(Stage(config)) as stage:
        return _rank(stage, command, on_progress)


def _rank(stage: Stage, command: str, on_progress: Progress) -> Ranking:
    started, clock, config = datetime.now(UTC), time.monotonic(), stage.config
    lessons = stage.lessons(on_progress)
    judge, motion = PictureJudge(lessons), LinearMotion(lessons)
    told = _chunks(lessons, stage.model.window.action_horizon)
    dreamers: dict[str, Dreamer] = {
        "model": stage.model,
        "shuffled": Shuffled(stage.model, told),
        "frozen": Frozen(stage.model),
    }
    played = _play(stage, dreamers, judge, motion, on_progress)
    measures, answers = _measure(played, judge.judged, stage)
    document = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "library_version": __version__,
        "commit": commit(),
        **_settings(stage, judge, played),
        "policies": [stage.policy_facts(v) | _policy_figures(v.name, played, judge.judged) for v in config.policies],
        "measures": [
            {"condition": condition, "of": kind, "measure": name} | found.to_dict()
            for (condition, kind), figures in measures.items()
            for name, found in figures.items()
        ],
        "checks": [a.to_dict() for a in answers],
        "left_out": _left_out(judge.judged, stage.tasks, played.alike),
        "environment": environment(config.device),
        "timing": {"started": started.isoformat(timespec="seconds"), "seconds": round(time.monotonic() - clock, 3)},
    }
    return Ranking(
        real=played.real, seen=played.seen, measures=measures, answers=answers, pairs=played.pairs, document=document
    )


def _play(
    stage: Stage, dreamers: Mapping[str, Dreamer], judge: PictureJudge, motion: LinearMotion, on_progress: Progress
) -> _Played:
    """Play every policy from every start, for real and in each imagination."""
    config, total = stage.config, len(stage.agents) * (1 + len(dreamers))
    found = _Played(starts=[], tasks=[], real={}, seen={name: {} for name in CONDITIONS}, pairs=[], motion_errors=[])
    for number, (name, agent) in enumerate(stage.agents.items()):
        truth = stage.play(agent, stage.worlds, seed=config.seed, episodes=config.episodes)
        found.starts, found.tasks = [e.start_id for e, _ in truth], [e.job.task for e, _ in truth]
        found.real[name] = Scores.of([_end(track) for _, track in truth])
        found.seen["judge"][name] = Scores.of([judge.watch(track) for _, track in truth])
        found.motion_errors.append(motion.error([track for _, track in truth]))
        on_progress("policies", number * (1 + len(dreamers)) + 1, total)
        for place, (condition, dreamer) in enumerate(dreamers.items(), 2):
            worlds = [ImaginedWorld(world, dreamer, judge, motion) for world in stage.worlds]
            dreamt = stage.play(Foresight(agent, dreamer), worlds, seed=config.seed, episodes=config.episodes)
            found.seen[condition][name] = Scores.of([_end(track) for _, track in dreamt])
            on_progress("policies", number * (1 + len(dreamers)) + place, total)
            if condition == "model":
                share = -(-config.films // len(stage.agents))
                found.pairs += [
                    Pair(policy=name, start_id=e.start_id, prompt=e.prompt, real=t, imagined=d)
                    for (e, t), (_, d) in list(zip(truth, dreamt, strict=True))[:: max(1, len(truth) // max(1, share))][:share]
                ]  # fmt: skip
    return found


def _end(track: Track) -> tuple[bool, float]:
    return track.succeeded, max(outcome.progress for outcome in track.outcomes)


def _chunks(tracks: Sequence[Track], horizon: int) -> Float32[np.ndarray, "n ta da"]:
    """Return all chunks of the recorded actions, one behind the other."""
    chunks = [
        np.stack(track.actions[i : i + horizon])
        for track in tracks
        for i in range(0, len(track.actions) - horizon + 1, horizon)
    ]
    if not chunks:  # every episode ended within a chunk
        longest = max(tracks, key=lambda track: len(track.actions))
        return np.stack(longest.actions)[None]
    return np.stack(chunks)


def _table(scores: Mapping[str, Scores], kind: str, rows: Sequence[int]) -> Float[Tensor, "e p"]:
    return torch.tensor([getattr(s, kind) for s in scores.values()], dtype=torch.float64).T[list(rows)]


def _rows(played: _Played, kind: str, judged: Sequence[str]) -> list[int]:
    """Return the starts that count: success can be told in some tasks only."""
    return [i for i, task in enumerate(played.tasks) if kind == "progress" or task in judged]


def _measure(
    played: _Played, judged: Sequence[str], stage: Stage
) -> tuple[dict[tuple[str, str], dict[str, Estimate]], list[Answer]]:
    measures: dict[tuple[str, str], dict[str, Estimate]] = {}
    answers = []
    draws = BootstrapConfig(seed=stage.config.seed)
    for kind in KINDS:
        rows = _rows(played, kind, judged)
        if not rows:
            continue
        starts = [played.starts[i] for i in rows]
        real = _table(played.real, kind, rows)
        tables = {name: _table(scores, kind, rows) for name, scores in played.seen.items()}
        if bool((real.mean(dim=0) == real.mean()).all()):
            played.alike.append(kind)
            continue
        found = measure(real, list(tables.values()), starts, draws)
        measures |= {(name, kind): figures for name, figures in zip(tables, found, strict=True)}
        for broken, asks, flag in _QUESTIONS:
            check = question(
                f"{kind}_ranks_better_than_{broken}",
                f"mmrv of {kind}",
                ("rank", "model"),
                ("rank", broken),
                asks=f"{asks} ({kind})",
                flag=flag,
            )
            gain = advantage(real, tables["model"], tables[broken], starts, draws)
            if gain.value is not None:
                answers.append(answer(stage.spec.name, check, gain))
    return measures, answers


_QUESTIONS = (
    ("shuffled", "Is the order better for what the policies do than for other actions?",
     "from these starts it can't be said that the world model ranks better than one that is told other actions"),
    ("frozen", "Is the order better than without any motion?",
     "from these starts it can't be said that the world model ranks better than one in which nothing moves"),
)  # fmt: skip


def _settings(stage: Stage, judge: PictureJudge, played: _Played) -> dict[str, Any]:
    config, pipe = stage.config, stage.model.pipe
    missing = {back for agent in stage.agents.values() for back in agent.looks_back if back % stage.every}
    return {
        "settings": {
            "env": config.env, "env_options": dict(config.env_options), "tasks": list(stage.tasks),
            "episodes_per_task": config.episodes, "judge_episodes": config.judge_episodes,
            "max_steps": config.max_steps or stage.worlds[0].max_steps, "execute": stage.pace, "seed": config.seed, "rows": config.rows,
            "embodiment": stage.spec.name, "action_rate": stage.spec.action_rate, "picture_every_steps": stage.every,
            "lookback_without_picture": sorted(missing), "confidence": "95 % over starts",
        },
        "world_model": stage.facts(config.world_model)
        | {"num_inference_steps": pipe.scheduler.path(config.steps).num_inference_steps},
        "judge": {
            "tasks": {task: dict(fit.facts) for task, fit in judge.fits.items()},
            "state": "integrated from the actions by a linear model of the last two states and the action",
            "state_error_std": np.round(np.mean(played.motion_errors, axis=0), 6).tolist(),
        },
        "starts": played.starts,
    }  # fmt: skip


def _policy_figures(name: str, played: _Played, judged: Sequence[str]) -> dict[str, Any]:
    real, rows = played.real[name], _rows(played, "success", judged)
    figures: dict[str, Any] = {
        "success": success_rate(int(sum(real.success)), len(real.success)).to_dict(),
        "progress": float(np.mean(real.progress)),
        "starts": {"real": _lists(real)},
    }
    for condition, scores in played.seen.items():
        seen = scores[name]
        told = [seen.success[i] == real.success[i] for i in rows]
        figures[condition] = {
            "success": None if not rows else success_rate(int(sum(seen.success[i] for i in rows)), len(rows)).to_dict(),
            "progress": float(np.mean(seen.progress)),
            "success_agreement": float(np.mean(told)) if told else None,
            "progress_mae": float(np.abs(np.subtract(seen.progress, real.progress)).mean()),
            "kruskal_p_progress": _kruskal(real.progress, seen.progress),
        }
        figures["starts"][condition] = _lists(seen)
    return figures


def _lists(scores: Scores) -> dict[str, list[float]]:
    return {"success": list(scores.success), "progress": [round(x, 6) for x in scores.progress]}


def _kruskal(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the chance of so different progress, if both were alike (Kruskal and Wallis 1952)."""
    return 1.0 if len({*a, *b}) < 2 else float(kruskal(a, b).pvalue)


def _left_out(judged: Sequence[str], tasks: Sequence[str], alike: Sequence[str]) -> list[dict[str, str]]:
    blind = "the judge saw no success there, or nothing else; more --judge-episodes may help"
    equal = "all policies did alike in the simulator; give policies that differ more, e.g. with noise"
    return [
        *({"metric": f"success of {task}", "reason": blind} for task in tasks if task not in judged),
        *({"metric": f"the order by {kind}", "reason": equal} for kind in alike),
    ]
