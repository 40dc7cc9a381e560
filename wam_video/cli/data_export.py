"""`wam-video data export`: shards back to a format that others read."""

import argparse
from pathlib import Path

from wam_video.cli.command import DONE
from wam_video.errors import ConfigError, one_of

_EXAMPLE = """\
examples:
  wam-video data export shards/mine --format lerobot --output my_dataset
  wam-video data export shards/mixed --embodiment widowx --split train --output bridge_train

LeRobot v3.0: the video is copied, not encoded again; T frames become T rows, the last action repeated. One body and one rate: where
actions come faster than frames, convert with --fps first. Paraphrases are kept as annotation columns."""


def add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `wam-video data`."""
    sub = commands.add_parser(
        "export",
        help="turn shards into a LeRobot v3.0 dataset",
        description="Turn shards into a dataset that others read, without encoding video again.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(command=_export)
    sub.add_argument("shards", type=Path, metavar="SHARDS", help="folder that `convert` wrote")
    sub.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to make")
    sub.add_argument("--format", default="lerobot", metavar="NAME", help="lerobot (v3.0), the default")
    sub.add_argument("--embodiment", default="", metavar="NAME", help="which body, where the shards hold several")
    sub.add_argument(
        "--split", default="all", metavar="NAME", help="train, val or all (default all, named in info.json)"
    )


def _export(arguments: argparse.Namespace) -> int:
    from wam_video.data.export import FORMATS, ExportConfig, export_lerobot

    if arguments.format not in FORMATS:
        raise ConfigError(one_of("--format", arguments.format, FORMATS))
    config = ExportConfig(embodiment=arguments.embodiment, split=arguments.split)
    report = export_lerobot(arguments.shards, arguments.output, config)
    print(f"{arguments.output}: LeRobot v3.0, {report.episodes} episode(s), {report.frames} frames")
    for note, count in report.notes.items():
        print(f"  {note}: {count} episode(s)")
    for episode_id, reason in report.skipped:
        print(f"  skipped {episode_id}: {reason}")
    return DONE
