"""`wam-video card`: put what the commands measured into the model card beside a checkpoint, so that no figure is typed."""

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
  wam-video card model_cards/mine --rollout pusht=runs/mine/rollout/rollout.json
  wam-video card model_cards/mine --rank metaworld=runs/mine/rank/rank.json
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
        "--metrics",
        metavar="[NAME=]FILE",
        help="what `evaluate` wrote of this checkpoint; copied into FOLDER. With a name: figures on further data, in a place "
        "of their own (see --ablation), kept as metrics_NAME.json",
    )
    result.add_argument(
        "--rollout",
        metavar="NAME=FILE",
        help="what `rollout` wrote of this checkpoint, in its place; kept as rollout_NAME.json",
    )
    result.add_argument(
        "--rank",
        metavar="NAME=FILE",
        help="what `rank` wrote with this checkpoint as the world model, in its place; kept as rank_NAME.json",
    )
    result.add_argument(
        "--ablation",
        type=Path,
        metavar="FILE",
        help="fill the place of this ablation, between `<!-- ablation NAME: made by `wam-video card` -->` and "
        "`<!-- end of ablation -->`; kept in FOLDER as ablation_NAME.json",
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the card; return the exit code."""
    arguments = parser().parse_args(argv)
    setup_logging()
    from wam_video.evaluation.card import update, update_part  # torch and diffusers: not before --help has answered

    given = [x for x in (arguments.metrics, arguments.rollout, arguments.rank, arguments.ablation) if x is not None]
    if len(given) > 1:
        raise ConfigError(
            "--metrics, --rollout, --rank and --ablation fill different places; give one of them at a time"
        )
    folder = arguments.folder
    if arguments.ablation is not None:
        print(update_part(folder, "ablation", arguments.ablation))
    elif arguments.rollout is not None:
        name, file = _named("--rollout", arguments.rollout)
        print(update_part(folder, "rollout", file, name))
    elif arguments.rank is not None:
        name, file = _named("--rank", arguments.rank)
        print(update_part(folder, "rank", file, name))
    elif arguments.metrics is not None and "=" in arguments.metrics:
        name, file = _named("--metrics", arguments.metrics)
        print(update_part(folder, "metrics", file, name))
    else:
        print(update(folder, None if arguments.metrics is None else Path(arguments.metrics)))
    return DONE


def _named(what: str, value: str) -> tuple[str, Path]:
    name, separator, file = value.partition("=")
    if not separator or not name or not file:
        raise ConfigError(f"{what} is {value!r}; it must be NAME=FILE, e.g. {what} pusht=runs/pusht/rollout.json")
    return name, Path(file)


if __name__ == "__main__":
    sys.exit(run(main))
