"""`wam-video ablate`: variants x seeds, trained and scored alike; ablation.json and report.html say what may be claimed."""

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wam_video.cli.command import DONE, FAILED, run
from wam_video.cli.options import check_output
from wam_video.config import load
from wam_video.errors import ConfigError, one_of
from wam_video.log import setup_logging

if TYPE_CHECKING:
    from wam_video.cli.ablate_cells import Failure
    from wam_video.cli.ablate_spec import AblationConfig, Plan

_EXAMPLE = """\
examples:
  wam-video ablate configs/ablation/clocks.yaml --output runs/clocks --dry-run
  wam-video ablate configs/ablation/clocks.yaml --output runs/clocks --jobs 2
  wam-video ablate configs/ablation/clocks.yaml 'seeds=[0]' --only shared flash --output runs/clocks
  wam-video card model_cards/mine --ablation runs/clocks/ablation.json

The same command again goes on where it stopped; finished runs are kept. A table is written after every command, of
whatever is finished. Exit code 1 where a run failed; it is named."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    result = argparse.ArgumentParser(
        prog="wam-video ablate",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("sources", nargs="+", metavar="SPEC.yaml|key=value", help="merged left to right")
    add("--output", type=Path, required=True, metavar="DIR", help="DIR/VARIANT/seedN/, ablation.json and report.html")
    add("--jobs", type=int, default=1, metavar="N", help="runs side by side; they share the cores (default 1)")
    add("--only", nargs="+", metavar="VARIANT", help="run only these now; the table holds whatever is finished")
    add(
        "--dry-run", action="store_true", help="print the commands of every run and whether it is finished; run nothing"
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run an ablation, or show it; return the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_intermixed_args(given)  # key=value also after the options
    setup_logging()
    if arguments.jobs < 1:
        raise ConfigError(f"--jobs is {arguments.jobs}; allowed: 1 or more")
    check_output(arguments.output)
    from wam_video.cli.ablate_cells import is_finished  # torch: not before --help has answered
    from wam_video.cli.ablate_spec import AblationConfig, plan

    config = _named(load(AblationConfig, arguments.sources), arguments.sources)
    for name in arguments.only or ():
        if name not in config.variants:
            raise ConfigError(one_of("--only", name, config.variants))
    plans = plan(config, arguments.output)
    finished = {p.name: is_finished(p) for p in plans}  # a changed one is refused before any work
    chosen = [p for p in plans if not arguments.only or p.variant in arguments.only]
    if arguments.dry_run:
        return _show(chosen, finished)
    started = time.monotonic()
    failures = _run(chosen, arguments.jobs)
    command = shlex.join(["wam-video", "ablate", *(given[1:] if given[:1] == ["ablate"] else given)])
    _report(
        config, plans, failures, arguments.output, {"command": command, "seconds": round(time.monotonic() - started, 1)}
    )
    for failure in failures:
        print(f"failed: {failure.plan.name}: {failure.reason}", file=sys.stderr)
    return FAILED if failures else DONE


def _named(config: "AblationConfig", sources: Sequence[str]) -> "AblationConfig":
    files = [s for s in sources if "=" not in s]
    return config if config.name or not files else replace(config, name=Path(files[-1]).stem)


def _show(plans: Sequence["Plan"], finished: dict[str, bool]) -> int:
    for plan in plans:
        print(f"# {plan.name}: {'finished' if finished[plan.name] else 'to do'}")
        for step in plan.commands:
            print(plan.shell(step))
    return DONE


def _run(plans: Sequence["Plan"], jobs: int) -> list["Failure"]:
    """Run the cells; a request to stop reaches the steps, and trainings save what they have."""
    from wam_video.cli.ablate_cells import Runner

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # of a list, the outermost level's
    allowed = int(first) if first.isdecimal() and int(first) else cores
    runner = Runner(jobs, max(1, min(allowed, cores) // jobs))
    before = signal.signal(signal.SIGTERM, lambda *_: runner.stop())
    try:
        return runner.run(plans)
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(
    config: "AblationConfig",
    plans: Sequence["Plan"],
    failures: Sequence["Failure"],
    output: Path,
    facts: dict[str, Any],
) -> None:
    """Write the table of whatever is finished."""
    from wam_video import __version__
    from wam_video.cli.ablate_cells import is_finished, read_marker
    from wam_video.evaluation.ablation_page import conclusions, write
    from wam_video.evaluation.ablation_record import Study, read_cell, record
    from wam_video.evaluation.evaluate import commit, environment

    done = [p for p in plans if is_finished(p)]
    if not done:
        return
    reasons = {f.plan.name: f.reason for f in failures}
    cells = [read_cell(p.variant, p.seed, p.folder) for p in done]
    missing = [
        {"variant": p.variant, "seed": p.seed, "reason": reasons.get(p.name, "not run yet")}
        for p in plans
        if p not in done
    ]
    conditions = {
        "configs": config.configs, "overrides": config.overrides, "data": config.data or "as trained on",
        "evaluate": asdict(config.evaluate), **({"rollout": asdict(config.rollout)} if config.rollout.env else {}),
    }  # fmt: skip
    study = Study(
        name=config.name or "ablation",
        reference=config.compared_with,
        variants=config.variants,
        seeds=config.seeds,
        metrics=config.shown,
        conditions=conditions,
        statistics=config.statistics,
    )
    made = {
        "command": facts["command"],
        "library_version": __version__,
        "commit": commit(),
        "environment": environment("cuda" if _has_cuda() else "cpu"),
        "timing": {"seconds": facts["seconds"], "cells": {p.name: read_marker(p)["seconds"] for p in done}},
    }
    document = record(study, cells, missing) | made
    paths = write(document, output)
    print("\n".join([*conclusions(document), *map(str, paths)]))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(run(main))
