"""`wam-video convert`: a published checkpoint becomes a checkpoint folder of ours."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wam_video.cli.command import DONE, quiet_libraries, run
from wam_video.log import get_logger, setup_logging

_LOG = get_logger(__name__)

_EXAMPLE = """\
examples:
  wam-video convert dreamzero checkpoints/DreamZero-DROID --output models/dreamzero-droid --tokenizer google/umt5-xxl
  wam-video convert dreamzero runs/yam_lora --base checkpoints/DreamZero-AgiBot --output models/dreamzero-yam

Every tensor has a place or is refused; nothing that the checkpoint names is imported or run. Memory: one file of 4 GB."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    result = argparse.ArgumentParser(
        prog="wam-video convert",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("kind", choices=("dreamzero",), help="whose layout it is")
    result.add_argument("checkpoint", type=Path, help="folder with config.json, experiment_cfg/ and safetensors")
    result.add_argument("--output", type=Path, required=True, help="folder to write; must not exist")
    result.add_argument("--base", type=Path, help="the full release that a LoRA run was trained on")
    result.add_argument("--tokenizer", help="folder or Hub id of umt5's tokenizer, which the release does not hold")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Convert a checkpoint; return the exit code."""
    arguments = parser().parse_args(argv)
    setup_logging()
    quiet_libraries()
    from wam_video.inference.convert_dreamzero import convert

    facts = convert(arguments.checkpoint, arguments.output, base=arguments.base, tokenizer=arguments.tokenizer)
    _LOG.info("%s: embodiments %s", arguments.output, ", ".join(facts["embodiments"]))
    if facts["relative_actions"]:
        _LOG.warning(
            "actions of %s are relative to the state at the start of a chunk: add it to what the model puts out",
            ", ".join(facts["relative_actions"]),
        )
    if arguments.tokenizer is None:
        _LOG.warning("there is no tokenizer: give --tokenizer, or prompt_embeds with each call")
    return DONE


if __name__ == "__main__":
    sys.exit(run(main))
