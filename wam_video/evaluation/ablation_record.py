"""From the finished cells of an ablation to its record, `ablation.json`."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wam_video.errors import ConfigError, DataError, one_of
from wam_video.evaluation.ablation import (
    Difference,
    StatisticsConfig,
    differences,
    holm,
    sentence,
    summarize,
    to_dict,
    verdict,
)
from wam_video.evaluation.by_episode import EpisodeSums, Scored, read_episodes
from wam_video.evaluation.intervals import BootstrapConfig, draw_counts
from wam_video.evaluation.metrics import action_scores, video_scores
from wam_video.evaluation.open_loop import HIDDEN, RUNS, Key
from wam_video.evaluation.scores import UNITS, VIDEO_METRICS
from wam_video.flow.modes import MODES
from wam_video.tensors import Mode

SCHEMA_VERSION = 1
NAME = "ablation.json"
ROLLOUT = "rollout"
ACTION_METRICS = ("nrmse", "r2")
ROLLOUT_METRICS = ("success", "progress")
METRICS = (
    *("policy.nrmse", "policy.r2", "inverse.nrmse", "inverse.r2"),
    *("forward.psnr_moving", "forward.psnr_moving-shuffled_actions", "video.psnr_moving", "joint.nrmse"),
)
"""What the table shows unless it is told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of the table: `MODE.SCORE`, `MODE.SCORE-CONDITION` for the advantage over a condition, or `rollout.success`."""

    name: str
    mode: str
    score: str
    control: str = ""
    """A condition of the mode, such as `shuffled_actions`; the figure is then the advantage of the model over it."""

    @classmethod
    def parse(cls, name: str) -> "Metric":
        """Read a metric's name.

        Raises:
            ConfigError: The mode or the score does not exist.
        """
        mode, _, rest = name.partition(".")
        score, _, control = rest.partition("-")
        modes = [*(m.value for m in Mode), ROLLOUT]
        if mode not in modes:
            raise ConfigError(f"metrics entry {name!r}: {one_of('mode', mode, modes)}")
        allowed = ROLLOUT_METRICS if mode == ROLLOUT else (*VIDEO_METRICS, *ACTION_METRICS)
        if score not in allowed:
            raise ConfigError(f"metrics entry {name!r}: {one_of('score', score, allowed)}")
        if control and mode == ROLLOUT:
            raise ConfigError(f"metrics entry {name!r}: a rollout has no conditions; allowed: {', '.join(allowed)}")
        if mode != ROLLOUT:
            _check_given(name, Mode(mode), score, control)
        return cls(name=name, mode=mode, score=score, control=control)

    @property
    def better(self) -> int:
        """1 where more is better, -1 where less is; an advantage is always better when larger."""
        return -1 if self.score == "nrmse" and not self.control else 1

    @property
    def unit(self) -> str:
        """Of the figure."""
        return UNITS.get(self.score, "")

    @property
    def label(self) -> str:
        """In words."""
        score = {"nrmse": "NRMSE", "r2": "R2", "psnr_moving": "PSNR of moving pixels", "psnr": "PSNR"}.get(
            self.score, self.score.replace("_", " ")
        )
        return f"advantage over {self.control.replace('_', ' ')} in {score}" if self.control else score


def _check_given(name: str, mode: Mode, score: str, control: str) -> None:
    """Refuse what no evaluation holds: its column would be missing from the table without a word."""
    spec = MODES[mode]
    if not (spec.gives_video if score in VIDEO_METRICS else spec.gives_actions):
        what = "video" if score in VIDEO_METRICS else "actions"
        raise ConfigError(f"metrics entry {name!r}: mode {mode.value!r} gives no {what}; give a score of what it gives")
    known = [run.condition for run in RUNS if run.mode is mode and run.condition not in ("model", HIDDEN)]
    known += {Mode.POLICY: ["shuffled_targets"], Mode.JOINT: ["read_back", "read_back_shuffled"]}.get(mode, [])
    if control and control not in known:
        raise ConfigError(f"metrics entry {name!r}: {one_of('condition', control, known)}")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One trained model and its scores."""

    variant: str
    seed: int
    scored: Scored
    rollout: Mapping[str, Any] | None = None
    """The policy of `rollout.json`."""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """For the record."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What was compared."""

    name: str
    reference: str
    variants: Mapping[str, Sequence[str]]
    """Name -> what differs."""
    seeds: Sequence[int]
    metrics: Sequence[str]
    conditions: Mapping[str, Any]
    """What was the same for all."""
    statistics: StatisticsConfig


