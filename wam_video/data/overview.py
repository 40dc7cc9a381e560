"""A page that shows what is in a folder of shards: pictures, action plots, counts, oddities. One file, no network."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wam_video.data.charts import Series, colour, contact_sheet, plot_dimensions, plot_histograms, plot_lengths
from wam_video.data.manifest import Manifest, SampleEntry, ShardEntry, load_manifest
from wam_video.data.normalize import Stats, load_stats
from wam_video.data.reader import Clip, load_clip, read_sample, sample_arrays, sample_info
from wam_video.data.schema import EmbodimentSpec
from wam_video.errors import DataError
from wam_video.markup import Html, el, join, picture, table
from wam_video.page import frame, write_whole

_FRAMES = 8
_MAX_ROWS = 50_000
_MAX_PROMPTS = 30
_MAX_SKIPPED = 200

_STYLE = (
    "img { max-width: 100%; display: block; } .clip { margin: .9em 0; } .warn { color: var(--no); } td { text-align: left; } "
    ".mark { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }"
)

Placed = tuple[ShardEntry, SampleEntry]


def write_page(folder: Path | str, page: Path | str, *, clips: int = 6) -> Path:
    """Write an HTML page about a folder of shards.

    Args:
        folder: A folder that `convert` wrote.
        page: File to write.
        clips: How many clips of each body are shown, spread evenly over the episodes.

    Raises:
        DataError: The shards can't be read or the page can't be written.
    """
    folder, page = Path(folder), Path(page)
    manifest = load_manifest(folder)
    try:
        stats: Stats = load_stats(folder)
        trouble = None
    except DataError as error:  # the page must be there most of all when something is wrong
        stats, trouble = {}, el("p", error, css="warn")
    by_body: dict[str, list[Placed]] = defaultdict(list)
    for shard in manifest.shards:
        for sample in shard.samples:
            by_body[sample.embodiment].append((shard, sample))
    parts = [_head(manifest), trouble]
    for name, spec in manifest.embodiments.items():
        parts.append(_body_section(folder, spec, by_body[name], stats.get(name, {}), clips))
    parts += [_oddities(manifest)]
    document = frame(manifest.dataset, parts, _STYLE)
    return write_whole(page.parent, page.name, document.encode())


def _head(manifest: Manifest) -> Html:
    rows = [
        [
            split,
            *(f"{counts[k]:,}" for k in ("episodes", "samples", "frames", "actions", "seconds")),
            _mib(counts["bytes"]),
        ]
        for split, counts in manifest.counts.items()
        if counts.get("episodes")
    ]
    options = manifest.options
    facts = [
        ["source", options.get("source", "unknown")],
        ["licence", options.get("licence", "unknown")],
        ["converter", manifest.converter],
        ["stored size", f"{options.get('height')} x {options.get('width')} (height x width), fit {options.get('fit')}"],
        ["shards", len(manifest.shards)],
        ["skipped", f"{len(manifest.skipped)} episode(s)"],
    ]
    counts = ["split", "episodes", "clips", "frames", "actions", "seconds", "MiB"]
    return el(
        "section",
        el("h1", manifest.dataset),
        el("p", "What is in these shards, as a model will see it.", css="note"),
        table([], facts),
        table(counts, rows),
    )


def _body_section(folder: Path, spec: EmbodimentSpec, placed: list[Placed], stats: dict[str, Any], clips: int) -> Html:
    shown = _spread(placed, clips)
    decoded = [load_clip(folder, shard, sample) for shard, sample in shown]
    facts = [
        ["views", ", ".join(spec.views)],
        ["stored frames per second", f"{spec.fps:g}"],
        ["actions", f"{spec.action_dim} dimensions at {spec.action_rate:g} Hz" if spec.action_dim else "none"],
        ["action units", ", ".join(dict.fromkeys(spec.action_units)) or "not recorded"],
        ["state", f"{spec.state_dim} dimensions" if spec.state_dim else "none"],
        ["description", spec.description],
    ]
    parts = [el("h2", f"Body {spec.name}"), table([], facts), el("h3", "Clips")]
    for number, ((shard, sample), clip) in enumerate(zip(shown, decoded, strict=True)):
        parts.append(_clip_figure(number, shard, sample, clip))
    rows, prompts = _collect(folder, placed)
    for quantity, names, dim in (
        ["actions", spec.action_names, spec.action_dim],
        ["state", spec.state_names, spec.state_dim],
    ):
        if dim and rows[quantity]:
            labels = names or tuple(f"{quantity} {i}" for i in range(dim))
            parts.append(_quantity_section(quantity, labels, decoded, rows[quantity], stats.get(quantity)))
    parts += [el("h3", "Episode lengths"), picture(plot_lengths(_lengths(spec, placed)), "histogram of lengths")]
    listed = prompts.most_common(_MAX_PROMPTS)
    parts.append(el("h3", f"Instructions ({len(prompts)} different, by clips)"))
    parts.append(table([], [[count, text or "(none)"] for text, count in listed]))
    if len(prompts) > len(listed):
        parts.append(el("p", f"and {len(prompts) - len(listed)} more", css="note"))
    return el("section", *parts)


def _clip_figure(number: int, shard: ShardEntry, sample: SampleEntry, clip: Clip) -> Html:
    prompt = " / ".join(clip.info.get("prompts", ())) or "no instruction"
    start, fps = float(clip.info.get("clip_start_s", 0)), float(clip.info.get("fps", 1))
    facts = f"{sample.key}, {shard.split}, {start:.1f} to {start + sample.num_frames / fps:.1f} s, {sample.num_frames} frames"
    mark = el("span", css="mark", style=f"background: {colour(number)}")
    rows = [mark, el("b", prompt), " ", el("span", facts, css="note")]
    picks = np.unique(np.linspace(0, sample.num_frames - 1, _FRAMES).round().astype(int))
    for view, frames in clip.video.items():
        sheet = contact_sheet([frames[i] for i in picks])
        rows += [el("div", view, css="note"), picture(sheet, f"{view} of {sample.key}", "jpeg")]
    return el("div", *rows, css="clip")


def _quantity_section(
    quantity: str, names: Sequence[str], clips: Sequence[Clip], rows: list[np.ndarray], stats: dict[str, Any] | None
) -> Html:
    series = []
    for clip in clips:
        values = getattr(clip, quantity)
        if values is not None and len(values):
            times = float(clip.info["clip_start_s"]) + np.arange(len(values)) / float(clip.info["action_rate"])
            series.append(Series(label=str(clip.info["episode_id"]), times=times, values=values))
    values = np.concatenate(rows)
    over_time = plot_dimensions(series, names, stats)
    spread = plot_histograms(values, names, stats)
    name = quantity.capitalize()
    return join(
        el("h3", f"{name} over time"),
        el("p", "Each colour is one of the clips above; the grey band holds 98 % of the training data.", css="note"),
        picture(over_time, f"{quantity} over time"),
        el("h3", f"{name}, how often"),
        el("p", f"{len(values):,} rows; dashed: 1 % and 99 %.", css="note"),
        picture(spread, f"histograms of {quantity}"),
    )


def _collect(folder: Path, placed: list[Placed]) -> tuple[dict[str, list[np.ndarray]], Counter[str]]:
    """Read the numbers and instructions of all clips, or of evenly spread ones where there are very many."""
    rows: dict[str, list[np.ndarray]] = {"actions": [], "state": []}
    prompts: Counter[str] = Counter()
    total = sum(sample.num_actions for _, sample in placed)
    wanted = len(placed) if total <= _MAX_ROWS else max(1, len(placed) * _MAX_ROWS // total)
    for shard, sample in _spread(placed, max(wanted, min(len(placed), 500))):
        members = read_sample(folder, shard, sample)
        info = sample_info(members, sample.key)
        prompts[" / ".join(info.get("prompts", ()))] += 1
        arrays = sample_arrays(members, info, sample.key)
        for name, found in rows.items():
            array = arrays[name]
            if array is not None and len(array):
                found.append(array)
    return rows, prompts


def _spread(placed: list[Placed], count: int) -> list[Placed]:
    """Return up to `count` samples, evenly spread over the stored order."""
    picks = np.unique(np.linspace(0, len(placed) - 1, min(count, len(placed))).round().astype(int))
    return [placed[i] for i in picks]


def _lengths(spec: EmbodimentSpec, placed: list[Placed]) -> list[float]:
    frames: Counter[str] = Counter()
    for _, sample in placed:
        frames[sample.episode_id] += sample.num_frames
    return [count / spec.fps for count in frames.values()]


def _oddities(manifest: Manifest) -> Html:
    notes = [[count, note] for note, count in manifest.notes.items()]
    skipped = [[s.episode_id, s.reason] for s in manifest.skipped[:_MAX_SKIPPED]]
    return el(
        "section",
        el("h2", "Oddities that were survived"),
        table(["episodes", "note"], notes) if notes else el("p", "none"),
        el("h2", f"Skipped episodes ({len(manifest.skipped)})"),
        table(["episode", "reason"], skipped) if skipped else el("p", "none"),
    )


def _mib(count: int) -> str:
    return f"{count / 2**20:.2f}"
