"""`wam-video card`: put the figures of metrics.json, or an ablation's table, into the model card beside a checkpoint."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wam_video.cli.command import DONE, run
from wam_video.errors import ConfigError
from wam_video.log import setup_logging

_EXAMPLE = """\
examples:
  wam-video evaluate --model runs/mine/model --data shards/mine --output runs/mine/evaluation
  wam-video card model_cards/mine --metrics runs/mine/evaluation/metrics.json
  wam-video card model_cards/mine
  wam-video card model_cards/mine --ablation runs/clocks/ablation.json"""


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
    result.add_argument(
        "--ablation",
        type=Path,
        metavar="FILE",
        help="instead, fill the place of this ablation, between `<!-- ablation NAME: made by `wam-video card` -->` and "
        "`<!-- end of ablation -->`; kept in FOLDER as ablation_NAME.json",
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the card; return the exit code."""
    arguments = parser().parse_args(argv)
    setup_logging()
    from wam_video.evaluation.card import update, update_ablation  # torch and diffusers: not before --help has answered

    if arguments.ablation is not None:
        if arguments.metrics is not None:
            raise ConfigError("--metrics and --ablation fill different places; give one of them at a time")
        print(update_ablation(arguments.folder, arguments.ablation))
        return DONE
    print(update(arguments.folder, arguments.metrics))
    return DONE


if __name__ == "__main__":
    sys.exit(run(main))
