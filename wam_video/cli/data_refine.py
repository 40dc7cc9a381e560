"""What `wam-video data convert` does to recordings on their way: a robot's conventions, and the choice of episodes and parts."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wam_video.data.refine import RefineConfig


def add_refining(sub: argparse.ArgumentParser) -> None:
    """Add the options."""
    sub.add_argument(
        "--embodiment",
        metavar="NAME|FILE.yaml",
        help="name of the body (default: the dataset's own), or its conventions, see data_pipelines/embodiments/README.md",
    )
    sub.add_argument("--only-success", action="store_true", help="leave out episodes that failed or do not say")
    sub.add_argument(
        "--drop-idle", type=float, default=0.0, metavar="S", help="cut out S seconds and more in which the robot stands"
    )
    sub.add_argument(
        "--idle-tolerance",
        type=float,
        default=0.01,
        metavar="X",
        help="of its range that each number may change in them (default 0.01)",
    )
    sub.add_argument("--split-scenes", action="store_true", help="cut videos without actions where their scene changes")
    sub.add_argument(
        "--drop-duplicates", action="store_true", help="leave out episodes that look and act like an earlier one"
    )


def refining_of(arguments: argparse.Namespace) -> "tuple[str | None, RefineConfig]":
    """Return the body's name for the source, if that is all that is said of it, and what is done to recordings.

    Raises:
        ConfigError: The body's file or a number is wrong.
    """
    from wam_video.data.body import body_to_dict, load_body
    from wam_video.data.refine import RefineConfig

    named: str | None = arguments.embodiment
    body = None
    if named is not None and named.endswith((".yaml", ".yml")):
        body = body_to_dict(load_body(named))
        named = None
    return named, RefineConfig(
        body=body,
        only_success=arguments.only_success,
        drop_idle_s=arguments.drop_idle,
        idle_tolerance=arguments.idle_tolerance,
        split_scenes=arguments.split_scenes,
        drop_duplicates=arguments.drop_duplicates,
    )
