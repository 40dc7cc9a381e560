"""`wam-video evaluate`: score every mode on held-out episodes, beside controls; writes metrics.json and report.html."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from wam_video.cli.command import DONE, FAILED, quiet_libraries, run
from wam_video.cli.options import check_output, parse_named, parse_options, show_progress, torch_device
from wam_video.errors import ConfigError
from wam_video.log import setup_logging

_EXAMPLE = """\
examples:
  wam-video evaluate --model runs/mine/export --data shards/mine --output runs/mine/evaluation
  wam-video evaluate --model "short run=runs/quick/export" --model "shipped=model_cards/wam-tiny-pusht" \\
                     --data shards/pusht --training-log "short run=runs/quick/metrics.jsonl" --output runs/quick

Several models stand side by side on the page. The figures mean something only next to their controls."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    result = argparse.ArgumentParser(
        prog="wam-video evaluate",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add(
        "--model",
        action="append",
        required=True,
        metavar="[NAME=]FOLDER",
        help="checkpoint folder or hub id; repeatable",
    )
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="adapter for the model of that name, or for the only one; repeatable",
    )
    add("--data", required=True, metavar="SHARDS", help="folder that `wam-video data convert` wrote")
    add("--output", type=Path, required=True, metavar="DIR", help="where metrics.json and report.html go")
    add(
        "--modes",
        nargs="+",
        metavar="MODE",
        help="policy, forward, inverse, video, joint (default: all; commas work too)",
    )
    add(
        "--windows", type=int, default=128, metavar="N", help="moments to score, spread over the episodes (default 128)"
    )
    add("--steps", type=int, metavar="N", help="steps from noise to data (default: the checkpoint's own)")
    add("--seed", type=int, default=0, metavar="N", help="of the noise and the intervals (default 0)")
    add(
        "--split",
        default="val",
        metavar="NAME",
        help="episodes to score on: val, or train for an overfitting test (default val)",
    )
    add("--batch-size", type=int, default=16, metavar="N", help="moments at once; changes no figure (default 16)")
    add(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="share the moments out over so many; changes no figure. Each has as many threads as one would have: on a CPU set "
        "OMP_NUM_THREADS (default 1)",
    )
    add("--device", metavar="DEVICE", help="cpu, cuda, ... (default: cuda where there is one)")
    _add_files(result)
    _add_studies(result)
    return result


def _add_files(result: argparse.ArgumentParser) -> None:
    add = result.add_argument
    add(
        "--training-log",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="metrics.jsonl of a run, for its curve; repeatable",
    )
    add(
        "--episode-sums",
        action="store_true",
        help="also write episodes.json, from which `wam-video ablate` compares models episode by episode; one model only",
    )


def _add_studies(result: argparse.ArgumentParser) -> None:
    add = result.add_argument_group(
        "studies", "scores beyond the recorded windows; each says what it had to leave out"
    ).add_argument
    add("--studies", nargs="+", default=[], metavar="NAME", help="names, or all (default: none)")
    add("--env", metavar="NAME[:WHAT]", help="simulator of the body, for the studies that need one; as of `rollout`")
    add("--env-option", action="append", default=[], metavar="KEY=VALUE", help="of the simulator; repeatable")
    add("--study-episodes", type=int, default=8, metavar="N", help="to simulate or imagine (default 8)")
    add("--inverse-model", metavar="FOLDER", help="another checkpoint, which reads the actions out of generated video")
    add(
        "--weights",
        action="append",
        default=[],
        metavar="METRIC=FILE",
        help="safetensors of the network of lpips or fvd",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; return the exit code."""
    arguments = parser().parse_args(argv)
    setup_logging()
    from wam_video.evaluation.by_episode import write_episodes
    from wam_video.evaluation.evaluate import (
        EvaluateConfig,
        evaluate,
    )  # torch and diffusers: not before --help has answered
    from wam_video.evaluation.processes import WorkerDiedError
    from wam_video.evaluation.report import write
    from wam_video.evaluation.study import StudyOptions
    from wam_video.tensors import Mode

    models = parse_named("--model", arguments.model)
    if arguments.episode_sums and len(models) > 1:
        raise ConfigError(f"--episode-sums is of one model, {len(models)} are given; evaluate each one alone")
    _check_needed(arguments)
    config = EvaluateConfig(
        models=models,
        adapters=_adapters(arguments.adapter, models),
        data=arguments.data,
        modes=_modes(arguments.modes) or tuple(Mode),
        split=arguments.split,
        num_windows=arguments.windows,
        num_inference_steps=arguments.steps,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        processes=arguments.processes,
        device=torch_device(arguments.device),
        training_logs=parse_named("--training-log", arguments.training_log),
        studies=tuple(name for value in arguments.studies for name in value.split(",") if name),
        study_options=StudyOptions(
            env=arguments.env,
            env_options=parse_options(arguments.env_option, "--env-option"),
            episodes=arguments.study_episodes,
            inverse_model=arguments.inverse_model,
            weights=parse_options(arguments.weights, "--weights"),
        ),
    )
    check_output(arguments.output)
    quiet_libraries()
    try:
        report = evaluate(config, _command(sys.argv[1:] if argv is None else argv), show_progress("window"))
    except WorkerDiedError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    metrics, page = write(report, arguments.output)
    if arguments.episode_sums:
        print(write_episodes(arguments.output, report.sums[next(iter(models))], report.document["data"]))
    print(f"{metrics}\n{page}")
    return DONE


def _check_needed(arguments: argparse.Namespace) -> None:
    """Refuse options of studies where there are none: they would do nothing."""
    for option in ("env", "env_option", "inverse_model", "weights"):
        if getattr(arguments, option) and not arguments.studies:
            name = f"--{option.replace('_', '-')}"
            raise ConfigError(f"{name} is for studies, and none is asked for; add --studies NAME, or leave it out")


def _command(given: Sequence[str]) -> str:
    """Return the command for the record, without the number of processes: that is of the times, not of the figures."""
    words, kept = list(given[1:] if given[:1] == ["evaluate"] else given), []
    while words:
        word = words.pop(0)
        if word == "--processes":
            words = words[1:]
        elif not word.startswith("--processes="):
            kept.append(word)
    return shlex.join(["wam-video", "evaluate", *kept])


def _adapters(values: Sequence[str], models: Mapping[str, str]) -> dict[str, str]:
    """Split `NAME=PATH`; a bare path is for the only model."""
    only = [f"{next(iter(models))}={value}" if "=" not in value else value for value in values]
    if len(models) > 1 and only != list(values):
        raise ConfigError(f"--adapter names no model; allowed: NAME=FOLDER with NAME one of {', '.join(models)}")
    return parse_named("--adapter", only)


def _modes(values: Sequence[str] | None) -> tuple["Mode", ...]:  # noqa: F821
    from wam_video.flow.modes import get_mode

    names = [name for value in values or () for name in value.split(",") if name]
    if values and not names:
        raise ConfigError(f"--modes is {' '.join(values)!r}, which names no mode; leave it out for all of them")
    return tuple(dict.fromkeys(get_mode(name) for name in names))


if __name__ == "__main__":
    sys.exit(run(main))
