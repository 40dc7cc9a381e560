"""The console script `wam-video`: find the command's module, import only that, hand over the arguments.

It imports nothing heavy, so that `--help` and a typo answer at once.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from wam_video import __version__
from wam_video.cli.command import DONE, WRONG_REQUEST, run
from wam_video.errors import one_of

COMMANDS = {
    "data": "convert recordings to shards; inspect, verify them; compute statistics",
    "train": "train a model from YAML files and key=value overrides (one process; see accelerate launch)",
    "watch": "write the page of a training run: curves, speed, skipped steps, checkpoints",
    "generate": "run one mode of a model on a recording: policy, forward, inverse, video or joint",
    "evaluate": "score every mode on held-out episodes, with controls; writes report.html",
    "ablate": "train and score variants x seeds alike; one table with paired statistics",
    "latent-actions": "labels for video without actions: train a model of frame pairs, label shards, probe",
    "card": "put the figures of metrics.json, or an ablation's table, into a model card",
    "rollout": "run a policy in closed loop in a simulator",
    "rank": "compare policies inside a world model, and with what a simulator says of them",
    "serve": "serve a policy to robot clients over a websocket",
    "bench": "time training steps, the loader, conversion and decisions on this machine, beside others",
    "plan": "memory and time of a training run, on paper",
    "convert": "turn a published checkpoint (DreamZero) into a folder of ours",
}
"""Command -> one line for the help. A command is a module of this folder with `main(argv) -> exit code`; a dash is `_` there."""

_EXAMPLE = """\
example:
  wam-video data convert my_lerobot_dataset --output shards/mine
  wam-video train configs/model/tiny.yaml my_data.yaml output_dir=runs/mine
  wam-video generate --model runs/mine/model --mode policy --input shards/mine --output out

`wam-video COMMAND --help` says more; `python -m wam_video.cli.COMMAND` is the same command."""


def available() -> dict[str, str]:
    """Return the commands whose module is installed, with the line that describes them."""
    return {name: text for name, text in COMMANDS.items() if find_spec(_module(name)) is not None}


def _module(command: str) -> str:
    return f"wam_video.cli.{command.replace('-', '_')}"


def usage() -> str:
    """Return the help text of the dispatcher."""
    commands = available()
    width = max(map(len, commands), default=0)
    rows = [f"  {name:<{width}}  {text}" for name, text in commands.items()]
    return "\n".join(
        ["usage: wam-video [--help] [--version] COMMAND ...", "", "commands:", *rows, "", _EXAMPLE],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 1 the work failed, 2 the request was wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(usage(), file=sys.stderr)
        return WRONG_REQUEST
    command, *rest = arguments
    if command in ("-h", "--help", "help"):
        print(usage())
        return DONE
    if command in ("-V", "--version"):
        print(f"wam-video {__version__}")
        return DONE
    if command not in available():
        print(f"error: {one_of('command', command, available())} See wam-video --help.", file=sys.stderr)
        return WRONG_REQUEST
    return run(import_module(_module(command)).main, rest)


if __name__ == "__main__":
    sys.exit(main())
