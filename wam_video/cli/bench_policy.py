"""`wam-video bench policy`: how long a decision takes, by its parts, beside what the device's peaks allow.

A session is shown noise and acts, as a robot's would; codec, network and host are all measured. Ways to decide are compared as
ratios within one run. Operations and roofline are of the network alone, as `wam-video plan` counts them.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wam_video.cli.command import quiet_libraries
from wam_video.cli.options import add_speed, check_output, show_progress, torch_device
from wam_video.errors import ConfigError, one_of

if TYPE_CHECKING:
    from wam_video.evaluation.policy_bench import PolicyBenchConfig, Variant
    from wam_video.inference.pipeline import WAMPipeline

EXAMPLE = """\
examples:
  wam-video bench policy --model model_cards/wam-tiny-pusht --way steps=8 --way steps=1,path=absent
  wam-video bench policy --config configs/model/tiny.yaml configs/data/pusht.yaml --way steps=8 --way steps=8,reuse=0.1 --page runs/bench
  wam-video bench policy --model model_cards/wam-tiny-sim --data shards/mw --way steps=16,guidance=2 --way steps=1,path=absent
  wam-video bench policy --model runs/mine/export --robots 8 --device cuda --dtype bfloat16 --peak h100
  wam-video bench policy --model model_cards/wam-tiny-sim --data shards/mw --way steps=8 --way steps=8,quantize=int8

A way is KEY=VALUE pairs of steps, path (unknown, absent, joint), guidance, reuse (tolerance), decode (0 or 1), recompute (1: a causal
network without its cache), compile (default, graphs) and quantize (int8, fp8); what it leaves out is the checkpoint's own, or what
--compile and --quantize say. Ratios and differences are to the first way."""

_TYPES: dict[str, Any] = {
    "steps": int,
    "path": str,
    "guidance": float,
    "reuse": float,
    "decode": lambda text: bool(int(text)),
    "recompute": lambda text: bool(int(text)),
    "compile": str,
    "quantize": str,
}
_DTYPES = ("float32", "bfloat16", "float16")


def add_policy(commands: Any) -> None:
    """Add `policy` to the commands of `wam-video bench`."""
    parser = commands.add_parser(
        "policy",
        help="latency of a decision, by parts",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", metavar="FOLDER|HUB_ID", help="checkpoint")
    add(
        "--config",
        nargs="+",
        metavar="YAML|KEY=VALUE",
        help="instead: a random one, as `wam-video train` would make it",
    )
    add("--embodiment", metavar="NAME", help="the model's name of the body; may be left out if there is only one")
    add("--way", action="append", default=[], metavar="KEY=VALUE,...", help="to decide; repeatable (default: its own)")
    add("--decisions", type=int, default=20, metavar="N", help="counted ones of each way (default 20)")
    add("--warmup", type=int, default=2, metavar="N", help="before them (default 2)")
    add("--robots", type=int, default=1, metavar="N", help="decided for together (default 1)")
    add_speed(add, dtype=False)
    add("--dtype", default="float32", metavar="NAME", help="of the network: float32 (default), bfloat16 or float16")
    add(
        "--data",
        metavar="SHARDS",
        help="also: the error of each way's actions on held-out episodes of these recordings",
    )
    add("--windows", type=int, default=128, metavar="N", help="moments of them (default 128)")
    add("--seed", type=int, default=0, metavar="N", help="of the noise (default 0)")
    add("--peak", metavar="NAME", help="device whose peaks are the roof (default: cpu, or h100 with cuda)")
    add("--device", metavar="DEVICE", help="cpu, cuda, ... (default: cuda where there is one)")
    add("--output", type=Path, metavar="FILE", help="write the figures as JSON here")
    add("--page", type=Path, metavar="DIR", help="write report.html here, and the figures beside it")
    parser.set_defaults(measure=bench_policy)


def bench_policy(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, write the page if asked to, and return the figures.

    Raises:
        ConfigError: An option is unknown, or does not fit the model.
    """
    if args.page is not None:
        check_output(args.page)
    from wam_video.evaluation.policy_bench import PolicyBenchConfig, measure, run_as, summary
    from wam_video.evaluation.policy_bench_page import write
    from wam_video.models.devices import get_device

    quiet_libraries()
    device = torch_device(args.device)
    peak = args.peak or ("h100" if str(device).startswith("cuda") else "cpu")
    get_device(peak)
    ways = [parse_way(text, compile=args.compile, quantize=args.quantize) for text in args.way or [""]]
    config = PolicyBenchConfig(
        variants=tuple(ways),
        decisions=args.decisions,
        warmup=args.warmup,
        robots=args.robots,
        embodiment=args.embodiment,
        seed=args.seed,
    )
    if args.data is not None and args.model is None:
        raise ConfigError(
            "--data is given, but a random network's actions mean nothing; give --model, or leave --data out"
        )
    pipe = _open(args).to(device, _dtype(args.dtype))
    pipe.set_progress_bar_config(disable=True)
    made_by = _facts(args, str(device))  # of the code that is loaded now, whatever is committed meanwhile
    pipes = run_as(pipe, config.variants)
    facts, errors = _errors(pipes, config, args)  # first: what is wrong with the data is told before the timing
    progress = show_progress("decision")
    found = measure(pipes, config, lambda done, total: progress("bench policy", done, total))
    figures = {**made_by, **facts, **summary(pipes, config, found, peak)}
    for way in figures["variants"] if errors else ():
        way["error"] = errors[way["name"]]
    if args.page is not None:
        write(figures, args.page)
    return figures


