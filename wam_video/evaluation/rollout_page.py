"""The page of a closed loop: one HTML file that says how well a policy acts, to somebody who has never seen one."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from wam_video.data.video import encode_mp4
from wam_video.evaluation.agents import CONTROLS
from wam_video.evaluation.films import film
from wam_video.evaluation.rollout import Episode
from wam_video.evaluation.rollouts import Played, Rollouts
from wam_video.evaluation.svg import Axes, Bar, Series, bar_chart, line_chart, number
from wam_video.markup import Html, el, join, table
from wam_video.page import frame, write_page, write_whole

MAX_BYTES = 4_000_000
"""Of the films inside the page; the others are files beside it only."""
_MAX_THUMBNAILS = 120
_THUMBNAIL = 72
_CSS = """
.wall { display: grid; grid-template-columns: repeat(auto-fill, minmax(72px, 1fr)); gap: 8px; max-width: 900px; }
.wall figure { border-radius: 7px; padding: 3px; background: var(--faint); position: relative; }
.wall figure.won { background: var(--yes); }
.wall img { display: block; width: 100%; border-radius: 4px; }
.wall figcaption { font-size: 11px; text-align: center; line-height: 1.5; color: var(--ink); }
.wall .won figcaption { color: #fff; font-weight: 600; }
.films { display: grid; gap: 20px 28px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.badge { font-weight: 650; } .badge.yes { color: var(--yes); } .badge.no { color: var(--no); }
"""


@dataclass(frozen=True, kw_only=True)
class Film:
    """A film of one episode."""

    mp4: bytes
    first: UInt8[np.ndarray, "h w 3"]
    """Its first frame."""


def write_films(rollouts: Rollouts, folder: Path) -> dict[str, Film]:
    """Write the films into `folder/films` and return them by file name.

    Raises:
        DataError: The folder can't be written.
    """
    made: dict[str, Film] = {}
    for played in rollouts.played:
        for episode in played.episodes:
            if episode.film:
                frames, fps = film(episode, rollouts.action_rate)
                made[_film_name(played, episode)] = Film(mp4=encode_mp4(frames, fps=fps, crf=23), first=frames[0])
    for name, one in made.items():
        write_whole(folder / "films", name, one.mp4)
    return made


def write(rollouts: Rollouts, folder: Path) -> tuple[Path, Path]:
    """Write `rollout.json`, `report.html` and `films/` into `folder` and return the paths of the first two.

    Raises:
        DataError: The folder can't be written.
    """
    films = write_films(rollouts, folder)
    return write_page(folder, "rollout.json", rollouts.document, render(rollouts, films))


def render(rollouts: Rollouts, films: Mapping[str, Film]) -> str:
    """Return the page."""
    sections = [
        _introduction(rollouts),
        _glance(rollouts),
        _films(rollouts, films),
        _walls(rollouts),
        _tasks(rollouts),
        _method(rollouts),
    ]
    return frame("World action model: how well it acts", sections, _CSS)


def _label(played: Played) -> str:
    return played.name if played.is_model else CONTROLS[played.name].split(",")[0]


def _introduction(rollouts: Rollouts) -> Html:
    s = rollouts.document["settings"]
    disturbed = [f"{name} {value:g}" for name, value in s["disturbance"].items() if value]
    count = s["episodes_per_task"] * len(s["tasks"])
    chips = [
        f"world: {s['env']}",
        f"{len(s['tasks'])} task{'s' if len(s['tasks']) > 1 else ''}, {count} episodes for each policy",
        f"at most {s['max_steps'] / s['action_rate']:g} s an episode, {s['action_rate']:g} actions a second",
        f"disturbed: {', '.join(disturbed)}" if disturbed else "undisturbed",
    ]
    if s["latency_steps"]:
        chips.append(f"each decision takes effect {s['latency_steps'] / s['action_rate']:g} s late")
    lead = (
        "Here the model is let loose: it looks at the picture, decides on its next few actions, carries them out, and looks "
        "again, with nobody to correct it. Every policy below met exactly the same starts."
    )
    return join(
        el("h1", "How well does it act on its own?"),
        el("p", lead, css="lead"),
        el("ul", *(el("li", c) for c in chips), css="chips"),
    )


def _glance(rollouts: Rollouts) -> Html:
    bars, reached = [], []
    for p in rollouts.played:
        found, style = p.record["success"], "model" if p.is_model else "control"
        low, high = found["wilson"]
        bars.append(Bar(label=_label(p), value=100 * found["rate"], low=100 * low, high=100 * high, style=style))
        reached.append(Bar(label=_label(p), value=100 * p.record["mean_best_progress"], style=style))
    charts = el(
        "div",
        el(
            "div",
            el("h3", "Episodes that succeeded"),
            bar_chart(bars, unit=" %", domain=(0, 100), title="Success rates"),
        ),
        el(
            "div",
            el("h3", "How far they came at best, on average"),
            bar_chart(reached, unit=" %", domain=(0, 100), title="Progress"),
        ),
        el("div", el("h3", "Succeeded by then"), _curve(rollouts)),
        css="cols",
    )
    names = {p.name for p in rollouts.played if p.is_model}
    items = [
        el(
            "li",
            c.sentence,
            css="unknown" if c.verdict == "none" else "yes" if c.verdict == "second" or c.first in names else "no",
        )
        for c in rollouts.comparisons
    ]
    note = "Thin lines: where the true rate lies, 95 times in 100 (Wilson). Few episodes, long lines."
    verdicts = join(el("h3", "What may be said"), el("ul", *items, css="checks")) if items else None
    return el("section", el("h2", "At a glance"), charts, el("p", note, css="note"), verdicts, id="glance")


def _curve(rollouts: Rollouts) -> Html:
    limit = rollouts.document["settings"]["max_steps"]
    series = []
    models = 0
    for p in rollouts.played:
        models += p.is_model
        steps = sorted(e.success_step for e in p.episodes if e.success_step is not None)
        grid = np.linspace(0, limit, 61)
        share = [100 * sum(step <= g for step in steps) / len(p.episodes) for g in grid]
        style = f"s{min(models, 3)}" if p.is_model else {"expert": "s0"}.get(p.name, "s4")
        series.append(Series(label=_label(p), x=[g / rollouts.action_rate for g in grid], y=share, style=style))
    return line_chart(series, Axes(x_label="seconds", y_label="% of the episodes", title="Success over time"))


def _films(rollouts: Rollouts, films: Mapping[str, Film]) -> Html | None:
    if not films:
        return None
    cards, inside = [], 0
    for p in rollouts.played:
        for e in p.episodes:
            name = _film_name(p, e)
            if name not in films:
                continue
            inside += len(films[name].mp4)
            source = f"films/{name}"
            if inside <= MAX_BYTES:
                source = f"data:video/mp4;base64,{base64.b64encode(films[name].mp4).decode()}"
            cards.append(_card(p, e, (source, films[name].first), rollouts.action_rate))
    scores = [
        f"{p.name}: expected pictures {number(m['psnr_moving'])} dB on what moved, the last seen picture shown again "
        f"{number(m['psnr_moving_still'])} dB"
        for p in rollouts.played
        if (m := p.record["imagination"])
    ]
    key = join(
        "Left what happened; right what the model expected, from its own plan, each time it decided. The bar below is ",
        el("span", css="swatch", style="background:#969696"), "grey while it shows what was seen at the decision, ",
        el("span", css="swatch", style="background:#e67814"), "orange while it shows what was expected.",
    )  # fmt: skip
    lines = el("ul", *(el("li", s) for s in scores)) if scores else None
    return el(
        "section",
        el("h2", "What happened, and what it expected"),
        el("p", key),
        lines,
        el("div", *cards, css="films"),
        id="films",
    )


def _card(played: Played, episode: Episode, movie: tuple[str, np.ndarray], rate: float) -> Html:
    source, first = movie
    still = io.BytesIO()
    Image.fromarray(first).save(still, "JPEG", quality=80)
    poster = f"data:image/jpeg;base64,{base64.b64encode(still.getvalue()).decode()}"
    video = el("video", src=source, poster=poster, loop=True, muted=True, autoplay=True, playsinline=True)
    won = episode.success_step is not None
    text = f"success after {episode.success_step / rate:.1f} s" if episode.success_step else _came(episode)
    heads = el("div", el("span", "the world"), el("span", f"what {played.name} expected"), css="heads")
    caption = el(
        "figcaption",
        el("span", text, css=f"badge {'yes' if won else 'no'}"),
        " ",
        episode.prompt,
        " ",
        el("code", episode.start_id),
    )
    return el("figure", heads, video, caption)


def _came(episode: Episode) -> str:
    best = max(o.progress for o in episode.outcomes)
    return f"no success, came {100 * best:.0f} % of the way"


def _walls(rollouts: Rollouts) -> Html:
    parts = []
    for p in rollouts.played:
        shown = list(p.episodes)[:_MAX_THUMBNAILS]
        rest = len(p.episodes) - len(shown)
        more = el("p", f"and {rest} more", css="note") if rest else None
        wall = el("div", *(_thumbnail(e, rollouts.action_rate) for e in shown), css="wall")
        title = f"{_label(p)}: {p.record['success']['successes']} of {len(p.episodes)}"
        body = join(wall, more)
        parts.append(
            join(el("h3", title), body) if p.is_model or not parts else el("details", el("summary", title), body)
        )
    text = "The last picture of each episode, in the order of the starts; green where it succeeded, with the seconds it took."
    return el("section", el("h2", "How every episode ended"), el("p", text), *parts, id="endings")


def _thumbnail(episode: Episode, rate: float) -> Html:
    data = io.BytesIO()
    image = Image.fromarray(episode.last_frame)
    image.resize((_THUMBNAIL, round(_THUMBNAIL * image.height / image.width)), Image.Resampling.LANCZOS).save(
        data, "JPEG", quality=80
    )
    uri = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    best = max(o.progress for o in episode.outcomes)
    step = episode.success_step
    caption = f"{step / rate:.1f} s" if step else f"{100 * best:.0f} %"
    return el(
        "figure",
        el("img", src=uri, alt=episode.start_id),
        el("figcaption", caption),
        css="won" if step else None,
        title=episode.start_id,
    )


def _tasks(rollouts: Rollouts) -> Html | None:
    tasks = rollouts.document["settings"]["tasks"]
    if len(tasks) < 2:
        return None
    rows: list[list[Any]] = []
    for task in tasks:
        cells = [p.record["tasks"][task] for p in rollouts.played]
        rows.append(
            [join(el("b", task), el("br"), el("span", cells[0]["prompt"], css="note")), *(_rate(c) for c in cells)]
        )
    over = [p.record["over_tasks"] for p in rollouts.played]
    if all(over):
        rows.append(["mean over tasks; interval for other tasks like these", *(_over(o) for o in over if o)])
    return el(
        "section", el("h2", "Task by task"), table(["Task", *(_label(p) for p in rollouts.played)], rows), id="tasks"
    )


def _rate(c: Mapping[str, Any]) -> Html:
    low, high = c["wilson"]
    interval = f"{c['successes']} of {c['episodes']}, {100 * low:.0f} to {100 * high:.0f} %"
    return join(el("b", f"{100 * c['rate']:.0f} %"), el("br"), el("span", interval, css="note"))


def _over(o: Mapping[str, Any]) -> Html:
    known = o["low"] is not None
    interval = (
        f"{100 * o['low']:.0f} to {100 * o['high']:.0f} %" if known else "all tasks alike: no interval can be drawn"
    )
    return join(el("b", f"{100 * o['rate']:.0f} %"), el("br"), el("span", interval, css="note"))


def _film_name(played: Played, episode: Episode) -> str:
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in played.name)
    return f"{safe}-{episode.start_id}.mp4"


def _method(rollouts: Rollouts) -> Html:
    d = rollouts.document
    facts: list[list[Any]] = [["Command", el("code", d["command"])]]
    for p in rollouts.played:
        r = p.record
        exact = "{:.0f} to {:.0f} %".format(*(100 * x for x in r["success"]["clopper_pearson"]))
        lines = [f"Clopper-Pearson interval {exact}; decides every {r['replan_interval_s']:g} s"]
        if p.is_model:
            lines += [
                f"{r['clocks']['num_inference_steps']} steps from noise to data, path '{r['clocks']['policy_path']}', solver {r['clocks']['solver']}",
                f"{r['num_parameters'] / 1e6:.2f} M parameters, sha256 {r['model_hash'][:16]}, statistics {r['stats_hash'][:16]}",
                f"{r['late_decisions']} late decisions, {r['held_steps']} steps without a plan",
                f"a call for {r['timing'].get('rows_a_call', 0)} worlds takes {r['timing'].get('call_ms_median', 0):.0f} ms (median)",
            ]
        facts.append([_label(p), join(*(part for line in lines for part in (line, el("br"))))])
    s = d["settings"]
    facts += [
        [
            "Starts",
            f"seed {s['seed']}; each start has a name and a hash in rollout.json, and the noise of a decision depends on seed, episode and decision only",
        ],
        ["Simulators", ", ".join(f"{k} {v}" for k, v in d["simulators"].items())],
        ["Where", ", ".join(f"{k} {v}" for k, v in d["environment"].items() if v is not None)],
        ["Code", f"wam_video {d['library_version']}, commit {d['commit'] or 'unknown'}"],
        ["Time", f"{d['timing']['seconds']:.0f} s, {d['timing']['started']}"],
    ]
    words = [
        ("Success", "The simulator's own test, met at any time of an episode."),
        ("What may be said", "Policies are compared start by start (McNemar's exact test, 5 %, corrected for the number of comparisons of a kind). "
         "Where the starts are too few to carry a claim, none is made."),
        ("Scripted expert", "Sees positions that no camera shows; it marks what the time limit allows. The controls decide at every step, "
         "and at once, whatever latency or deadline the models have."),
    ]  # fmt: skip
    return el(
        "section", el("h2", "How this was measured"), *(el("p", el("strong", a), ": ", b) for a, b in words),
        el("h3", "To repeat it"), table(["", ""], facts), id="method",
    )  # fmt: skip


def summary(rollouts: Rollouts) -> Sequence[str]:
    """Return the lines that a terminal shows."""
    lines = []
    for p in rollouts.played:
        r = p.record["success"]
        low, high = r["wilson"]
        lines.append(
            f"{_label(p)}: {r['successes']} of {r['episodes']} succeeded, {100 * r['rate']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
        )
    return [*lines, *(c.sentence for c in rollouts.comparisons)]
