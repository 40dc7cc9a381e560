"""`wam-video rollout`: let a policy act in a simulator, beside controls on the same starts; writes rollout.json and report.html."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wam_video.cli.command import DONE, quiet_libraries, run
from wam_video.cli.options import (
    add_speed,
    check_output,
    parse_named,
    parse_options,
    parse_size,
    show_progress,
    torch_device,
)
from wam_video.errors import ConfigError
from wam_video.log import setup_logging

if TYPE_CHECKING:
    from wam_video.evaluation.real_time import RealTimeOptions

_EXAMPLE = """\
examples:
  wam-video rollout --model model_cards/wam-tiny-pusht --env pusht --episodes 20 --output runs/pusht
  wam-video rollout --model A=runs/a/export --model B=runs/b/export --env metaworld:easy --episodes 25 --output runs/ab
  wam-video rollout --model model_cards/wam-tiny-pusht --env pusht --latency 2 --real-time --continuation guided --output runs/rtc
  wam-video rollout --model runs/mine/export --env gym:gym_pusht/PushT-v0 --env-option mapping=pusht.gym.yaml --output runs/gym

Figures mean something only next to the controls; --episodes decides what may be claimed."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    result = argparse.ArgumentParser(
        prog="wam-video rollout",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_what(result)
    _add_how(result)
    return result


def _add_what(result: argparse.ArgumentParser) -> None:
    add = result.add_argument
    add("--model", action="append", default=[], metavar="[NAME=]FOLDER", help="checkpoint folder or hub id; repeatable")
    add("--env", required=True, metavar="NAME[:WHAT]", help="pusht, metaworld:TASKS, gym:ID, or an installed one")
    add(
        "--env-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the environment; see its README; repeatable",
    )
    add("--episodes", type=int, default=20, metavar="N", help="starts of each task (default 20)")
    add("--output", type=Path, required=True, metavar="DIR", help="where rollout.json, report.html and films/ go")
    add(
        "--controls",
        nargs="*",
        default=["expert", "random", "hold"],
        metavar="NAME",
        help="expert, random, hold (default: all)",
    )
    add(
        "--against",
        action="append",
        default=[],
        metavar="RECORD",
        help="rollout.json of an earlier run on the same starts; repeatable",
    )
    add("--size", metavar="HxW", help="of the pictures, where the checkpoint does not say (default: what it reads)")
    add(
        "--films",
        type=int,
        default=3,
        metavar="N",
        help="episodes of each task to film, beside what the model expected (default 3)",
    )


def _add_how(result: argparse.ArgumentParser) -> None:
    add = result.add_argument
    add(
        "--rows", type=int, default=8, metavar="N", help="worlds side by side, one batched decision for all (default 8)"
    )
    add("--execute", type=int, metavar="N", help="actions of a chunk to carry out before deciding again (default: all)")
    add("--max-steps", type=int, metavar="N", help="actions an episode has at most (default: the environment's own)")
    add(
        "--latency",
        type=int,
        default=0,
        metavar="N",
        help="actions that pass before a decision takes effect (default 0)",
    )
    add(
        "--no-prefix",
        action="store_true",
        help="with a latency: don't tell the model the actions carried out meanwhile",
    )
    add(
        "--deadline",
        type=float,
        metavar="S",
        help="throw away decisions that take longer, by the clock (use with --rows 1)",
    )
    _add_real_time(result)
    disturbances = {
        "camera": "picture moved; at 1 by up to an eighth, 15 degrees and 15 %% in scale",
        "light": "brighter or darker and tinted; at 1 by up to 50 %% and 20 %%",
        "distractors": "foreign shapes in the picture; at 1 six of them",
        "start": "random actions before the episode begins; at 1 for two seconds",
    }
    for name, text in disturbances.items():
        add(f"--disturb-{name}", type=float, default=0.0, metavar="X", help=f"{text} (default 0)")
    add("--steps", type=int, metavar="N", help="steps from noise to data (default: the checkpoint's own)")
    add(
        "--path",
        metavar="NAME",
        help="what policy does with the future video: unknown, absent, joint (default: its own)",
    )
    add("--seed", type=int, default=1000, metavar="N", help="of the starts and the noise (default 1000)")
    add_speed(add)
    add("--device", metavar="DEVICE", help="cpu, cuda, ... (default: cuda where there is one)")


