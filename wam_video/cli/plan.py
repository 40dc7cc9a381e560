"""`wam-video plan`: a model on paper: parameters, operations, memory, traffic and time of training and of a decision.

Nothing is allocated: the network is built on the meta device and the rest is arithmetic. Times are rooflines from the makers'
peaks: the slowest of arithmetic (at the assumed `--efficiency`), memory and links (at their peaks). Counted is the network;
codec, text encoder and host are not.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wam_video.cli.command import DONE, run
from wam_video.config import load
from wam_video.errors import ConfigError
from wam_video.log import setup_logging

if TYPE_CHECKING:
    from wam_video.inference.plan import DecisionPlan
    from wam_video.models.flops import Call, NetworkShape
    from wam_video.models.masks import AttentionConfig
    from wam_video.models.tokens import TokenLayout
    from wam_video.training.config import TrainConfig
    from wam_video.training.plan import TrainingPlan

_EXAMPLE = """\
examples:
  wam-video plan configs/model/tiny.yaml configs/data/pusht.yaml --grid 4 4 4 --device cpu
  wam-video plan configs/model/wan2.1-14b.yaml configs/recipe/dreamzero.yaml --grid 9 44 80
  wam-video plan configs/model/wan2.1-14b.yaml gradient_checkpointing=true --grid 9 44 80 --context 7 --actions 24 \\
      --gpus 64 --zero 3 --device h100 --cached --fresh 2 --steps 16 --guidance --output plan.json

