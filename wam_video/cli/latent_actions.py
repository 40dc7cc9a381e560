"""`wam-video latent-actions`: labels for video without actions, learned from pairs of its frames.

`train` fits a model that says in a few numbers what happens between two frames; `label` writes shards in which these are the
actions of one more embodiment; `probe` asks how much of the true actions can be read out of them.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from wam_video.cli.command import DONE, run
from wam_video.cli.options import check_output
from wam_video.errors import ConfigError, one_of
from wam_video.log import setup_logging

_EXAMPLE = """\
examples:
  wam-video latent-actions train --data shards/pusht --method flow --output runs/latent
  wam-video latent-actions train --data shards/droid --method nsvq --interval 0.4 --output runs/latent_codes
  wam-video latent-actions label --model runs/latent --data shards/pusht --output shards/pusht_latent
  wam-video latent-actions probe --data shards/pusht_latent --output runs/latent_probe
  wam-video train CONFIG.yaml data.datasets.mine.path=shards/mine data.datasets.latent.path=shards/droid_latent

Methods: `flow` squeezes optical flow (no weights needed, OpenCV) into 14 numbers, as Motus; `vae` and `nsvq` squeeze what is
needed to draw the second frame from the first, as AdaWorld (Gaussian) and LAPA or Genie (codes). All run on a CPU core in
minutes. With --labels 0.1 a linear map must also read the true actions of a tenth of the episodes (Motus' weak labels).
Latents are an embodiment with dims, rate and statistics of its own: a run may mix them with labelled data and with plain video."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    result = argparse.ArgumentParser(
        prog="wam-video latent-actions",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(dest="what", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_label(commands)
    _add_probe(commands)
    return result


def _sub(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    sub = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_EXAMPLE, formatter_class=formatter
    )
    sub.add_argument("--data", type=Path, required=True, metavar="SHARDS", help="folder of shards")
    sub.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to make")
    return sub


def _add_body(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--embodiment", default="", metavar="NAME", help="whose video, where the shards hold several")
    sub.add_argument("--view", default="", metavar="NAME", help="camera (default: the first)")


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = _sub(commands, "train", "learn latent actions from pairs of frames")
    sub.set_defaults(command=_train)
    _add_body(sub)
    add = sub.add_argument
    add("--method", default="flow", metavar="NAME", help="flow, vae or nsvq (default flow)")
    add("--interval", type=float, metavar="S", help="seconds between the frames of a pair (default: one stored frame)")
    add("--dim", type=int, metavar="N", help="numbers of a latent (default 14 for flow, 16 otherwise)")
    add("--side", type=int, metavar="PX", help="side of what the network reads (default 32 for flow, 64 otherwise)")
    add("--width", type=int, default=16, metavar="N", help="channels of the widest map (default 16)")
    add("--tokens", type=int, default=4, metavar="N", help="nsvq: codes of a latent (default 4)")
    add("--codebook", type=int, default=8, metavar="N", help="nsvq: different codes (default 8)")
    add("--beta", type=float, default=1e-3, help="vae: weight of the KL divergence (default 0.001)")
    add(
        "--labels",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the episodes whose actions are used (default 0)",
    )
    add("--label-weight", type=float, default=1.0, metavar="W", help="weight of reading them (default 1)")
    add(
        "--reconstruction", type=float, default=1.0, metavar="W", help="weight of the rest (default 1; 0: labels alone)"
    )
    add("--steps", type=int, default=1500, metavar="N", help="default 1500")
    add("--batch-size", type=int, default=64, metavar="N", help="pairs a step (default 64)")
    add("--lr", type=float, default=2e-3, help="default 0.002")
    add("--max-pairs", type=int, default=20_000, metavar="N", help="pairs kept in memory (default 20000)")
    add("--seed", type=int, default=0)


def _add_label(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = _sub(commands, "label", "write shards in which latent actions are one more embodiment")
    sub.set_defaults(command=_label)
    _add_body(sub)
    sub.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="folder that `train` wrote")
    sub.add_argument("--name", default="", help="of the new embodiment (default latent_METHOD+DIM, e.g. latent_flow14)")


def _add_probe(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = _sub(commands, "probe", "read true actions out of latents by a line, beside controls, on other episodes")
    sub.set_defaults(command=_probe)
    add = sub.add_argument
    add("--folds", type=int, default=0, metavar="N", help="cross-validate over all episodes (default: train -> val)")
    add("--max-pairs", type=int, default=20_000, metavar="N", help="pairs of each split at most (default 20000)")
    add(
        "--delay",
        type=float,
        default=0.0,
        metavar="S",
        help="seconds by which the robot follows its actions (default 0)",
    )
    add("--relative", action="store_true", help="also judge absolute targets less the state (needs one of that width)")
    add("--seed", type=int, default=0)


def _train(arguments: argparse.Namespace) -> int:
    from wam_video.data.manifest import load_manifest
    from wam_video.latent_actions.files import check_new, save_model
    from wam_video.latent_actions.learn import LearnConfig, learn
    from wam_video.latent_actions.networks import DIMS, METHODS, SIDES, LatentModelConfig
    from wam_video.latent_actions.pairs import Body

    if arguments.method not in METHODS:
        raise ConfigError(one_of("--method", arguments.method, METHODS))
    check_output(arguments.output)
    check_new(arguments.output)
    body = Body.of(load_manifest(arguments.data), arguments.embodiment, arguments.view)
    config = LearnConfig(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        beta=arguments.beta,
        max_pairs=arguments.max_pairs,
        labels=arguments.labels,
        label_weight=arguments.label_weight,
        reconstruction=arguments.reconstruction,
        seed=arguments.seed,
    )
    model = LatentModelConfig(
        method=arguments.method,
        interval_s=1 / body.spec.fps if arguments.interval is None else arguments.interval,
        dim=DIMS[arguments.method] if arguments.dim is None else arguments.dim,
        side=SIDES[arguments.method] if arguments.side is None else arguments.side,
        width=arguments.width,
        num_tokens=arguments.tokens,
        codebook=arguments.codebook,
        action_dim=body.spec.action_dim if config.labels else 0,
    )
    body.step(model.interval_s)
    learned = learn(arguments.data, body, model, config)
    digest = save_model(learned.model, learned.figures, arguments.output)
    figures = learned.figures
    explained = figures["explained"]
    print(
        f"{arguments.output}: {model.method}, {model.dim} numbers of {model.interval_s:g} s, model {digest[:12]}; held-out change "
        f"explained: {explained['own']:.3f}, by another pair's latent {explained['another']:.3f}"
    )
    if "actions" in figures:
        print(f"  true actions read from held-out pairs: R2 {figures['actions']['r2_own']:.3f}")
    if "codes" in figures:
        print(f"  codes: {json.dumps(figures['codes'])}")
    for flag in figures["flags"]:
        print(f"  warning: {flag}")
    return DONE


def _label(arguments: argparse.Namespace) -> int:
    from wam_video.data.manifest import load_manifest
    from wam_video.latent_actions.files import load_model
    from wam_video.latent_actions.label import label
    from wam_video.latent_actions.pairs import Body

    check_output(arguments.output)
    model, digest = load_model(arguments.model)
    body = Body.of(load_manifest(arguments.data), arguments.embodiment, arguments.view)
    manifest = label(arguments.data, arguments.output, model, digest, body, arguments.name)
    total, spec = manifest.counts["total"], next(iter(manifest.embodiments.values()))
    print(
        f"{arguments.output}: {total['actions']} latent actions in {total['samples']} clip(s), embodiment {spec.name} "
        f"({spec.action_dim} dimensions at {spec.action_rate:g} per second)"
    )
    return DONE


def _probe(arguments: argparse.Namespace) -> int:
    from wam_video.evaluation.latent_probe import ProbeConfig, probe
    from wam_video.evaluation.latent_probe_page import write_probe

    check_output(arguments.output)
    config = ProbeConfig(
        folds=arguments.folds,
        max_pairs=arguments.max_pairs,
        delay_s=arguments.delay,
        relative=arguments.relative,
        seed=arguments.seed,
    )
    document = probe(arguments.data, config)
    record, page = write_probe(document, arguments.output)
    for row in document["rows"]:
        if row["dimension"] is None:
            r2 = row["r2"]
            ends = f" [{r2['low']:.3f}, {r2['high']:.3f}]" if r2["low"] is not None else ""
            print(f"{row['target']:>9} {row['condition']:<18} R2 {r2['value']:.3f}{ends}")
    for flag in document["flags"]:
        print(f"warning: {flag}")
    print(f"page: {page}, record: {record}")
    return DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    arguments = parser().parse_args(argv)
    setup_logging()
    return arguments.command(arguments)


if __name__ == "__main__":
    sys.exit(run(main))
