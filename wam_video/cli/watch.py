"""`wam-video watch`: write the page of a training run: curves, speed, skipped steps, checkpoints.

`wam-video train --watch` keeps the same page up to date by itself.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wam_video.cli.command import DONE, run

_EXAMPLE = "example: wam-video watch runs/pusht && xdg-open runs/pusht/watch.html"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    result = argparse.ArgumentParser(
        prog="wam-video watch",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("run", type=Path, metavar="RUN", help="output_dir of a training run, under way or over")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and say where it is; return the exit code."""
    arguments = parser().parse_args(argv)
    from wam_video.evaluation.watch_page import write_watch_page  # torch: not before --help has answered

    print(write_watch_page(arguments.run))
    return DONE


if __name__ == "__main__":
    sys.exit(run(main))
