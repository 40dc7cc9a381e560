"""`wam-video bench`: timings as ratios within one run.

`bench train` times forward and backward of this library's network and of diffusers' `WanTransformer3DModel` of the same
shape, taking turns in one process so that a machine whose speed drifts does not favour either; `bench overhead` the trainer's
step and a plain loop's, and every engine; `bench data` the loader and random access into video files; `bench convert` a
conversion and a plain transcode; `bench policy` a decision; `bench delays` a closed loop whose decisions take their time.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from wam_video.cli.bench_convert import add_convert
from wam_video.cli.bench_data import add_data
from wam_video.cli.bench_delays import add_delays
from wam_video.cli.bench_policy import add_policy
from wam_video.cli.bench_step import add_overhead
from wam_video.cli.options import torch_device
from wam_video.errors import ConfigError
from wam_video.log import progress, setup_logging
from wam_video.models.transformer import WAMTransformer
from wam_video.page import write_whole

EXAMPLE = "example: wam-video bench train --layers 12 --heads 12 --head-dim 64 --grid 8 16 16"
TEXT_DIM, TEXT_TOKENS = 64, 64


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="wam-video bench", description=__doc__, epilog=EXAMPLE)
    parser.set_defaults(command="", least={})
    commands = parser.add_subparsers(dest="what", required=True)
    train = commands.add_parser("train", help="forward and backward against diffusers' Wan", epilog=EXAMPLE)
    train.add_argument("--layers", type=int, default=12)
    train.add_argument("--heads", type=int, default=12)
    train.add_argument("--head-dim", type=int, default=64)
    train.add_argument("--channels", type=int, default=16, help="of a latent")
    train.add_argument("--grid", type=int, nargs=3, default=(8, 16, 16), metavar=("T", "H", "W"), help="latent size")
    train.add_argument("--actions", type=int, default=0, help="action tokens added on our side (0: the same tokens)")
    train.add_argument("--runs", type=int, default=5, help="counted pairs, after one warm-up")
    train.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    train.add_argument("--output", type=Path, help="write the figures as JSON here")
    least = {"layers": 1, "heads": 1, "head_dim": 1, "channels": 1, "grid": 1, "actions": 0, "runs": 1}
    train.set_defaults(measure=bench_train, least=least)
    add_data(commands)
    add_convert(commands)
    add_overhead(commands)
    add_policy(commands)
    add_delays(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = build_parser().parse_args(argv)
    setup_logging()
    given = sys.argv[1:] if argv is None else list(argv)
    args.command = shlex.join(["wam-video", "bench", *(given[1:] if given[:1] == ["bench"] else given)])
    _check_counts(args)
    if args.output:
        _make_room(args.output)
    figures = args.measure(args)
    text = json.dumps(figures, indent=2)
    if not figures:  # a worker, which has written them
        return 0
    print(text)
    if args.output:
        write_whole(args.output.parent, args.output.name, (text + "\n").encode())
    return 0


def _check_counts(args: argparse.Namespace) -> None:
    """Refuse numbers of which nothing could be measured.

    Raises:
        ConfigError: One is below what its command says.
    """
    for name, low in {"seed": 0, **args.least}.items():
        value = getattr(args, name, low)
        if min(value if isinstance(value, list | tuple) else [value]) < low:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; allowed: {low} or more")


def _make_room(output: Path) -> None:
    """Make the folder of the figures before minutes are spent on them.

    Raises:
        ConfigError: It can't be made, or there is a folder in the place of the file.
    """
    if output.is_dir():
        raise ConfigError(
            f"--output is {str(output)!r}, a folder; give a file to make, e.g. {str(output / 'figures.json')!r}"
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output is {str(output)!r}, whose folder can't be made ({error.strerror or error}); give another file"
        ) from error


def bench_train(args: argparse.Namespace) -> dict[str, object]:
    """Time the two networks in turn and return medians in seconds and the ratios pair by pair.

    Raises:
        ConfigError: Torch can't use the device.
    """
    torch_device(args.device)
    steps = {"wam_video": _our_step(args), "diffusers": _their_step(args)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for run in progress(range(args.runs + 1), what="pairs"):
        # The order alternates, so that neither always finds the caches as the other left them.
        for name in sorted(steps, reverse=bool(run % 2)):
            elapsed = _timed(steps[name], args.device)
            if run:
                seconds[name].append(elapsed)
    ratios = [a / b for a, b in zip(seconds["wam_video"], seconds["diffusers"], strict=True)]
    return {
        "shape": {k: getattr(args, k) for k in ("layers", "heads", "head_dim", "channels", "grid", "actions")},
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "median_seconds": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "ratio": {
            "median": round(statistics.median(ratios), 4),
            "min": round(min(ratios), 4),
            "max": round(max(ratios), 4),
        },
    }


def _shape(args: argparse.Namespace) -> dict[str, Any]:
    dim = args.heads * args.head_dim
    return dict(
        num_layers=args.layers,
        num_attention_heads=args.heads,
        attention_head_dim=args.head_dim,
        in_channels=args.channels,
        out_channels=args.channels,
        ffn_dim=4 * dim,
        text_dim=TEXT_DIM,
    )


def _our_step(args: argparse.Namespace) -> Callable[[], None]:
    torch.manual_seed(0)
    bodies = [{"name": "arm", "action_dim": 7, "state_dim": 7}]
    model = WAMTransformer(embodiments=bodies, num_registers=0, **_shape(args)).to(args.device)
    frames, height, width = args.grid
    latents = torch.randn(1, 1, args.channels, frames, height, width, device=args.device)
    inputs = dict(
        latents=latents,
        t_video=torch.rand(1, frames, device=args.device),
        latent_times=torch.arange(frames, device=args.device)[None] / 4,
        text_embeds=torch.randn(1, TEXT_TOKENS, TEXT_DIM, device=args.device),
        embodiment=torch.zeros(1, dtype=torch.long, device=args.device),
    )
    if args.actions:
        inputs |= dict(
            actions=torch.randn(1, args.actions, 7, device=args.device),
            t_action=torch.rand(1, args.actions, device=args.device),
            action_times=torch.arange(args.actions, device=args.device)[None] / 15,
        )

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(**inputs).video.square().mean().backward()

    return step


def _their_step(args: argparse.Namespace) -> Callable[[], None]:
    torch.manual_seed(0)
    model = WanTransformer3DModel(patch_size=(1, 2, 2), **_shape(args)).to(args.device)
    latents = torch.randn(1, args.channels, *args.grid, device=args.device)
    text = torch.randn(1, TEXT_TOKENS, TEXT_DIM, device=args.device)
    t = torch.rand(1, device=args.device) * 1000

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(latents, t, text, return_dict=False)[0].square().mean().backward()

    return step


def _timed(step: Callable[[], None], device: str) -> float:
    def synchronize() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    synchronize()
    start = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
