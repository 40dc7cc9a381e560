"""The figures of a model card: made from `metrics.json` and put between two markers, so that none is typed by hand."""

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from wam_video.errors import ConfigError, DataError
from wam_video.evaluation import ablation_page, rank_page
from wam_video.evaluation.open_loop import CONTROL, Key
from wam_video.inference.loading import INDEX, METRICS, model_hash

BEGIN = "<!-- figures: made by `wam-video card` from metrics.json -->"
END = "<!-- end of figures -->"
PART = "<!-- {} {}: made by `wam-video card` -->"
"""Begins the table of a record of that kind and name, which lies beside the card as `<kind>_<name>.json`."""
PART_END = "<!-- end of {} -->"

_COPY, _HOLD, _MEAN = (CONTROL, "copy_last"), (CONTROL, "hold_last"), (CONTROL, "mean_action")
_TABLE: tuple[tuple[str, str, Key, tuple[tuple[str, Key], ...]], ...] = (
    ("policy", "r2", ("policy", "model"), (("last action again", _HOLD), ("average action", _MEAN))),
    (
        *("inverse", "r2", ("inverse", "model")),
        (("policy", ("policy", "model")), ("another window's future", ("inverse", "shuffled_video"))),
    ),
    (
        *("forward", "psnr_moving", ("forward", "model")),
        (
            ("another window's actions", ("forward", "shuffled_actions")),
            ("average actions", ("forward", "mean_actions")),
            ("last frame again", _COPY),
        ),
    ),
    ("forward, whole frame", "psnr", ("forward", "model"), (("last frame again", _COPY),)),
    ("video", "psnr_moving", ("video", "model"), (("last frame again", _COPY),)),
    ("joint, actions", "r2", ("joint", "model"), (("last action again", _HOLD), ("average action", _MEAN))),
    ("joint, video", "psnr_moving", ("joint", "model"), (("last frame again", _COPY),)),
)
"""Label, metric, what is scored, and what it must beat."""
_ADVANTAGE = ("forward_uses_actions", "forward with the true actions is better than with another window's by")


def figures(document: Mapping[str, Any], name: str) -> str:
    """Return the figures of one model as Markdown.

    Args:
        document: What `wam-video evaluate` wrote to metrics.json.
        name: Of the model in it; need not be given where it holds only one.

    Raises:
        DataError: It is no such document, or does not hold that model.
    """
    try:
        model = _model(document, name)
        data, bodies = model["data"], list(model["data"]["windows_per_embodiment"])
        rows = {
            (r["embodiment"], r["mode"], r["condition"], r["metric"]): r
            for r in model["rows"]
            if r["dimension"] is None and r["time_s"] is None
        }
        head = [
            f"{model['num_parameters']:,} parameters; {data['num_windows']} windows of {data['num_episodes']} episodes of "
            f"`{data['dataset']}` (split `{data['split']}`), {model['num_inference_steps']} {model['solver']} steps, seed "
            f"{document['settings']['seed']}. In brackets 95 % intervals over episodes. R2 is against the mean of the scored actions; "
            "dB are PSNR on the pixels that move, or on whole frames where it says so.",
            "",
            "| mode | score | control |",
            "|---|---|---|",
        ]
        lines = [line for body in bodies for line in _lines(rows, body, f" ({body})" if len(bodies) > 1 else "")]
        return "\n".join([*head, *lines, *_advantages(model), *_ways(model), *_answers(model)])
    except (KeyError, TypeError) as error:
        raise DataError(
            f"the figures lack {error}; give the metrics.json that `wam-video evaluate` of this version wrote"
        ) from error


def fill(text: str, made: str, begin: str = BEGIN, end: str = END) -> str:
    """Return a card with what stands between the markers replaced.

    Raises:
        DataError: The markers are not there, or not in order.
    """
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise DataError(f"the card has no place for figures; put the lines '{begin}' and '{end}' where they belong")
    return f"{before}{begin}\n\n{made}\n\n{end}{after}"


