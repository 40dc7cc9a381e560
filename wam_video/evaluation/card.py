"""The figures of a model card: made from `metrics.json` and put between two markers, so that none is typed by hand."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wam_video.errors import ConfigError, DataError
from wam_video.evaluation.ablation_page import markdown
from wam_video.evaluation.open_loop import CONTROL, Key
from wam_video.inference.loading import INDEX, METRICS, model_hash

BEGIN = "<!-- figures: made by `wam-video card` from metrics.json -->"
END = "<!-- end of figures -->"
ABLATION = "<!-- ablation {}: made by `wam-video card` -->"
"""Begins the table of an ablation of that name; its record lies beside the card as `ablation_<name>.json`."""
ABLATION_END = "<!-- end of ablation -->"

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
        return "\n".join([*head, *lines, *_advantages(model)])
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


def update_ablation(folder: Path, record: Path) -> Path:
    """Put the table of an ablation between its markers in a card, its record beside the card, and return the card's path.

    Args:
        folder: With README.md.
        record: What `wam-video ablate` wrote to ablation.json.

    Raises:
        DataError: A file is missing or broken, or the card has no place for an ablation of that name.
    """
    card = folder / "README.md"
    for file in (card, record):
        if not file.is_file():
            raise DataError(f"{str(file)!r} is no file; give a folder with README.md, and an ablation.json")
    try:
        document = json.loads(record.read_text(encoding="utf-8"))
        name = document["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{record} is no record of an ablation ({error}); give what `wam-video ablate` wrote"
        ) from error
    made = fill(card.read_text(encoding="utf-8"), markdown(document), ABLATION.format(name), ABLATION_END)
    kept = folder / f"ablation_{name}.json"
    if record.resolve() != kept.resolve():
        shutil.copyfile(record, kept)
    card.write_text(made, encoding="utf-8")
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
    scored = _model(document, folder.resolve().name)["model_hash"]
    if (folder / INDEX).is_file() and (found := model_hash(folder)) != scored:
        raise ConfigError(
            f"{source} is of a checkpoint with hash {scored[:16]}, {folder} has {found[:16]}; evaluate this checkpoint"
        )
    if source.resolve() != (folder / METRICS).resolve():
        shutil.copyfile(source, folder / METRICS)
    card.write_text(filled, encoding="utf-8")
    return card


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
