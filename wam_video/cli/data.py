"""`wam-video data convert|collect|encode|inspect|stats|verify`: recordings or simulations into shards, and a look at what is in them."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wam_video.cli.command import DONE, run
from wam_video.cli.data_encode import add_encode
from wam_video.cli.data_export import add_export
from wam_video.cli.data_refine import add_refining, refining_of
from wam_video.cli.data_tasks import add_status, add_tasks, convert_by_tasks
from wam_video.cli.data_verify import add_verify
from wam_video.cli.options import check_page, parse_options, parse_size
from wam_video.errors import ConfigError
from wam_video.log import setup_logging

if TYPE_CHECKING:
    from wam_video.data.refine import RefineConfig
    from wam_video.data.sources import Source

_CONVERT_EXAMPLE = """\
examples:
  wam-video data convert my_lerobot_dataset --output shards/mine --size 128x128
  wam-video data convert clips/ --format video --output shards/clips --fps 10 --workers 4
  wam-video data convert my_lerobot_dataset --output shards/mine --dry-run
  wam-video data convert bridge --output shards/bridge --embodiment data_pipelines/embodiments/widowx.yaml --drop-idle 1
  wam-video data convert films/ --format video --output shards/films --split-scenes --drop-duplicates
  wam-video data convert /data/droid --output /data/shards/droid --executor local --workers 16
  wam-video data convert /data/droid --output /data/shards/droid --executor slurm --workers 200 \\
    --executor-option partition=cpu --executor-option time=12:00:00"""

_COLLECT_EXAMPLE = """\
examples:
  wam-video data collect --env pusht --episodes 400 --size 64x64 --output shards/pusht --workers 2
  wam-video data collect --env metaworld:easy --episodes 20 --size 128x128 --output shards/easy --workers 4
  wam-video data collect --env metaworld:all --episodes 50 --noise 0.2 --option views=corner4,gripperPOV --output shards/mt50

The same seed gives the same bytes whatever the number of processes. `--option behaviours=expert=1` (Meta-World) or
`--option skills=expert=1` (PushT) leaves out the failures and near-successes that are kept and labelled by default."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the data commands and return the exit code."""
    arguments = _parser().parse_args(argv)
    setup_logging()
    return arguments.command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wam-video data",
        description="Turn recordings into shards, look at them, and check them.",
        epilog="example: wam-video data convert my_lerobot_dataset --output shards/mine",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_convert(commands)
    add_export(commands)
    add_encode(commands)
    add_status(commands)
    _add_collect(commands)
    add_verify(commands)
    shards = {"inspect": _inspect, "stats": _stats}
    helps = {
        "inspect": "write a page with pictures, action plots and counts; print a summary",
        "stats": "compute stats.json again, over the train split",
    }
    for name, command in shards.items():
        sub = commands.add_parser(name, help=helps[name], epilog=f"example: wam-video data {name} shards/mine")
        sub.add_argument("shards", type=Path, metavar="SHARDS", help="folder that `convert` wrote")
        sub.set_defaults(command=command)
        if name == "inspect":
            sub.add_argument("--output", type=Path, metavar="PAGE.html", help="default: SHARDS/inspect.html")
            sub.add_argument("--clips", type=int, default=6, metavar="N", help="clips to show (default 6)")
    return parser