def read_cell(variant: str, seed: int, folder: Path) -> Cell:
    """Read what the commands wrote into a cell's folder.

    Raises:
        DataError: A file is missing or broken.
    """
    scored = read_episodes(folder / "evaluation" / "episodes.json")
    try:
        model = json.loads((folder / "evaluation" / "metrics.json").read_text(encoding="utf-8"))["models"][0]
        record = folder / "rollout" / "rollout.json"
        rollout = json.loads(record.read_text(encoding="utf-8"))["policies"][0] if record.is_file() else None
        facts = {key: model[key] for key in ("model_hash", "num_parameters", "num_inference_steps", "flags")}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{folder}: its scores can't be read ({error}); remove the folder and run again") from error
    return Cell(variant=variant, seed=seed, scored=scored, rollout=rollout, facts=facts)


def record(study: Study, cells: Sequence[Cell], missing: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return everything that may be said of the finished cells.

    Args:
        study: What was compared.
        cells: The finished ones.
        missing: Cells without scores, each with `variant`, `seed` and `reason`.

    Raises:
        DataError: The cells were not scored on the same episodes.
    """
    columns = _columns(study, cells)
    compared: list[tuple[_Column, Difference]] = []
    for column in columns:
        if any(variant == study.reference for variant, _ in column.table):
            found = differences(column.table, study.reference, column.num_episodes, study.statistics)
            compared += [(column, difference) for difference in found]
    corrected = _correct(compared, study.statistics)
    level = study.statistics.level
    rows = [
        {
            "metric": column.metric.name, "embodiment": column.embodiment, "variant": d.variant, "reference": study.reference,
            **to_dict(d.summary), "per_seed": list(d.per_seed), "pooled": d.residual, "p_holm": p,
            "verdict": verdict(d, p, column.metric.better, level),
        }
        for (column, d), p in zip(compared, corrected, strict=True)
    ]  # fmt: skip
    return {
        "schema_version": SCHEMA_VERSION,
        "name": study.name,
        "reference": study.reference,
        "variants": {name: list(values) for name, values in study.variants.items()},
        "seeds": list(study.seeds),
        "conditions": dict(study.conditions),
        "method": sentence(study.statistics, study.seeds, sum(p is not None for p in corrected)),
        "metrics": [
            {"name": m.name, "mode": m.mode, "label": m.label, "unit": m.unit, "better": m.better}
            for m in map(Metric.parse, study.metrics)
        ],
        "data": dict(cells[0].scored.facts) if cells else {},
        "num_episodes": {f"{c.metric.name} {c.embodiment}".strip(): c.num_episodes for c in columns},
        "cells": [_cell(cell, columns) for cell in cells],
        "means": [row for column in columns for row in _means(column, study)],
        "differences": rows,
        "missing": [dict(m) for m in missing],
    }


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One metric on one body, of every cell that has it."""

    metric: Metric
    embodiment: str
    num_episodes: int
    table: dict[tuple[str, int], Float[Tensor, " draws"]]


def _columns(study: Study, cells: Sequence[Cell]) -> list[_Column]:
    found = []
    for metric in map(Metric.parse, study.metrics):
        for body in [""] if metric.mode == ROLLOUT else sorted({b for cell in cells for b in cell.scored.bodies}):
            inputs = {(c.variant, c.seed): _inputs(c, metric, body, study, cells) for c in cells}
            known = {key: value for key, value in inputs.items() if value is not None}
            if not known:
                continue
            names = {key: value[0] for key, value in known.items()}
            _check_same(names, metric)
            count = len(next(iter(names.values())))
            draws = draw_counts(
                count, BootstrapConfig(num_draws=study.statistics.num_draws, seed=study.statistics.seed)
            )
            table = {key: _with_draws(sums, score, draws) for key, (_, sums, score) in known.items()}
            table = {key: row for key, row in table.items() if math.isfinite(float(row[0]))}
            if table:
                found.append(_Column(metric=metric, embodiment=body, num_episodes=count, table=table))
    return found


Score = Callable[[Tensor], Tensor]


def _inputs(
    cell: Cell, metric: Metric, body: str, study: Study, cells: Sequence[Cell]
) -> tuple[tuple[str, ...], Tensor, Score] | None:
    """Return the names of the episodes, sums of each, and the figure as a function of added sums."""
    if metric.mode == ROLLOUT:
        return _rollout(cell, metric)
    sums = cell.scored.bodies.get(body)
    if sums is None:
        return None
    is_video = metric.score in VIDEO_METRICS
    table: Mapping[Key, Tensor] = sums.video if is_video else sums.actions
    keys = [(metric.mode, condition) for condition in ("model", metric.control) if condition]
    if any(key not in table for key in keys):
        return None
    scale = _scale(body, study, cells)

    def one(x: Tensor) -> Tensor:
        return video_scores(x)[metric.score] if is_video else action_scores(x, scale)[0][metric.score]

    sign = -1 if metric.score == "nrmse" else 1
    axis = -3 if is_video else -4

    def score(x: Tensor) -> Tensor:
        first = one(x.select(axis, 0))
        return sign * (first - one(x.select(axis, 1))) if metric.control else first

    same = tuple(f"{name} {_digest(row)}" for name, row in zip(sums.episodes, _targets(sums), strict=True))
    return same, torch.stack([table[key] for key in keys], dim=1), score


def _scale(body: str, study: Study, cells: Sequence[Cell]) -> Float[Tensor, " da"]:
    """One scale for all cells, though their training data may differ: that of the reference's first seed."""
    mine = [c for c in cells if c.variant == study.reference and body in c.scored.bodies] or [
        c for c in cells if body in c.scored.bodies
    ]
    return mine[0].scored.bodies[body].action_scale


def _targets(sums: EpisodeSums) -> Float[Tensor, "e k"]:
    return torch.cat(sums.targets(), dim=1)


def _digest(row: Float[Tensor, " k"]) -> str:
    return " ".join(f"{x:.6g}" for x in row.tolist())


def _rollout(cell: Cell, metric: Metric) -> tuple[tuple[str, ...], Tensor, Score] | None:
    if cell.rollout is None:
        return None
    episodes = sorted(cell.rollout["episodes"], key=lambda e: (e["task"], e["start_id"]))
    key = {"success": "success", "progress": "best_progress"}[metric.score]
    sums = torch.tensor([[float(e[key]), 1.0] for e in episodes], dtype=torch.float64)
    return tuple(f"{e['start_id']} {e['start_hash']}" for e in episodes), sums, lambda x: x[..., 0] / x[..., 1]


def _check_same(names: Mapping[tuple[str, int], tuple[str, ...]], metric: Metric) -> None:
    (first, expected), *others = names.items()
    for cell, found in others:
        if found != expected:
            raise DataError(
                f"cells {first} and {cell} were not scored on the same windows ({metric.name}); evaluate all with the same data, "
                "windows and rollout options"
            )


def _with_draws(sums: Tensor, score: Score, draws: Int[Tensor, "draws e"]) -> Float[Tensor, " draws"]:
    every = torch.cat([torch.ones_like(draws[:1]), draws]).double()
    return score(torch.tensordot(every, sums.double(), dims=1))


def _correct(compared: Sequence[tuple[_Column, Difference]], config: StatisticsConfig) -> list[float | None]:
    families: dict[str, list[int]] = {}
    for i, (column, difference) in enumerate(compared):
        if difference.summary.p_value is not None:
            families.setdefault(column.metric.name if config.family == "metric" else "", []).append(i)
    corrected: list[float | None] = [None] * len(compared)
    for members in families.values():
        for i, p in zip(members, holm([compared[i][1].summary.p_value or 0.0 for i in members]), strict=True):
            corrected[i] = p
    return corrected


def _means(column: _Column, study: Study) -> list[dict[str, Any]]:
    rows = []
    for name in study.variants:
        mine = {seed: row for (variant, seed), row in column.table.items() if variant == name}
        if mine:
            found = summarize(list(mine.values()), list(mine), column.num_episodes, study.statistics.level)
            values = to_dict(found)
            values.pop("p_value")  # of a mean of 0, which nobody asked
            rows.append({"metric": column.metric.name, "embodiment": column.embodiment, "variant": name, **values})
    return rows


def _cell(cell: Cell, columns: Sequence[_Column]) -> dict[str, Any]:
    figures = [
        {"metric": c.metric.name, "embodiment": c.embodiment, "value": float(c.table[cell.variant, cell.seed][0])}
        for c in columns
        if (cell.variant, cell.seed) in c.table
    ]
    return {"variant": cell.variant, "seed": cell.seed, **cell.facts, "figures": figures}
