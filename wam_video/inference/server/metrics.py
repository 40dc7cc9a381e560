"""Counters, gauges and histograms in Prometheus' text form (https://prometheus.io/docs/instrumenting/exposition_formats)."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable

PREFIX = "wam_video_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

_COUNTERS = {
    "requests_total": ("endpoint", "Requests that were answered as asked."),
    "errors_total": ("kind", "Requests that were answered with an error: theirs (request) or ours (internal)."),
    "refused_total": ("reason", "Connections that were not let in."),
    "throttled_total": ("", "Requests that had to wait for the rate limit."),
    "evicted_total": ("", "Sessions that were forgotten because nobody used them."),
    "restarted_total": ("", "Decisions without memory, because frames were missing."),
    "out_of_range_total": ("", "Decisions with actions outside the range of the training data."),
}
_HISTOGRAMS = {
    "decision_seconds": (SECONDS, "Time of a batch of decisions in the worker."),
    "batch_size": (SIZES, "Robots decided for together."),
    "request_seconds": (SECONDS, "Time from a request to its answer."),
}


class Metrics:
    """What a server counts. Not thread-safe: count on the event loop only."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._buckets = {name: [0] * (len(edges) + 1) for name, (edges, _) in _HISTOGRAMS.items()}
        self._sums = dict.fromkeys(_HISTOGRAMS, 0.0)

    def count(self, name: str, label: str = "", by: int = 1) -> None:
        """Count an event; `label` is the value of the counter's one label."""
        self._counts[name][label] += by

    def counted(self, name: str, label: str = "") -> int:
        """Return a counter."""
        return self._counts[name][label]

    def observe(self, name: str, value: float) -> None:
        """Put a value into a histogram."""
        self._buckets[name][bisect_left(_HISTOGRAMS[name][0], value)] += 1
        self._sums[name] += value

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Show what `read` returns whenever somebody looks."""
        self._gauges[name] = text, read

    def text(self) -> str:
        """Return everything as Prometheus reads it."""
        lines = []
        for name, (label, text) in _COUNTERS.items():
            lines += _head(name, text, "counter")
            values = self._counts[name] or ({} if label else {"": 0})
            lines += [
                f'{PREFIX}{name}{{{label}="{key}"}} {n}' if label else f"{PREFIX}{name} {n}"
                for key, n in values.items()
            ]
        for name, (text, read) in self._gauges.items():
            lines += [*_head(name, text, "gauge"), f"{PREFIX}{name} {read():g}"]
        for name, (edges, text) in _HISTOGRAMS.items():
            lines += _head(name, text, "histogram")
            total = 0
            for edge, n in zip([*map(str, edges), "+Inf"], self._buckets[name], strict=True):
                total += n
                lines.append(f'{PREFIX}{name}_bucket{{le="{edge}"}} {total}')
            lines += [f"{PREFIX}{name}_sum {self._sums[name]:.6f}", f"{PREFIX}{name}_count {total}"]
        return "\n".join(lines) + "\n"


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {PREFIX}{name} {text}", f"# TYPE {PREFIX}{name} {kind}"]