def update_part(folder: Path, kind: str, record: Path, name: str | None = None) -> Path:
    """Put the table of a record between its markers in a card, the record beside the card, and return the card's path.

    Args:
        folder: With README.md.
        kind: Of `PARTS`.
        record: What `wam-video ablate`, `rank`, `rollout` or `evaluate` wrote.
        name: Tells records of a kind apart; None: the one that the record itself bears.

    Raises:
        DataError: A file is missing or broken, or the card has no place for it.
        ConfigError: The record is of another checkpoint.
    """
    card = folder / "README.md"
    for file in (card, record):
        if not file.is_file():
            raise DataError(
                f"{str(file)!r} is no file; give a folder with README.md, and the JSON that a command wrote"
            )
    try:
        document = json.loads(record.read_text(encoding="utf-8"))
        name = name or document["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{record} is no record of {kind} ({error}); give what the command wrote") from error
    made = PARTS[kind](document, folder.resolve().name)
    filled = fill(card.read_text(encoding="utf-8"), made, PART.format(kind, name), PART_END.format(kind))
    if kind != "ablation":
        _check_hash(folder, record, _scored(document))
    kept = folder / f"{kind}_{name}.json"
    if record.resolve() != kept.resolve():
        shutil.copyfile(record, kept)
    card.write_text(filled, encoding="utf-8")
    return card


def update(folder: Path, metrics: Path | None = None) -> Path:
    """Fill the card of a checkpoint folder with the figures beside it, and return its path.

    Args:
        folder: With README.md and, unless `metrics` is given, metrics.json.
        metrics: Figures to put there first.

    Raises:
        DataError: A file is missing or broken.
        ConfigError: The figures are of another checkpoint.
    """
    card, source = folder / "README.md", metrics or folder / METRICS
    for file in (card, source):
        if not file.is_file():
            raise DataError(f"{str(file)!r} is no file; give a checkpoint folder with README.md and {METRICS}")
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{source}: not valid JSON ({error}); evaluate again") from error
    filled = fill(card.read_text(encoding="utf-8"), figures(document, folder.resolve().name))
    _check_hash(folder, source, {_model(document, folder.resolve().name)["model_hash"]})
    if source.resolve() != (folder / METRICS).resolve():
        shutil.copyfile(source, folder / METRICS)
    card.write_text(filled, encoding="utf-8")
    return card


def _scored(document: Mapping[str, Any]) -> set[str]:
    """Return the hashes of the checkpoints that a record is about: of a ranking the world model, whatever the policies."""
    about = (
        [document["world_model"]] if "world_model" in document else document.get("models", document.get("policies", ()))
    )
    return {found["model_hash"] for found in about if "model_hash" in found}


def _check_hash(folder: Path, record: Path, scored: Collection[str]) -> None:
    if (folder / INDEX).is_file() and (found := model_hash(folder)) not in scored:
        hashes = ", ".join(sorted(h[:16] for h in scored))
        raise ConfigError(
            f"{record} is of a checkpoint with hash {hashes}, {folder} has {found[:16]}; score this checkpoint"
        )


