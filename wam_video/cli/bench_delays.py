"""`wam-video bench delays`: what it costs that decisions take time, by how chunks are joined.

The body acts on while the next chunk is decided, in simulated time, so the figures do not depend on the machine. Each delay is
played with each way on the same starts.
"""

import argparse
from pathlib import Path
from typing import Any

from wam_video.cli.command import quiet_libraries
from wam_video.cli.options import check_output, parse_options, parse_size, show_progress, torch_device
from wam_video.errors import ConfigError, one_of

EXAMPLE = """\
examples:
  wam-video bench delays --model model_cards/wam-tiny-pusht --env pusht --delays 1-7 --way naive --way continuation=guided
  wam-video bench delays --model model_cards/wam-tiny-sim --env metaworld:easy --delays 1,4,8 --execute 8 --way naive --way blend=2

A way is `naive` (chunks know nothing of each other) or KEY=VALUE pairs of continuation (prefix, guided, replace), blend (actions)
and ensemble (weight). Differences are to the first way."""

_TYPES: dict[str, Any] = {"continuation": str, "blend": int, "ensemble": float}


def add_delays(commands: Any) -> None:
    """Add `delays` to the commands of `wam-video bench`."""
    parser = commands.add_parser(
        "delays",
        help="closed loop with decisions that take their time",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER|HUB_ID", help="checkpoint")
    add("--env", required=True, metavar="NAME[:WHAT]", help="as of `wam-video rollout`")
    add("--env-option", action="append", default=[], metavar="KEY=VALUE", help="of the environment; repeatable")
    add("--size", metavar="HxW", help="of the pictures, where the checkpoint does not say")
    add("--delays", default="1-4", metavar="N,N|N-N", help="control steps that a decision takes (default 1-4)")
    add(
        "--way", action="append", default=[], metavar="KEY=VALUE,...", help="to join chunks; repeatable (default naive)"
    )
    add("--episodes", type=int, default=8, metavar="N", help="starts of each task (default 8)")
    add(
        "--execute", type=int, metavar="N", help="actions from one question to the next, where the delay leaves so many"
    )
    add("--max-steps", type=int, metavar="N", help="actions an episode has at most (default: the environment's own)")
    add("--rows", type=int, default=8, metavar="N", help="worlds side by side (default 8)")
    add("--steps", type=int, metavar="N", help="steps from noise to data (default: the checkpoint's own)")
    add("--path", metavar="NAME", help="unknown, absent or joint (default: the checkpoint's own)")
    add("--seed", type=int, default=1000, metavar="N", help="of the starts and the noise (default 1000)")
    add("--device", metavar="DEVICE", help="cpu, cuda, ... (default: cuda where there is one)")
    add("--output", type=Path, metavar="FILE", help="write the figures as JSON here")
    add("--page", type=Path, metavar="DIR", help="write report.html here, and the figures beside it")
    parser.set_defaults(measure=bench_delays)


def bench_delays(args: argparse.Namespace) -> dict[str, Any]:
    """Play, write the page if asked to, and return the figures.

    Raises:
        ConfigError: An option is unknown, or does not fit the model.
    """
    if args.page is not None:
        check_output(args.page)
    delays = parse_delays(args.delays)
    from wam_video.data.simulation import open_environment
    from wam_video.evaluation.agents import ModelOptions
    from wam_video.evaluation.delays import DelaysConfig, measure
    from wam_video.evaluation.delays_page import write
    from wam_video.evaluation.provenance import provenance
    from wam_video.evaluation.rollout import LoopConfig
    from wam_video.inference import loading
    from wam_video.inference.pipeline import WAMPipeline

    quiet_libraries()
    device = torch_device(args.device)
    config = DelaysConfig(
        delays=delays,
        ways=tuple(parse_way(text) for text in args.way or ["naive"]),
        episodes=args.episodes,
        execute=args.execute,
        loop=LoopConfig(rows=args.rows, max_steps=args.max_steps, seed=args.seed),
        options=ModelOptions(num_inference_steps=args.steps, policy_path=args.path, device=device),
    )
    made_by = provenance(args.command, device)  # of the code that is loaded now, whatever is committed meanwhile
    pipe = WAMPipeline.from_pretrained(args.model).to(device)
    window = pipe.processor.window
    size = (window.height, window.width) if window.height and window.width else args.size and parse_size(args.size)
    if not size:
        raise ConfigError("the checkpoint does not say what size of pictures it reads; give --size, that of its data")
    first = open_environment(args.env, size, **parse_options(args.env_option, "--env-option"))
    count = min(args.rows, args.episodes * len(first.tasks))
    options = parse_options(args.env_option, "--env-option")
    worlds = [first, *(open_environment(args.env, size, **options) for _ in range(count - 1))]
    progress = show_progress("cell")
    try:
        found = measure(pipe, worlds, config, lambda done, total: progress("bench delays", done, total))
    finally:
        for world in worlds:
            world.close()
    folder = loading.resolve(args.model)
    figures = {**made_by, "model": args.model, "model_hash": loading.model_hash(folder), "env": args.env, **found}
    if args.page is not None:
        write(figures, args.page)
    return figures


def parse_delays(text: str) -> tuple[int, ...]:
    """Return the delays that `1,2,4` or `1-4` says.

    Raises:
        ConfigError: It says none.
    """
    try:
        ends = [part.partition("-")[::2] for part in text.split(",")]
        return tuple(n for low, high in ends for n in range(int(low), int(high or low) + 1))
    except ValueError as error:
        raise ConfigError(f"--delays is {text!r}; give numbers of control steps, such as 1,2,4 or 1-8") from error


def parse_way(text: str) -> Any:
    """Return the `Way` that `naive` or `continuation=guided,blend=2` says.

    Raises:
        ConfigError: A key is unknown, or a value is none.
    """
    from wam_video.evaluation.delays import Way
    from wam_video.evaluation.real_time import RealTimeOptions
    from wam_video.flow.continuation import check_continuation

    values: dict[str, Any] = {}
    for pair in text.split(",") if text != "naive" else []:
        key, _, value = pair.partition("=")
        if key not in _TYPES:
            raise ConfigError(one_of("--way key", key, _TYPES))
        try:
            values[key] = _TYPES[key](value)
        except ValueError as error:
            raise ConfigError(f"--way {pair!r} holds no value for {key}; see --help") from error
    way = Way(name=text, **values)
    if way.continuation is not None:
        check_continuation(way.continuation)
    RealTimeOptions(blend=way.blend, ensemble=way.ensemble)  # checks both
    return way
