"""`wam-video card`: put the figures of metrics.json into the model card that stands beside a checkpoint."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wam_video.cli.command import DONE, run
from wam_video.log import setup_logging

_EXAMPLE = """\
examples:
  wam-video evaluate --model runs/mine/model --data shards/mine --output runs/mine/evaluation
  wam-video card model_cards/mine --metrics runs/mine/evaluation/metrics.json
  wam-video card model_cards/mine"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    result = argparse.ArgumentParser(
        prog="wam-video card",
        description="Fill the figures of FOLDER/README.md, between its two markers, from FOLDER/metrics.json.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("folder", type=Path, metavar="FOLDER", help="checkpoint with a README.md")
    result.add_argument(
        "--metrics", type=Path, metavar="FILE", help="what `evaluate` wrote of this checkpoint; copied into FOLDER"
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the card; return the exit code."""
    arguments = parser().parse_args(argv)
    setup_logging()
    from wam_video.evaluation.card import update  # torch and diffusers: not before --help has answered

    print(update(arguments.folder, arguments.metrics))
    return DONE


if __name__ == "__main__":
    sys.exit(run(main))