def _model(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    models = {model["name"]: model for model in document["models"]}
    if name not in models and len(models) != 1:
        raise DataError(f"the figures are of {', '.join(models)}; evaluate {name!r} alone, or under that name")
    return models.get(name) or next(iter(models.values()))


def _lines(rows: Mapping[tuple[str, ...], Mapping[str, Any]], body: str, suffix: str) -> list[str]:
    lines = []
    for label, metric, scored, controls in _TABLE:
        row = rows.get((body, *scored, metric))
        if row is not None:
            beside = [
                f"{what} {_number(rows[body, *key, metric])}" for what, key in controls if (body, *key, metric) in rows
            ]
            lines.append(f"| {label}{suffix} | {_interval(row)} | {', '.join(beside)} |")
    return lines


def _advantages(model: Mapping[str, Any]) -> list[str]:
    name, words = _ADVANTAGE
    found = [check for check in model["checks"] if check["name"] == name]
    told = [
        f"{check['embodiment']}: {words} {_interval(dict(check['advantage'], metric=check['metric']))}."
        for check in found
    ]
    return ["", *told] if told else []


def _number(row: Mapping[str, Any], key: str = "value") -> str:
    return f"{row[key]:.2f}" if row["metric"].startswith("psnr") else f"{row[key]:.3f}"


def _interval(row: Mapping[str, Any]) -> str:
    unit, value = ("", f"R2 {_number(row)}") if row["metric"] == "r2" else (" dB", _number(row))
    known = row["low"] is not None and row["high"] is not None
    return f"{value}{unit}" + (f" ({_number(row, 'low')} to {_number(row, 'high')})" if known else "")


def _answers(model: Mapping[str, Any]) -> list[str]:
    """Return how many of the questions were answered well, and the flags of the others: of the modes, then of each study."""
    sheets = [("modes", model["checks"]), *((f"study {s['name']}", s["checks"]) for s in model.get("studies", ()))]
    lines = []
    for name, checks in sheets:
        told = [check for check in checks if check["status"] != "unknown"]
        if told:
            flags = [check["flag"] for check in told if check["status"] == "no"]
            held = f"{len(told) - len(flags)} of {len(told)}"
            lines.append(f"- {name}: {held} checks hold" + (f"; not: {'; '.join(flags)}" if flags else ""))
    return (
        ["", "Checks against controls (a check holds where the whole interval is on its good side):", "", *lines]
        if lines
        else []
    )


def _ways(model: Mapping[str, Any]) -> list[str]:
    """Return the table of the study `paths`: what each way to decide costs, and how well it does."""
    found = [s for s in model.get("studies", ()) if s["name"] == "paths"]
    if not found:
        return []
    cells: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in found[0]["rows"]:
        if row["dimension"] is None and row["time_s"] is None:
            cells.setdefault(row["condition"], {})[row["metric"]] = row
    columns = [m for m in ("gflop", "nrmse", "success", "progress") if any(m in cell for cell in cells.values())]
    titles = {"gflop": "GFLOP a decision", "nrmse": "error, std", "success": "success, %", "progress": "of the task, %"}
    lines = [
        f"| {name.replace('_', ' ')} | {' | '.join(_spread(cell.get(m)) for m in columns)} |"
        for name, cell in cells.items()
    ]
    head = [f"| way and steps | {' | '.join(titles[m] for m in columns)} |", f"|---{'|---' * len(columns)}|"]
    return ["", "Ways to decide (the network's operations on paper):", "", *head, *lines]


def _spread(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    known = row["low"] is not None
    return f"{row['value']:.3g}" + (f" ({row['low']:.3g} to {row['high']:.3g})" if known else "")


def rollouts(document: Mapping[str, Any], name: str) -> str:
    """Return the success rates of a record of `wam-video rollout` as Markdown.

    Args:
        document: What it wrote to rollout.json.
        name: Of the card's folder; not used, for the record names its policies.

    Raises:
        DataError: It is no such document.
    """
    try:
        policies, settings = document["policies"], document["settings"]
        tasks = settings["tasks"]
        own = [p for p in policies if p["kind"] == "model"]
        head = [
            f"`{settings['env']}`, {settings['episodes_per_task']} starts a task that no training episode had, at most "
            f"{settings['max_steps']} actions at {settings['action_rate']:g} Hz, seed {settings['seed']}; "
            + "; ".join(_how(p) for p in own)
            + ". Successes of episodes, in brackets Wilson's 95 % interval.",
            "",
            f"| task | {' | '.join(p['name'] for p in policies)} |",
            f"|---{'|---' * len(policies)}|",
        ]
        lines = [f"| {task} | {' | '.join(_rate(p['tasks'][task]) for p in policies)} |" for task in tasks]
        lines += [f"| all | {' | '.join(_rate(p['success']) for p in policies)} |"] if len(tasks) > 1 else []
        return "\n".join([*head, *lines])
    except (KeyError, TypeError) as error:
        raise DataError(f"the record lacks {error}; give the rollout.json that `wam-video rollout` wrote") from error


def _how(policy: Mapping[str, Any]) -> str:
    clocks = policy["clocks"]
    return (
        f"{policy['name']}: {clocks['num_inference_steps']} step(s), path `{clocks['policy_path']}`, a decision every "
        f"{policy['replan_interval_s']:g} s"
    )


def _rate(found: Mapping[str, Any]) -> str:
    low, high = found["wilson"]
    return f"{found['successes']}/{found['episodes']} ({100 * low:.0f} to {100 * high:.0f} %)"


PARTS: dict[str, Callable[[Mapping[str, Any], str], str]] = {
    "ablation": lambda document, _: ablation_page.markdown(document),
    "rank": lambda document, _: rank_page.markdown(document),
    "rollout": rollouts,
    "metrics": figures,
}
"""Kind of a record -> what makes its table, from the document and the name of the card's folder."""