def _errors(
    pipes: "Mapping[str, WAMPipeline]", config: "PolicyBenchConfig", args: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    from wam_video.evaluation.policy_error import measure_errors

    if args.data is None:
        return {}, {}
    batches = show_progress("part")
    facts, errors = measure_errors(
        pipes,
        config.variants,
        args.data,
        windows=args.windows,
        seed=args.seed,
        embodiment=args.embodiment,
        on_batch=lambda done, total: batches("actions", done, total),
    )
    return {"data": facts}, errors


def parse_way(text: str, **defaults: Any) -> "Variant":
    """Return the variant that `steps=1,path=absent` says, with `defaults` for what it leaves out.

    Raises:
        ConfigError: A key is unknown, or a value is none.
    """
    from wam_video.evaluation.policy_bench import Variant

    values: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        key, _, value = pair.partition("=")
        if key not in _TYPES:
            raise ConfigError(one_of("--way key", key, _TYPES))
        try:
            values[key] = _TYPES[key](value)
        except ValueError as error:
            raise ConfigError(f"--way {pair!r} holds no value for {key}; see --help") from error
    return Variant(name=text or "its own", **defaults | values)


def _dtype(name: str) -> Any:
    import torch

    if name not in _DTYPES:
        raise ConfigError(one_of("--dtype", name, _DTYPES))
    return getattr(torch, name)


def _open(args: argparse.Namespace) -> "WAMPipeline":
    from wam_video.inference.pipeline import WAMPipeline

    if (args.model is None) == (args.config is None):
        raise ConfigError("give --model, or --config for a random one")
    if args.model is not None:
        return WAMPipeline.from_pretrained(args.model)
    return random_pipeline(args.config)


def random_pipeline(sources: list[str]) -> "WAMPipeline":
    """Return an untrained pipeline of a training configuration, with made-up statistics.

    Raises:
        ConfigError: The configuration is none, or is of another network.
    """
    from wam_video.config import load
    from wam_video.data.processor import WAMProcessor
    from wam_video.flow.scheduler import WAMScheduler
    from wam_video.inference.pipeline import WAMPipeline
    from wam_video.models.image_encoder import image_processor
    from wam_video.models.transformer import WAMTransformer
    from wam_video.training.build import build_parts
    from wam_video.training.config import TrainConfig
    from wam_video.training.feed import find_embodiments

    config = load(TrainConfig, sources)
    if config.network != "wam":
        raise ConfigError(f"network is {config.network!r}; allowed here: 'wam'")
    bodies, _ = find_embodiments(config.data)
    widths = {name: {"actions": spec.action_dim, "state": spec.state_dim} for name, spec in bodies.items()}
    ends = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
    stats = {
        name: {what: {**{end: [value] * n for end, value in ends.items()}, "count": 1} for what, n in each.items() if n}
        for name, each in widths.items()
    }
    window = {name: getattr(config.data.window, name) for name in config.data.window.__dataclass_fields__}
    processor = WAMProcessor([asdict(spec) for spec in bodies.values()], stats, window=window)
    parts = build_parts(config, bodies, processor)
    assert isinstance(parts.transformer, WAMTransformer), "of network 'wam'"
    return WAMPipeline(
        transformer=parts.transformer.eval(),
        vae=parts.codec,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        scheduler=WAMScheduler(**config.scheduler),
        processor=processor,
        image_encoder=parts.image_encoder,
        image_processor=parts.image_encoder and image_processor(parts.image_encoder, config.image_encoder.fit),
    )


def _facts(args: argparse.Namespace, device: str) -> dict[str, Any]:
    from wam_video.evaluation.provenance import provenance
    from wam_video.inference import loading

    known = {} if args.model is None else {"model_hash": loading.model_hash(loading.resolve(args.model))}
    return {**provenance(args.command, device), "model": args.model or {"random": args.config}, **known}