The grid is in latents (frames, rows, columns) of one view, context included, before patches. Of a decision, what is not said
is as the configuration has it (scheduler, model.attention): steps, guidance, what is cached, the last chunk of the grid."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    result = argparse.ArgumentParser(
        prog="wam-video plan",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("sources", nargs="*", metavar="CONFIG.yaml|key=value", help="as for wam-video train")
    add("--device", default="h100", help="name in the table of peaks (default: h100)")
    add("--efficiency", type=float, default=0.4, help="assumed share of the arithmetic peak (default: 0.4)")
    add("--output", type=Path, help="write every figure as JSON here")
    sample = result.add_argument_group("a sample")
    sample.add_argument(
        "--grid", type=int, nargs=3, metavar=("T", "H", "W"), help="latents (default: from data.window)"
    )
    sample.add_argument(
        "--context", type=int, help="latent frames that were observed (default: from data.window, or all but a chunk)"
    )
    sample.add_argument("--views", type=int, help="cameras (default: data.window.max_views)")
    sample.add_argument("--actions", type=int, help="action steps (default: of data.window; of one chunk)")
    sample.add_argument("--text-tokens", type=int, help="default: text.max_length")
    sample.add_argument(
        "--image-tokens", type=int, default=257, help="where the model has an image context (default: 257)"
    )
    sample.add_argument("--chunk", type=int, help="train as a block-causal stream of chunks of so many latent frames")
    train = result.add_argument_group("training")
    train.add_argument("--gpus", type=int, default=1)
    train.add_argument("--gpus-per-node", type=int, default=8)
    how = train.add_mutually_exclusive_group()
    how.add_argument("--zero", type=int, choices=(1, 2, 3), help="DeepSpeed's stage (default: DDP)")
    how.add_argument("--fsdp2", action="store_true")
    train.add_argument("--hybrid", action="store_true", help="shard within a node, copy across nodes")
    train.add_argument("--offload", default="none", help="to the host: none, optimizer or all")
    train.add_argument("--network-gb-s", type=float, default=50.0, help="between nodes, of each device (default: 50)")
    train.add_argument("--batch-size", type=int, help="samples in a micro-batch (default: batch_size of the config)")
    act = result.add_argument_group("a decision")
    act.add_argument("--mode", default="policy", help="policy, forward, inverse, video or joint")
    act.add_argument("--policy-path", help="future video in mode policy: unknown, absent or joint")
    act.add_argument("--steps", type=int, help="network calls (default: of the scheduler's path)")
    act.add_argument("--guidance", action=argparse.BooleanOptionalAction, help="an unconditional row beside each")
    act.add_argument("--cached", action="store_true", help="keys and values of observed frames and prompt are kept")
    act.add_argument(
        "--fresh", type=int, help="observed latent frames that are not in the cache yet (default: a chunk, or all)"
    )
    act.add_argument("--robots", type=int, default=1, help="served at once")
    act.add_argument("--precision", default="bf16", help="bf16 or fp8")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan, and write it if asked to; return the exit code."""
    arguments = parser().parse_intermixed_args(argv)
    setup_logging()
    from wam_video.models.devices import get_device  # torch: not before --help has answered

    get_device(arguments.device)
    figures = make_plan(arguments)
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    print("\n".join(_table(figures)))
    return DONE


def make_plan(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return every figure of the plan that the arguments ask for, as JSON-able numbers.

    Raises:
        ConfigError: An argument does not fit the model, or is missing.
    """
    from wam_video.models.devices import get_device
    from wam_video.models.flops import NetworkShape, count_parameters, forward_flops, teacher_forced, whole
    from wam_video.training.build import build_on_meta
    from wam_video.training.config import TrainConfig
    from wam_video.training.feed import find_embodiments

    views = [] if arguments.views is None else [f"data.window.max_views={arguments.views}"]
    config = load(TrainConfig, [*arguments.sources, *views])
    embodiments, note = find_embodiments(config.data)
    network = build_on_meta(config, embodiments)
    shape, parameters = NetworkShape.of(network.config), count_parameters(network)
    _fill(arguments, config, network.attention)
    grid, context = _frames(arguments, config)
    window, actions = config.data.window, arguments.actions
    layout = shape.layout(views=window.max_views, grid=grid, actions=actions)
    text = config.text.max_length if arguments.text_tokens is None else arguments.text_tokens
    image = arguments.image_tokens if shape.image_dim else 0
    call = whole(layout, text, image)
    if arguments.chunk is not None:
        rule = network.attention if network.attention.causal else None
        call = teacher_forced(layout, arguments.chunk, text, image, rule=rule)
    flops = forward_flops(shape, call)
    sizes = {"text": text, "image": image, "context": context}
    return {
        "assumptions": {
            "device": vars(get_device(arguments.device)),
            "efficiency": arguments.efficiency,
            "embodiments": note,
        },
        "parameters": {"total": sum(parameters.values()), **parameters},
        "sample": {"grid": list(grid), "views": window.max_views, "actions": actions, **sizes, "tokens": call.queries},
        "forward_flops": {**vars(flops), "total": flops.total},
        "training": _training(arguments, config, shape, call, parameters).to_dict(),
        "decision": _decision(arguments, network.attention, shape, layout, sum(parameters.values()), sizes).to_dict(),
    }


