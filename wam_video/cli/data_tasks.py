"""`wam-video data convert --executor` and `status`: a conversion in units that many processes or machines share."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wam_video.cli.command import DONE
from wam_video.cli.options import parse_options
from wam_video.errors import ConfigError, DataError

if TYPE_CHECKING:
    from wam_video.data.encode import WriterConfig
    from wam_video.data.refine import RefineConfig
    from wam_video.data.sources import Source


def add_tasks(sub: argparse.ArgumentParser) -> None:
    """Add the options that make tasks of a conversion."""
    sub.add_argument(
        "--executor",
        choices=("local", "slurm", "ray"),
        help="encode in units that are kept, by datatrove's tasks: started again after whatever stopped it, it goes on (same bytes); "
        "slurm and ray submit and return, see `wam-video data status`",
    )
    add_executor_options(sub)
    sub.add_argument(
        "--unit", type=int, default=16, metavar="N", help="recordings in a unit, with --executor (default 16)"
    )


def add_executor_options(sub: argparse.ArgumentParser) -> None:
    """Add what a cluster's executor has to be told."""
    sub.add_argument(
        "--executor-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of datatrove's executor, e.g. partition=cpu, time=12:00:00, mem_per_cpu_gb=4; repeatable",
    )


def add_status(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `status`."""
    sub = commands.add_parser(
        "status",
        help="say how far a conversion with --executor is",
        epilog="example: wam-video data status shards/mine",
    )
    sub.add_argument("output", type=Path, metavar="SHARDS", help="its --output")
    sub.set_defaults(command=_status)


def convert_by_tasks(
    arguments: argparse.Namespace,
    source: "Source",
    config: "WriterConfig",
    options: Mapping[str, object],
    refining: "RefineConfig",
) -> int:
    """Convert in units here, or submit them; return the exit code."""
    from wam_video.data.convert import check_limit, check_replaceable
    from wam_video.data.executors import check_local
    from wam_video.data.simulation import BUILT_IN
    from wam_video.data.spool import Recipe
    from wam_video.data.summary import summary_text
    from wam_video.data.tasks import run_here, submit

    output: Path = arguments.output.resolve()
    if source.name in BUILT_IN:
        raise ConfigError(
            f"--executor can't share out source {source.name!r}, which makes its recordings; use data collect --workers"
        )
    for name, value in (("--unit", arguments.unit), ("--workers", arguments.workers)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    check_limit(arguments.limit)
    check_replaceable(output, arguments.overwrite)
    total = source.len_hint if source.len_hint is not None else sum(1 for _ in source.episodes())
    recipe = Recipe(
        source=str(Path(arguments.source).resolve()),
        format=source.name,
        options=dict(options),
        refining=refining.to_options(),
        writer=config,
        recordings=total if arguments.limit is None else min(total, arguments.limit),
        per_unit=arguments.unit,
    )
    if not recipe.recordings:
        raise DataError(f"source {arguments.source!r} has no recordings; check the path and the options")
    extra = parse_options(arguments.executor_option, "--executor-option")
    if arguments.executor == "local":
        check_local(extra)
        manifest = run_here(recipe, output, workers=arguments.workers, overwrite=arguments.overwrite)
        print(summary_text(manifest, arguments.output))
        return DONE
    submit(recipe, output, arguments.executor, workers=arguments.workers, options=extra, overwrite=arguments.overwrite)
    print(f"{recipe.units} units are submitted; see how far they are: wam-video data status {arguments.output}")
    return DONE


def _status(arguments: argparse.Namespace) -> int:
    from wam_video.data.manifest import MANIFEST_NAME, load_manifest
    from wam_video.data.spool import Spool
    from wam_video.data.summary import summary_text
    from wam_video.data.tasks import status

    output: Path = arguments.output.resolve()
    if Spool(output).under_way or not (output / MANIFEST_NAME).is_file():
        print(status(output))
    else:
        print(summary_text(load_manifest(output), arguments.output))
    return DONE
