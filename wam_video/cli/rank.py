"""`wam-video rank`: would the world model put these policies in the order that the simulator does? Writes rank.json and report.html."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from wam_video.cli.command import DONE, quiet_libraries, run
from wam_video.cli.options import check_output, parse_options, show_progress, torch_device
from wam_video.log import setup_logging

_EXAMPLE = """\
example:
  M=model_cards/wam-tiny-pusht
  wam-video rank --world-model $M --env pusht --episodes 8 --max-steps 80 --output runs/rank \\
      --policy plain=$M --policy one-step=$M:steps=1 --policy absent=$M:path=absent \\
      --policy shaky=$M:noise=0.3 --policy shakier=$M:noise=1 --policy wild=$M:noise=3

Each policy is rolled out in the simulator and, from the same starts, in the imagination of the world model. Policies should
differ a lot, from nearly always failing to nearly always succeeding; fewer than six say nothing of an order."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    result = argparse.ArgumentParser(
        prog="wam-video rank",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--world-model", required=True, metavar="FOLDER", help="checkpoint whose forward mode is the world")
    add(
        "--policy",
        action="append",
        required=True,
        metavar="NAME=FOLDER[:OPTIONS]",
        help="checkpoint; options steps=N, path=unknown|absent|joint, noise=X (of the actions, in their standard deviations), "
        "with commas; repeat for six or more",
    )
    add("--env", required=True, metavar="NAME[:WHAT]", help="as of `rollout`: pusht, metaworld:TASKS, ...")
    add("--env-option", action="append", default=[], metavar="KEY=VALUE", help="of the environment; repeatable")
    add("--episodes", type=int, default=8, metavar="N", help="starts of each task (default 8)")
    add("--output", type=Path, required=True, metavar="DIR", help="where rank.json, report.html and films/ go")
    add(
        "--judge-episodes",
        type=int,
        default=4,
        metavar="N",
        help="other starts of each task that the judge learns on, for each policy and the expert (default 4)",
    )
    add(
        "--execute",
        type=int,
        metavar="N",
        help="actions from one decision to the next, in both worlds (default: as far as the model sees)",
    )
    add("--max-steps", type=int, metavar="N", help="actions an episode has at most (default: the environment's own)")
    add("--rows", type=int, default=8, metavar="N", help="worlds side by side (default 8)")
    add("--steps", type=int, metavar="N", help="steps of the world model from noise to data (default: its own)")
    add("--films", type=int, default=6, metavar="N", help="episodes to show, imagined beside real (default 6)")
    add("--seed", type=int, default=1000, metavar="N", help="of the starts, the noise and the intervals (default 1000)")
    add("--device", metavar="DEVICE", help="cpu, cuda, ... (default: cuda where there is one)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Rank; return the exit code."""
    a = parser().parse_args(argv)
    setup_logging()
    check_output(a.output)
    from wam_video.evaluation.rank import run as rank  # torch and diffusers: not before --help has answered
    from wam_video.evaluation.rank_page import summary, write
    from wam_video.evaluation.rank_stage import RankConfig
    from wam_video.evaluation.variants import parse_variants

    quiet_libraries()
    config = RankConfig(
        world_model=a.world_model,
        policies=parse_variants(a.policy),
        env=a.env,
        env_options=parse_options(a.env_option, "--env-option"),
        episodes=a.episodes,
        judge_episodes=a.judge_episodes,
        execute=a.execute,
        max_steps=a.max_steps,
        rows=a.rows,
        steps=a.steps,
        seed=a.seed,
        films=a.films,
        device=torch_device(a.device),
    )
    given = sys.argv[1:] if argv is None else list(argv)
    command = shlex.join(["wam-video", "rank", *(given[1:] if given[:1] == ["rank"] else given)])
    ranking = rank(config, command, show_progress("round"))
    record, page = write(ranking, a.output)
    print("\n".join([*summary(ranking), str(record), str(page)]))
    return DONE


if __name__ == "__main__":
    sys.exit(run(main))