def _fill(arguments: argparse.Namespace, config: "TrainConfig", rule: "AttentionConfig") -> None:
    """Give arguments that were left out what the configuration says of them."""
    from wam_video.errors import one_of
    from wam_video.flow.modes import MODES, POLICY_PATHS, get_mode, path_grid
    from wam_video.flow.scheduler import WAMScheduler, guidance_scales
    from wam_video.flow.solvers import num_calls
    from wam_video.tensors import Mode

    scheduler, window = WAMScheduler(**config.scheduler), config.data.window
    mode, path = get_mode(arguments.mode), arguments.policy_path or scheduler.config["policy_path"]
    if path not in POLICY_PATHS:
        raise ConfigError(one_of("policy-path", path, POLICY_PATHS))
    arguments.spec = POLICY_PATHS[path] if mode is Mode.POLICY else MODES[mode]
    if arguments.steps is None:
        arguments.steps = num_calls(path_grid(arguments.spec, scheduler.path()), scheduler.config["solver"])
    if arguments.guidance is None:
        arguments.guidance = any(scale != 1 for scale in guidance_scales(scheduler.config["guidance_scale"]))
    arguments.cached = arguments.cached or rule.caches
    latents = [_latents(config, frames) for frames in (window.num_context_frames, window.num_frames)]
    if rule.causal and arguments.grid is not None and arguments.context is None:
        arguments.context = max(arguments.grid[0] - rule.chunk_frames, 1)
    elif arguments.context is None and latents[0] and config.scheduler:
        arguments.context = latents[0]
    if rule.causal and arguments.fresh is None and arguments.context is not None:
        arguments.fresh = min(rule.chunk_frames, arguments.context)
    if arguments.actions is None:
        whole = latents[0] and latents[1] and rule.causal and latents[1] > latents[0]
        chunks = max((latents[1] - latents[0]) // rule.chunk_frames, 1) if whole else 1
        arguments.actions = window.action_horizon // chunks


def _latents(config: "TrainConfig", frames: int) -> int:
    """Return how many latents frames become; 0 where the codec does not take so many."""
    if config.codec.kind == "pixel":
        return frames
    return (frames - 1) // 4 + 1 if frames % 4 == 1 else 0


def _frames(arguments: argparse.Namespace, config: "TrainConfig") -> tuple[tuple[int, int, int], int]:
    """Return the latent grid and how many of its frames are context, from the arguments or the configured window."""
    window, codec = config.data.window, config.codec
    if arguments.grid is not None:
        return tuple(arguments.grid), 1 if arguments.context is None else arguments.context
    if codec.kind != "pixel" or window.height is None or window.width is None:
        raise ConfigError(
            "the size of the latents is not known (codec.kind is not pixel, or data.window.height and width are not set); "
            "give --grid FRAMES ROWS COLUMNS, in latents"
        )
    side = codec.patch_size
    context = window.num_context_frames if arguments.context is None else arguments.context
    return (window.num_frames, window.height // side, window.width // side), context


def _training(
    arguments: argparse.Namespace,
    config: "TrainConfig",
    shape: "NetworkShape",
    call: "Call",
    parameters: dict[str, int],
) -> "TrainingPlan":
    from wam_video.models.devices import get_device
    from wam_video.training.plan import ShardingConfig, StepConfig, plan_training

    strategy = f"zero{arguments.zero}" if arguments.zero else "fsdp2" if arguments.fsdp2 else "ddp"
    sharding = ShardingConfig(
        strategy=strategy,
        gpus=arguments.gpus,
        gpus_per_node=arguments.gpus_per_node,
        hybrid=arguments.hybrid,
        offload=arguments.offload,
        network_gb_s=arguments.network_gb_s,
    )
    step = StepConfig(
        batch_size=config.batch_size if arguments.batch_size is None else arguments.batch_size,
        grad_accum=config.grad_accum,
        checkpointing=config.gradient_checkpointing == "full",
        efficiency=arguments.efficiency,
    )
    return plan_training(shape, call, parameters, sharding, step, get_device(arguments.device))


def _decision(
    arguments: argparse.Namespace,
    rule: "AttentionConfig",
    shape: "NetworkShape",
    layout: "TokenLayout",
    parameters: int,
    sizes: dict[str, int],
) -> "DecisionPlan":
    from wam_video.inference.plan import DecisionConfig, decision_layout, plan_decision
    from wam_video.models.devices import get_device

    config = DecisionConfig(
        calls=arguments.steps,
        guidance=arguments.guidance,
        cached=arguments.cached,
        fresh=arguments.fresh,
        batch_size=arguments.robots,
        precision=arguments.precision,
        efficiency=arguments.efficiency,
        **sizes,
    ).for_network(rule)
    tokens = decision_layout(layout, arguments.spec, config.context, rule)
    return plan_decision(shape, tokens, parameters, config, get_device(arguments.device))


def _table(figures: dict[str, Any]) -> list[str]:
    """Return the plan as lines to read."""
    device, sample = figures["assumptions"]["device"], figures["sample"]
    training, decision = figures["training"], figures["decision"]
    parameters = dict(figures["parameters"])
    total = parameters.pop("total")
    memory = dict(training["memory"])
    host, all_bytes = memory.pop("host"), memory.pop("total")
    flops, step = figures["forward_flops"], training["time"]
    efficiency = figures["assumptions"]["efficiency"]
    call = decision["call_time"]
    fits = "fits" if all_bytes <= device["memory_gb"] * 1e9 else "DOES NOT FIT"
    return [
        f"parameters            {total:>16,}  ({figures['assumptions']['embodiments']})",
        *(f"  {name:<28}{count:>14,}" for name, count in parameters.items()),
        "",
        f"sample                {sample['tokens']:,} tokens: {sample['views']} view(s) of {sample['grid']} latents, "
        f"{sample['actions']} actions; {sample['text'] + sample['image']} context tokens",
        f"  forward             {_count(flops['total'])}FLOP (linear {_count(flops['linear'])}, self-attention "
        f"{_count(flops['self_attention'])}, cross-attention {_count(flops['cross_attention'])}, ends {_count(flops['ends'])})",
        f"  training            {_count(training['sample_flops'])}FLOP a sample (3 x forward)",
        "",
        f"training, each of the devices ({fits} in the {device['memory_gb']:g} GB of {device['name']})",
        *(f"  {name:<20}{value / 1e9:>10.3f} GB" for name, value in memory.items()),
        f"  {'total':<20}{all_bytes / 1e9:>10.3f} GB" + (f"  and {host / 1e9:.3f} GB on the host" if host else ""),
        f"  activations would be {training['activations_plain'] / 1e9:.3f} GB without checkpointing, "
        f"{training['activations_checkpointed'] / 1e9:.3f} GB with it",
        f"  sent a step          {training['traffic']['node'] / 1e9:.3f} GB in the node, "
        f"{training['traffic']['network'] / 1e9:.3f} GB between nodes, {training['traffic']['host'] / 1e9:.3f} GB to the host",
        f"  step of {training['global_batch_size']} samples  {step['step_s']:.4g} s, {step['bound']}-bound (compute {step['compute_s']:.4g} s at "
        f"{efficiency:.0%} of the peak, memory {step['memory_s']:.4g} s, links {step['communication_s']:.4g} s); "
        f"{step['step_serial_s']:.4g} s if nothing overlaps",
        f"  throughput           {training['samples_per_second']:.4g} samples/s",
        "",
        f"a decision            {_count(decision['decision_flops'])}FLOP: {_parts_of_decision(decision)}",
        f"  memory              weights {decision['weight_bytes'] / 1e9:.3f} GB, keys and values "
        f"{decision['cache_bytes'] / 1e9:.3f} GB, working set {decision['working_bytes'] / 1e9:.3f} GB",
        f"  each call           compute {call['compute_s'] * 1e3:.4g} ms, memory {call['memory_s'] * 1e3:.4g} ms",
        f"  latency             {decision['latency_s'] * 1e3:.4g} ms ({1 / decision['latency_s']:.3g} Hz) at {efficiency:.0%} "
        f"of the peak; {decision['peak_latency_s'] * 1e3:.4g} ms at all of it",
    ]


def _parts_of_decision(decision: dict[str, Any]) -> str:
    """Return what a decision consists of."""
    calls = f"{decision['calls']} {'expert steps' if decision['expert_steps'] else 'calls'} of {_count(decision['call_flops'])}"
    first = ""
    if decision["prefill_flops"]:
        first = f"one trunk pass {_count(decision['prefill_flops'])}({decision['trunk_queries']:,} video tokens) + "
    return f"{first}{calls}({decision['queries']:,} queries, {decision['keys']:,} keys)"


def _count(value: float) -> str:
    """Return a number with three digits and its unit prefix: 55.4 T."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "


if __name__ == "__main__":
    sys.exit(run(main))
