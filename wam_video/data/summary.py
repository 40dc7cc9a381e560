"""Short plain-text accounts of a dataset, for a terminal."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wam_video.data.convert import Plan
from wam_video.data.encode import WriterConfig
from wam_video.data.manifest import Manifest
from wam_video.data.schema import EmbodimentSpec

_MAX_SKIPPED = 10


def summary_text(manifest: Manifest, folder: Path | str) -> str:
    """Return what is in a folder of shards: counts, bodies, oddities and what was left out."""
    lines = [f"{manifest.dataset} in {folder} ({len(manifest.shards)} shard(s), by {manifest.converter})"]
    for split, counts in manifest.counts.items():
        if isinstance(counts, Mapping) and counts.get("episodes"):
            lines.append(f"  {split:6s} {_counts(counts)}")
    lines += _body_lines(manifest.embodiments.values())
    lines += _oddities(manifest.notes, [(s.episode_id, s.reason) for s in manifest.skipped])
    return "\n".join(lines)


def plan_text(plan: Plan, output: Path | str, config: WriterConfig) -> str:
    """Return what a conversion would write."""
    fps = f"{config.fps:g} fps" if config.fps else "their own fps"
    lines = [
        f"would write {config.dataset} to {output} as {config.height}x{config.width} ({config.fit}) at {fps}; nothing written",
        f"  {plan.episodes} episode(s), {plan.frames} recorded frames, {plan.seconds:.1f} s, {plan.actions} actions, "
        f"{plan.prompts} different instruction(s)",
    ]
    lines += _body_lines(plan.embodiments.values())
    lines += _oddities(plan.notes, [(s.episode_id, s.reason) for s in plan.skipped])
    return "\n".join(lines)


def stats_text(stats: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return one line per dimension: mean, deviation and range."""
    lines = []
    for embodiment, quantities in stats.items():
        for quantity, values in quantities.items():
            lines.append(f"{embodiment} {quantity}, {values['count']} rows")
            columns = zip(*(values[name] for name in ("mean", "std", "min", "q01", "q99", "max")), strict=True)
            for i, (mean, std, low, q01, q99, high) in enumerate(columns):
                note = "  constant" if low == high else ""
                lines.append(
                    f"  {i:3d}  mean {mean:10.4g}  std {std:9.4g}  min {low:10.4g}  q01 {q01:10.4g}  q99 {q99:10.4g}  "
                    f"max {high:10.4g}{note}"
                )
        if not quantities:
            lines.append(f"{embodiment}: no actions and no state")
    return "\n".join(lines)


def body_text(spec: EmbodimentSpec) -> str:
    """Return one line on a body: dimensions, rates and cameras."""
    actions = f"actions {spec.action_dim} at {spec.action_rate:g} Hz" if spec.action_dim else "no actions"
    state = f"state {spec.state_dim}" if spec.state_dim else "no state"
    return f"{spec.name}: {actions}, {state}, {spec.fps:g} fps, views {', '.join(spec.views)}"


def _counts(counts: Mapping[str, Any]) -> str:
    return (
        f"{counts['episodes']:5d} episodes  {counts['samples']:5d} clips  {counts['frames']:7d} frames  "
        f"{counts['actions']:7d} actions  {counts['seconds']:9.1f} s  {counts['bytes'] / 2**20:8.2f} MiB"
    )


def _body_lines(specs: Iterable[EmbodimentSpec]) -> list[str]:
    return [f"  body   {body_text(spec)}" for spec in specs]


def _oddities(notes: Mapping[str, int], skipped: list[tuple[str, str]]) -> list[str]:
    lines = [f"  note   {note} ({count} episode(s))" for note, count in notes.items()]
    lines += [f"  skipped {episode}: {reason}" for episode, reason in skipped[:_MAX_SKIPPED]]
    if len(skipped) > _MAX_SKIPPED:
        lines.append(f"  skipped {len(skipped) - _MAX_SKIPPED} more, see manifest.json")
    return lines
