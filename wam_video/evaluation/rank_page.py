"""The page of a ranking: did the world model put the policies in the right order? For somebody who has never seen one."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from wam_video.data.video import encode_mp4
from wam_video.errors import DataError
from wam_video.evaluation import clips
from wam_video.evaluation.intervals import Estimate
from wam_video.evaluation.rank import CONDITIONS, KINDS, Pair, Ranking
from wam_video.evaluation.sections import checks_list, interval
from wam_video.evaluation.svg import Axes, Point, number, scatter_chart
from wam_video.evaluation.witness import Track
from wam_video.markup import Html, el, join, table
from wam_video.page import frame, write_page, write_whole

_SIDE = 192
_GAP = 8
_CSS = """
.reach { stroke: var(--control); stroke-width: 1.2; fill: none; } ol.names { margin: 6px 0 0; padding-left: 22px; font-size: 14px; columns: 2; }
.squares { display: grid; gap: 18px 28px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 240px), 1fr)); }
"""
_NAMES = {
    "pearson": "Pearson's r",
    "spearman": "Spearman's rank correlation",
    "mmrv": "mean maximum rank violation",
}


def write(ranking: Ranking, folder: Path) -> tuple[Path, Path]:
    """Write `rank.json`, `report.html` and `films/` into `folder` and return the paths of the first two.

    Raises:
        DataError: The folder can't be written.
    """
    films = [beside(pair) for pair in ranking.pairs]
    frame_s = _seconds_a_picture(ranking)
    for pair, frames in zip(ranking.pairs, films, strict=True):
        name = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{pair.policy}-{pair.start_id}")
        write_whole(folder / "films", f"{name}.mp4", encode_mp4(frames, fps=1 / frame_s, crf=23))
    return write_page(folder, "rank.json", ranking.document, render(ranking, films))


def _seconds_a_picture(ranking: Ranking) -> float:
    settings = ranking.document["settings"]
    return settings["picture_every_steps"] / settings["action_rate"]


def beside(pair: Pair) -> UInt8[np.ndarray, "f h w 3"]:
    """Return what happened, left, beside what was imagined, right; the one that ended first stands still."""
    steps = sorted({*pair.real.pictures, *pair.imagined.pictures})
    frames = []
    for step in steps:
        left, right = (_big(_at(track, step)) for track in (pair.real, pair.imagined))
        frames.append(np.concatenate([left, np.full((left.shape[0], _GAP, 3), 128, np.uint8), right], axis=1))
    return np.stack(frames)


def _at(track: Track, step: int) -> UInt8[np.ndarray, "h w 3"]:
    return next(iter(track.pictures[max(s for s in track.pictures if s <= step)].values()))


def _big(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    width = round(_SIDE * frame.shape[1] / frame.shape[0] / 2) * 2
    return np.asarray(Image.fromarray(frame).resize((width, _SIDE), Image.Resampling.NEAREST))


def render(ranking: Ranking, films: Sequence[UInt8[np.ndarray, "f h w 3"]]) -> str:
    """Return the page."""
    sections = [
        _introduction(ranking),
        _glance(ranking),
        *(_kind(ranking, kind) for kind in KINDS),
        _films(ranking, films),
        _policies(ranking),
        _method(ranking),
    ]
    return frame("World action model: does it rank policies?", sections, _CSS)


def _introduction(ranking: Ranking) -> Html:
    d, s = ranking.document, ranking.document["settings"]
    lead = (
        "Every policy below was tried twice from the same starts: in the simulator, and in the imagination of the world model, "
        "which sees the first picture and then only the policy's actions. If imagination puts the policies in the same order as "
        "the simulator does, the next policy can be judged without one."
    )
    chips = [
        f"world: {s['env']}",
        f"{len(d['policies'])} policies",
        f"{s['episodes_per_task']} starts for each of {len(s['tasks'])} tasks",
        f"at most {s['max_steps'] / s['action_rate']:g} s an episode",
    ]
    return join(
        el("h1", "Can the world model tell good policies from bad ones?"),
        el("p", lead, css="lead"),
        el("ul", *(el("li", c) for c in chips), css="chips"),
    )


def _glance(ranking: Ranking) -> Html:
    rows = []
    for kind in KINDS:
        for condition, label in CONDITIONS.items():
            found = ranking.measures.get((condition, kind))
            if found:
                rows.append([f"{kind}: {label}", *(_figure(found[name]) for name in _NAMES)])
    text = (
        "r and rank correlation: 1 is the same order, 0 is none. Rank violation: how much real success is given away, on "
        "average, by the worst wrong order of two policies; 0 is best. In brackets: where the figure lies in 95 of 100 draws of "
        f"other starts. They are figures of {len(ranking.document['policies'])} policies, and say little of others."
    )
    lines = [f"{x['metric']} is left out: {x['reason']}." for x in ranking.document["left_out"]]
    return el(
        "section",
        el("h2", "At a glance"),
        checks_list(ranking.answers),
        table(["How the policies are seen", *_NAMES.values()], rows),
        el("p", text, css="note"),
        *(el("p", line, css="note") for line in lines),
        id="glance",
    )


def _figure(found: Estimate) -> Html:
    if found.value is None:
        return Html('<span class="note">all policies look alike</span>')
    return join(el("b", number(found.value)), el("br"), el("span", interval(found), css="note"))


def _kind(ranking: Ranking, kind: str) -> Html | None:
    if ("model", kind) not in ranking.measures:
        return None
    title, note = {
        "success": (
            "Success: real against imagined",
            "Share of the starts. Grey lines: 95 % intervals of a rate (Wilson).",
        ),
        "progress": ("Progress: real against imagined", "How far a policy came at best, on average over the starts."),
    }[kind]
    charts = []
    for condition, label in CONDITIONS.items():
        points = [_point(p, condition, kind) for p in ranking.document["policies"]]
        axes = Axes(x_label="in the simulator", y_label=label, width=250, title=f"{kind}, {label}")
        charts.append(el("div", scatter_chart(points, axes)))
    names = (el("li", _title(p)) for p in ranking.document["policies"])
    return el(
        "section",
        el("h2", title),
        el("p", f"{note} On the line both agree."),
        el("div", *charts, css="squares"),
        el("ol", *names, css="names"),
        id=kind,
    )


def _title(policy: Mapping[str, Any]) -> str:
    return policy["name"] + (f" ({policy['variant']})" if policy["variant"] else "")


def _point(policy: Mapping[str, Any], condition: str, kind: str) -> Point:
    seen = policy[condition]
    if kind == "progress":
        return Point(label=_title(policy), x=policy["progress"], y=seen["progress"])
    real, other = policy["success"], seen["success"]
    return Point(
        label=_title(policy), x=real["rate"], y=other["rate"], x_interval=real["wilson"], y_interval=other["wilson"]
    )


def _films(ranking: Ranking, films: Sequence[UInt8[np.ndarray, "f h w 3"]]) -> Html | None:
    if not films:
        return None
    cards = []
    for pair, frames in zip(ranking.pairs, films, strict=True):
        ends = [
            "success" if t.succeeded else f"{100 * max(o.progress for o in t.outcomes):.0f} % of the way"
            for t in (pair.real, pair.imagined)
        ]
        cards.append(
            el(
                "figure",
                el("div", el("span", f"simulator: {ends[0]}"), el("span", f"imagined: {ends[1]}"), css="heads"),
                clips.movie(frames, _seconds_a_picture(ranking), f"{pair.policy}, {pair.start_id}"),
                el("figcaption", f"{pair.policy}: {pair.prompt} ", el("code", pair.start_id)),
            )
        )
    return el(
        "section",
        el("h2", "The same policy from the same start, in both worlds"),
        el("p", "Left the simulator, right the world model's imagination. The policy sees what is shown on its side only."),
        el("div", *cards, css="gallery"),
        id="films",
    )  # fmt: skip


def _policies(ranking: Ranking) -> Html:
    rows = [
        [
            _title(p),
            _rate(p["success"]),
            _rate(p["model"]["success"]),
            _rate(p["judge"]["success"]),
            f"{100 * p['progress']:.0f} %",
            f"{100 * p['model']['progress']:.0f} %",
            f"{100 * p['judge']['progress']:.0f} %",
            number(p["model"]["kruskal_p_progress"]),
        ]
        for p in ranking.document["policies"]
    ]
    head = ["Policy", "Success", "imagined", "judge on real pictures", "Progress", "imagined", "judge on real pictures",
            "chance that real and imagined progress are alike (Kruskal)"]  # fmt: skip
    return el("section", el("h2", "Policy by policy"), table(head, rows), id="policies")


def _rate(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else f"{found['successes']} of {found['episodes']}"


def _method(ranking: Ranking) -> Html:
    d, s, judge = ranking.document, ranking.document["settings"], ranking.document["judge"]
    rows = [
        [
            task,
            f"{f['episodes']} episodes, {f['successes']} successes",
            f"{number(f['progress_mae'])} (the mean: {number(f['progress_mae_of_the_mean'])})",
            "-" if f["success_agreement"] is None else f"{100 * f['success_agreement']:.0f} %",
            f"{f['kernel']}{', with changes' if f['reads_changes'] else ''}",
        ]
        for task, f in judge["tasks"].items()
    ]
    off = ", ".join(number(x) for x in judge["state_error_std"])
    words = [
        "The judge is a regression on coarse pictures, fitted on other starts that the policies and the expert played in the "
        "simulator; its errors below are on episodes that the fit did not see.",
        f"The body's state is {judge['state']}; over whole real episodes it is off by {off} standard deviations.",
        f"Both worlds: a decision every {s['execute']} actions, a picture every {s['picture_every_steps']}.",
    ]
    if s["lookback_without_picture"]:
        words.append(
            f"Policies look back {s['lookback_without_picture']} actions, of which there is no imagined picture: they do without, "
            "as at the start of an episode."
        )
    facts = [
        ["Command", el("code", d["command"])],
        ["World model", f"{d['world_model']['num_parameters'] / 1e6:.2f} M parameters, {d['world_model']['num_inference_steps']} steps, "
                        f"sha256 {d['world_model']['model_hash'][:16]}"],
        ["Starts", f"seed {s['seed']}, the same for all"],
        ["Where", ", ".join(f"{k} {v}" for k, v in d["environment"].items() if v is not None)],
        ["Code", f"wam_video {d['library_version']}, commit {d['commit'] or 'unknown'}"],
        ["Time", f"{d['timing']['seconds']:.0f} s, {d['timing']['started']}"],
    ]  # fmt: skip
    head = ["Task", "Learned from", "Progress is off by", "Success told right", "Kernel"]
    return el(
        "section",
        el("h2", "How it was measured"),
        *(el("p", w) for w in words),
        table(head, rows),
        table(["", ""], facts),
        id="method",
    )


def summary(ranking: Ranking) -> list[str]:
    """Return the lines that a terminal shows."""
    lines = []
    for (condition, kind), found in ranking.measures.items():
        figures = ", ".join(f"{name} {_words(e)}" for name, e in found.items())
        lines.append(f"{kind}, {CONDITIONS[condition]}: {figures}")
    return lines


def markdown(document: Mapping[str, Any]) -> str:
    """Return the figures of a record of `wam-video rank` for a model card.

    Raises:
        DataError: It is no such record.
    """
    try:
        policies, settings = document["policies"], document["settings"]
        head = f"{len(policies)} policies from the same {len(document['starts'])} starts of `{settings['env']}`, seed {settings['seed']}, "
        cells = {
            (m["condition"], m["of"], m["measure"]): Estimate(**{f.name: m[f.name] for f in fields(Estimate)})
            for m in document["measures"]
        }
        rows = [
            (f"{kind}: {label}", *(_words(cells[condition, kind, name]) for name in _NAMES))
            for kind in KINDS
            for condition, label in CONDITIONS.items()
            if all((condition, kind, name) in cells for name in _NAMES)
        ]
        seen = [
            (_title(p), _rate(p["success"]), _rate(p["model"]["success"]), _percent(p), _percent(p["model"]))
            for p in policies
        ]
    except (KeyError, TypeError) as error:
        raise DataError(f"the record lacks {error}; give the rank.json that `wam-video rank` wrote") from error
    head += "in the simulator and in the imagination of this checkpoint. In brackets 95 % intervals over starts."
    titles = ("policy", "success", "imagined", "progress", "imagined")
    return "\n".join([head, "", *_lines(("", *_NAMES.values()), rows), "", *_lines(titles, seen)])


def _words(found: Estimate) -> str:
    if found.value is None:
        return "all policies look alike"
    return number(found.value) + ("" if found.low is None else f" ({interval(found)})")


def _percent(found: Mapping[str, Any]) -> str:
    return f"{100 * found['progress']:.0f} %"


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]
