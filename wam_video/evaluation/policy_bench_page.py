"""The page of `wam-video bench policy`: latency of each way to decide, and the parts that it consists of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wam_video import page
from wam_video.evaluation.policy_bench import PARTS
from wam_video.evaluation.svg import Bar, bar_chart
from wam_video.markup import Html, el, table

RECORD = "policy.json"

_HEAD = [
    "way",
    "p50, ms",
    "p95, ms",
    "p99, ms",
    "Hz",
    "ratio",
    "CPU, ms",
    "calls",
    "GFLOP",
    "fewer",
    "of the peak, %",
    "of the roofline, %",
]


def write(figures: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write the record and its page; return their paths.

    Raises:
        DataError: The folder can't be written.
    """
    return page.write_page(folder, RECORD, figures, page.frame("Latency of a decision", _sections(figures)))


def _sections(figures: Mapping[str, Any]) -> list[Html]:
    ways = figures["variants"]
    longest = max(way["latency_ms"]["p95"] for way in ways)
    bars = [
        Bar(label=way["name"], value=ms["p50"], low=ms["p50"], high=ms["p95"], style="model" if i == 0 else "control")
        for i, way in enumerate(ways)
        for ms in (way["latency_ms"],)
    ]
    machine = figures["hardware"]
    where = f"{machine['device']}, {machine['threads']} thread(s), {figures['network']['parameters']:,} parameters in {figures['network']['dtype']}"
    each = f"{figures['robots']} robot(s) at once, {figures['decisions']} decisions of each way in turn"
    peak = f"{figures['peak']['bf16_tflops']:g} TFLOP/s of {figures['peak']['device']}"
    return [
        el("h1", "Latency of a decision"),
        el("p", f"{where}; {each}. The bar is the median, the whisker reaches to the 95th percentile."),
        bar_chart(bars, unit=" ms", title="Median latency"),
        table(_HEAD, [_row(way) for way in ways]),
        *_errors(figures),
        el("p", f"The peak is {peak}; operations are of the network alone, and its time is prefill and denoising.", css="note"),
        el("h2", "Where it goes"),
        *(section for way in ways for section in _parts(way, longest)),
    ]  # fmt: skip


def _row(way: Mapping[str, Any]) -> list[Any]:
    ms, ratio = way["latency_ms"], way["ratio"]
    return [
        way["name"], *(f"{ms[name]:.3g}" for name in ("p50", "p95", "p99")), f"{way['hz']:.3g}",
        f"{ratio['median']:.3g} ({ratio['min']:.3g} to {ratio['max']:.3g})", f"{way['cpu_ms']:.3g}", f"{way['calls']:.3g}",
        f"{way['flops'] / 1e9:.3g}", f"{way['fewer_flops']:.3g}x", f"{100 * way['share_of_peak']:.3g}", f"{100 * way['share_of_roofline']:.3g}",
    ]  # fmt: skip


def _errors(figures: Mapping[str, Any]) -> list[Html]:
    if "data" not in figures:
        return []
    data = figures["data"]
    head = ["way", "GFLOP", "error, std", "more than the first way's", "apart from the first way's, std"]
    rows = [
        [
            way["name"],
            f"{way['flops'] / 1e9:.3g}",
            *(_interval(way["error"][key]) for key in ("nrmse", "more_than_first", "apart")),
        ]
        for way in figures["variants"]
    ]
    sentence = (
        f"{data['windows']} moments of {data['episodes']} held-out episodes of {data['path']}, {data['embodiment']}; from the same noise. "
        "In brackets 95 % intervals over episodes. One step tends to the mean of all likely plans, which lowers this error and need not act better."
    )  # fmt: skip
    return [el("h2", "What the actions lose"), el("p", sentence), table(head, rows)]


def _interval(one: Mapping[str, float | None]) -> str:
    return f"{one['value']:.3g}" + ("" if one["low"] is None else f" ({one['low']:.3g} to {one['high']:.3g})")


def _parts(way: Mapping[str, Any], longest: float) -> list[Html]:
    bars = [Bar(label=part, value=way["parts_ms"][part], style="model") for part in PARTS]
    return [el("h3", way["name"]), bar_chart(bars, unit=" ms", title=f"Parts of {way['name']}", domain=(0.0, longest))]