def _add_convert(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = commands.add_parser(
        "convert",
        help="turn a dataset into shards",
        description="Turn a dataset into WebDataset shards with manifest.json and stats.json.",
        epilog=_CONVERT_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(command=_convert)
    sub.add_argument("source", metavar="SOURCE", help="dataset folder or file")
    sub.add_argument("--format", default="auto", metavar="NAME", help="auto, lerobot, video, ... (default auto)")
    sub.add_argument("--size", default="256x256", metavar="HxW", help="stored height x width (default 256x256)")
    sub.add_argument("--fit", default="pad", help="another aspect ratio: pad, crop or stretch (default pad)")
    sub.add_argument("--fps", type=float, metavar="F", help="stored frames per second (default: as recorded)")
    sub.add_argument("--views", metavar="A,B", help="cameras to keep, in this order (default all)")
    add_refining(sub)
    sub.add_argument("--licence", metavar="TEXT", help="terms of the recordings (default: the dataset's own)")
    sub.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of the source; see its README; repeatable"
    )
    sub.add_argument("--workers", type=int, default=1, metavar="N", help="encoding processes (default 1; same bytes)")
    add_tasks(sub)
    _add_output(sub)


def _add_collect(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = commands.add_parser(
        "collect",
        help="simulate episodes and turn them into shards",
        description="Play episodes in a simulator with a scripted expert of varied skill and write them as shards.",
        epilog=_COLLECT_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(command=_collect)
    sub.add_argument(
        "--env", required=True, metavar="NAME[:TASKS]", help="pusht, metaworld:reach,push, metaworld:easy, ..."
    )
    sub.add_argument("--episodes", type=int, default=20, metavar="N", help="of each task (default 20)")
    sub.add_argument(
        "--seed", type=int, default=0, metavar="N", help="episode i is a function of seed and i (default 0)"
    )
    sub.add_argument("--size", default="128x128", metavar="HxW", help="drawn and stored, square (default 128x128)")
    sub.add_argument(
        "--noise", type=float, metavar="X", help="smooth noise on every action, its standard deviation (Meta-World)"
    )
    sub.add_argument(
        "--max-steps", type=int, metavar="N", help="actions an episode has at most (default: the source's)"
    )
    sub.add_argument("--workers", type=int, default=1, metavar="N", help="simulating processes (default 1; same bytes)")
    sub.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of the source; see its README; repeatable"
    )
    _add_output(sub)


def _add_output(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--output", type=Path, required=True, metavar="SHARDS", help="folder to make")
    sub.add_argument("--clip-frames", type=int, default=256, metavar="N", help="cut longer episodes (default 256)")
    sub.add_argument("--val-fraction", type=float, default=0.1, metavar="F", help="held-out share (default 0.1)")
    sub.add_argument("--name", metavar="NAME", help="name of the dataset (default: that of the output folder)")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N recordings")
    sub.add_argument("--overwrite", action="store_true", help="replace a folder of shards that is there already")
    sub.add_argument("--dry-run", action="store_true", help="print what would be written, write nothing")


def _convert(arguments: argparse.Namespace) -> int:
    from wam_video.data.sources import open_source

    name, refining = refining_of(arguments)
    options = {"views": arguments.views, "embodiment": name, **parse_options(arguments.option)}
    given = {key: value for key, value in options.items() if value is not None}
    source = open_source(arguments.source, arguments.format, **given)
    # not the whole path: shards must not depend on where the dataset lay
    return _write(arguments, source, Path(arguments.source).name, given, refining)


def _collect(arguments: argparse.Namespace) -> int:
    from wam_video.data.sources import open_source

    name, _, tasks = arguments.env.partition(":")
    height, width = parse_size(arguments.size)
    if height != width:
        raise ConfigError(f"--size is {arguments.size}; simulated pictures are square: give e.g. {height}x{height}")
    chosen = {
        "episodes": arguments.episodes,
        "seed": arguments.seed,
        "image_size": width,
        "noise": arguments.noise,
        "max_steps": arguments.max_steps,
    }
    given = {key: value for key, value in chosen.items() if value is not None} | parse_options(arguments.option)
    source = open_source(f"{name}:{tasks}", name, workers=arguments.workers, **given)
    # the processes simulate and draw, which is the slow part; what they do not do is encoding
    fixed = {"fps": None, "fit": "pad", "licence": None, "workers": 1}
    return _write(argparse.Namespace(**{**vars(arguments), **fixed}), source, arguments.env, given)


def _write(
    arguments: argparse.Namespace,
    source: "Source",
    origin: str,
    options: Mapping[str, object],
    refining: "RefineConfig | None" = None,
) -> int:
    """Write a source's episodes as shards, or say what would be written."""
    from wam_video import __version__
    from wam_video.data.convert import convert, plan
    from wam_video.data.encode import WriterConfig
    from wam_video.data.refine import NOTHING
    from wam_video.data.summary import plan_text, summary_text

    height, width = parse_size(arguments.size)
    config = WriterConfig(
        dataset=arguments.name or arguments.output.resolve().name,
        height=height,
        width=width,
        fps=arguments.fps,
        clip_frames=arguments.clip_frames,
        val_fraction=arguments.val_fraction,
        fit=arguments.fit,
        licence=arguments.licence or source.licence or "unknown",
        source=origin,
        converter=f"wam-video {__version__} {source.name}",
        options={"format": source.name, "limit": arguments.limit, **options, **(refining or NOTHING).to_options()},
    )
    if arguments.dry_run:
        found = plan(source, limit=arguments.limit, refining=refining or NOTHING)
        print(plan_text(found, arguments.output, config))
        return DONE
    if getattr(arguments, "executor", None) is not None:
        return convert_by_tasks(arguments, source, config, options, refining or NOTHING)
    manifest = convert(
        source,
        arguments.output,
        config,
        workers=arguments.workers,
        limit=arguments.limit,
        overwrite=arguments.overwrite,
        refining=refining or NOTHING,
    )
    print(summary_text(manifest, arguments.output))
    return DONE


def _inspect(arguments: argparse.Namespace) -> int:
    from wam_video.data.manifest import load_manifest
    from wam_video.data.overview import write_page
    from wam_video.data.summary import summary_text

    page = arguments.output or arguments.shards / "inspect.html"
    if arguments.clips < 1:
        raise ConfigError(f"--clips is {arguments.clips}; it must be at least 1")
    manifest = load_manifest(arguments.shards)
    check_page("--output", page)
    write_page(arguments.shards, page, clips=arguments.clips)
    print(summary_text(manifest, arguments.shards))
    print(f"page: {page}")
    return DONE


def _stats(arguments: argparse.Namespace) -> int:
    from wam_video.data.normalize import compute_stats, save_stats, stats_hash
    from wam_video.data.summary import stats_text

    stats = compute_stats(arguments.shards)
    path = save_stats(stats, arguments.shards)
    print(stats_text(stats))
    print(f"{path}: sha256 {stats_hash(stats)[:12]}")
    return DONE


if __name__ == "__main__":
    sys.exit(run(main))