def _add_real_time(result: argparse.ArgumentParser) -> None:
    add = result.add_argument_group(
        "real time", "decide while the body acts: the next chunk comes --latency steps later"
    ).add_argument
    add("--real-time", action="store_true", help="measure seams, and what follows from decisions that are late")
    add(
        "--continuation",
        metavar="NAME",
        help="how a chunk goes on from the actions carried out meanwhile: prefix, guided (RTC), replace (default: its own)",
    )
    add(
        "--late-share",
        type=float,
        default=0.0,
        metavar="X",
        help="share of decisions that come later still (default 0)",
    )
    add("--late-steps", type=int, default=4, metavar="N", help="by so many actions (default 4)")
    add("--late", default="continue", metavar="WHAT", help="until they come: hold, continue (default) or slow")
    add(
        "--blend",
        type=int,
        default=0,
        metavar="N",
        help="actions over which a chunk goes over into the next (default 0)",
    )
    add(
        "--ensemble",
        type=float,
        metavar="X",
        help="instead: mean of all chunks, one that is i decisions younger than the oldest by the weight exp(-X i)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Roll out; return the exit code."""
    arguments = parser().parse_args(argv)
    setup_logging()
    check_output(arguments.output)
    from wam_video.data.simulation import Disturbance  # torch and diffusers: not before --help has answered
    from wam_video.evaluation.agents import ModelOptions
    from wam_video.evaluation.rollout import LoopConfig
    from wam_video.evaluation.rollout_page import summary, write
    from wam_video.evaluation.rollouts import RolloutConfig
    from wam_video.evaluation.rollouts import run as roll_out
    from wam_video.inference.speed import SpeedConfig

    quiet_libraries()
    a = arguments
    disturbance = Disturbance(
        camera=a.disturb_camera, light=a.disturb_light, distractors=a.disturb_distractors, start=a.disturb_start
    )
    loop = LoopConfig(
        rows=a.rows,
        execute=a.execute,
        latency=a.latency,
        deadline_s=a.deadline,
        max_steps=a.max_steps,
        seed=a.seed,
        disturbance=disturbance,
        films=a.films,
    )
    options = ModelOptions(
        num_inference_steps=a.steps,
        policy_path=a.path,
        condition_on_committed=not a.no_prefix,
        continuation=a.continuation,
        device=torch_device(a.device),
        speed=SpeedConfig(compile=a.compile, quantization=a.quantize, dtype=a.dtype),
    )
    config = RolloutConfig(
        models=parse_named("--model", a.model),
        env=a.env,
        env_options=parse_options(a.env_option, "--env-option"),
        episodes=a.episodes,
        controls=tuple(name for value in a.controls for name in value.split(",") if name),
        size=None if a.size is None else parse_size(a.size),
        loop=loop,
        options=options,
        real_time=_real_time(a),
        against=tuple(a.against),
    )
    given = sys.argv[1:] if argv is None else list(argv)
    command = shlex.join(["wam-video", "rollout", *(given[1:] if given[:1] == ["rollout"] else given)])
    rollouts = roll_out(config, command, show_progress("episode"))
    record, page = write(rollouts, a.output)
    print("\n".join([*summary(rollouts), str(record), str(page)]))
    return DONE


def _real_time(a: argparse.Namespace) -> "RealTimeOptions | None":
    from wam_video.evaluation.real_time import RealTimeOptions
    from wam_video.flow.continuation import check_continuation

    if a.continuation is not None:
        check_continuation(a.continuation)
        if a.no_prefix:
            raise ConfigError(
                f"--continuation {a.continuation} and --no-prefix contradict each other; give one of them"
            )
    options = RealTimeOptions(
        late=a.late, late_share=a.late_share, late_steps=a.late_steps, blend=a.blend, ensemble=a.ensemble
    )
    if not (a.real_time or a.late_share or a.blend or a.ensemble is not None):
        return None
    if a.deadline is not None:
        raise ConfigError(
            f"--deadline {a.deadline:g} is by the clock, but decisions overlap with actions in simulated time; leave it out and "
            "say how late they are: --latency, --late-share, --late-steps"
        )
    return options


if __name__ == "__main__":
    sys.exit(run(main))
