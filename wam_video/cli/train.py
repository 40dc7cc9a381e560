"""`wam-video train`: train from YAML files and key=value overrides; started again, it goes on where it stopped.

Under a launcher: `accelerate launch --config_file launch/accelerate/X.yaml -m wam_video.cli.train CONFIG.yaml ...`.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wam_video.cli.command import DONE, FAILED, quiet_libraries, run
from wam_video.config import load, to_yaml
from wam_video.errors import ConfigError, first_line
from wam_video.log import get_logger, setup_logging

if TYPE_CHECKING:
    from wam_video.training.build import Parts
    from wam_video.training.config import TrainConfig
    from wam_video.training.engines import Launch
    from wam_video.training.metrics import Tracker
    from wam_video.training.run import Callback
    from wam_video.training.trainer import Trainer

_LOG = get_logger(__name__)

_EXAMPLE = """\
examples:
  wam-video train configs/model/tiny.yaml configs/data/pusht.yaml configs/train/pusht_tiny.yaml
  wam-video train configs/model/tiny.yaml configs/data/pusht.yaml optim.lr=1e-3 output_dir=runs/mine --dry-run
  accelerate launch --config_file launch/accelerate/multi_gpu.yaml -m wam_video.cli.train configs/model/tiny.yaml ...

Files merge left to right, then key=value. The same command again resumes from the newest checkpoint in output_dir.

On SIGTERM, SIGUSR1 (Slurm's warning) or Ctrl-C the run saves a checkpoint and stops, in at most health.grace_seconds.
exit codes: 0 done, or stopped by Ctrl-C; 1 failed (one line says why); 2 the request was wrong; 70 it hung (hang-rank*.txt
has the stacks); 75 stopped on request, start it again. After 1, 70 and 75 the same command goes on."""


_MEETING = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""What several processes need of a launcher to find each other."""
_NO_MEMORY = (
    "out of memory; lower batch_size and raise grad_accum as much, set gradient_checkpointing=full, or cut the weights up "
    "(launch/accelerate/fsdp2.yaml, deepspeed_zero3*.yaml); `wam-video plan` says what fits; the last checkpoint is untouched"
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    result = argparse.ArgumentParser(
        prog="wam-video train",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("sources", nargs="*", metavar="CONFIG.yaml|key=value")
    result.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and the size; write nothing"
    )
    result.add_argument(
        "--watch", action="store_true", help="keep OUTPUT_DIR/watch.html up to date: open it in a browser and leave it"
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or show what would be trained; return the exit code."""
    arguments = parser().parse_args(argv)
    setup_logging(main_process=os.environ.get("RANK", "0") == "0")
    from wam_video.training.config import TrainConfig  # torch and diffusers: not before --help has answered

    config = load(TrainConfig, arguments.sources)
    if arguments.dry_run:
        return _show(config)
    if not config.data.datasets:
        raise ConfigError("data.datasets is empty; give at least one, e.g. data.datasets.pusht.path=shards/pusht")
    from wam_video.training.engines import is_one_of_several, leave

    try:
        code = run(lambda _: _train(config, watch=arguments.watch))
    except Exception:
        if not is_one_of_several():
            raise
        traceback.print_exc()  # a mistake of ours; it must not wait for the other processes
        code = FAILED
    return leave(code) if is_one_of_several() else code


def _show(config: "TrainConfig") -> int:
    from wam_video.training.adapters import add_adapter
    from wam_video.training.baseline import network_on_meta
    from wam_video.training.feed import find_embodiments
    from wam_video.training.optim import describe_parts, lr_scales

    embodiments, note = find_embodiments(config.data)
    network = network_on_meta(config, embodiments)
    count = sum(p.numel() for p in network.parameters())
    add_adapter(network, config.adapter, config.seed)
    unseen = ["text_encoder.weights"] if config.text.train else []  # it is not built: a stand-in for its names
    unseen += ["head.weights"] if config.teacher.kind != "none" else []  # nor is the teacher's head
    scales = lr_scales(config, [*(name for name, _ in network.named_parameters()), *unseen])
    print(to_yaml(config), end="")
    print(f"# {count:,} parameters in the network ({note})")
    for line in describe_parts(network.named_parameters(), scales):
        print(f"#   {line}")
    return DONE


def _train(config: "TrainConfig", *, watch: bool) -> int:
    quiet_libraries()
    import torch

    from wam_video.data.stream import DataWorkerError
    from wam_video.training.engines import EngineConfig, start_engine
    from wam_video.training.feed import ShardFeed
    from wam_video.training.health import TrainingFailedError
    from wam_video.training.saving import SavingFailedError
    from wam_video.training.stopping import StopRequest
    from wam_video.training.trainer import Trainer
    from wam_video.training.watchdog import Watchdog

    request = StopRequest(config.health.grace_seconds)
    launch = _launch()
    try:
        engine = start_engine(EngineConfig.of(config), launch)
    except RuntimeError as error:
        _leave_if_lost(error, int(os.environ.get("RANK", "0")), 0)
        raise
    watchdog = Watchdog(Path(config.output_dir), engine.rank, config.health.hang_seconds)
    trainer = None
    try:
        feed = ShardFeed(config.data, config.seed, with_teacher=config.teacher.kind != "none")
        trainer = Trainer(config, feed, engine, should_stop=request.is_made)
        trackers = _open_output(config, trainer)
        _LOG.info("%s, %d parameters", engine.describe(), sum(p.numel() for p in engine.module.parameters()))
        hooks = _callbacks(config, trackers, watch=watch)
        with request, watchdog:  # not before: to fetch weights or to hash a checkpoint may take longer than any step
            trainer.run([hook for each in hooks for hook in (each, watchdog)], trackers)
    except (TrainingFailedError, SavingFailedError, DataWorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except (torch.OutOfMemoryError, MemoryError) as error:
        step = trainer.progress.step if trainer else 0
        print(f"error: rank {engine.rank}, after step {step}: {_NO_MEMORY} ({first_line(error)})", file=sys.stderr)
        return FAILED
    except Exception as error:
        _leave_if_lost(error, engine.rank, trainer.progress.step if trainer else 0)
        raise
    finally:
        engine.close()
    return request.exit_code if trainer.interrupted else DONE


def _leave_if_lost(error: Exception, rank: int, step: int) -> None:
    """End this process with one line if another one is gone; what is left of the exchange would only wait for it."""
    from wam_video.training.health import lost_process

    why = lost_process(error)
    if why is not None:
        print(
            f"error: rank {rank}, after step {step}: another process of the run was lost or does not answer ({why}); start the "
            "same command again and it goes on from the last checkpoint (a launcher does so by itself: torchrun --max-restarts N)",
            file=sys.stderr,
            flush=True,
        )
        os._exit(FAILED)


def _open_output(config: "TrainConfig", trainer: "Trainer") -> "list[Tracker]":
    """Make the folder of the run and what is written into it beside checkpoints, on the main process."""
    from wam_video.training.durable import write_text
    from wam_video.training.metrics import open_trackers

    if config.eval_every:
        trainer.validation_batches()  # a missing split is told before hours of training
    if not trainer.engine.is_main:
        return []
    try:
        trainer.output.mkdir(parents=True, exist_ok=True)
        write_text(trainer.output / "config.yaml", to_yaml(config))
        return open_trackers(config.trackers, trainer.output, {"config": to_yaml(config)}, trainer.start_step)
    except OSError as error:
        raise ConfigError(
            f"output_dir {config.output_dir!r} can't be written ({error.strerror or error}); make room or give another one"
        ) from error


def _callbacks(config: "TrainConfig", trackers: "list[Tracker]", *, watch: bool) -> "list[Callback]":
    from wam_video.evaluation.watch_page import write_watch_page
    from wam_video.training import callbacks as hooks

    alone = config.adapter.kind != "none" and config.adapter.export == "adapter"
    model = Path(config.output_dir) / ("adapter" if alone else "model")
    return [
        hooks.LogCallback(config.log_every),
        *([hooks.ValidateCallback(config.eval_every)] if config.eval_every else []),
        hooks.CheckpointCallback(config.save_every),
        hooks.ExportCallback(_export, model, config.save_every if config.export_on_save else 0),
        hooks.TrackerCallback(trackers),
        *([hooks.WatchCallback(write_watch_page, config.log_every)] if watch else []),
    ]


def _launch() -> "Launch":
    """Read what the launcher announced; the environment is read here and not in the package."""
    import torch

    from wam_video.training.engines import Launch

    deepspeed, fsdp, offload = (
        os.environ.get(name, "false").lower() == "true"
        for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "FSDP_OFFLOAD_PARAMS")
    )
    if not torch.accelerator.is_available():  # whoever imports DeepSpeed would be warned that it had to guess
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    processes = _announced("WORLD_SIZE", 1)
    if processes > 1 and (missing := [name for name in _MEETING if not os.environ.get(name)]):
        raise ConfigError(
            f"WORLD_SIZE is {processes}, but {missing[0]} is not set; start the processes by accelerate launch, torchrun or the "
            "scripts of launch/, or unset WORLD_SIZE for one process"
        )
    hybrid = fsdp and os.environ.get("FSDP_SHARDING_STRATEGY", "").endswith("HYBRID_SHARD")
    here = _announced("LOCAL_WORLD_SIZE", 1) if hybrid else 0
    return Launch(
        num_processes=processes,
        attempt=_announced("TORCHELASTIC_RESTART_COUNT", 0),
        deepspeed=deepspeed,
        fsdp=fsdp,
        offload=fsdp and offload,
        shard_size=here,
    )


def _announced(name: str, low: int) -> int:
    """Return a launcher's number, `low` where there is none.

    Raises:
        ConfigError: It is no number, or below `low`.
    """
    text = os.environ.get(name, "") or str(low)
    if not text.isdecimal() or int(text) < low:
        raise ConfigError(
            f"the environment's {name} is {text!r}; allowed: {low} or more: a launcher sets it, or unset it"
        )
    return int(text)


def _export(folder: Path, parts: "Parts", config: "TrainConfig") -> None:
    from wam_video.flow.scheduler import WAMScheduler
    from wam_video.inference.diffusion_policy import DiffusionPolicyPipeline
    from wam_video.inference.pipeline import WAMPipeline
    from wam_video.models.adapters import merged, save_adapter
    from wam_video.models.diffusion_policy import DiffusionPolicyTransformer, ddpm_scheduler
    from wam_video.models.image_encoder import image_processor

    if isinstance(parts.transformer, DiffusionPolicyTransformer):
        DiffusionPolicyPipeline(
            transformer=parts.transformer,
            text_encoder=parts.text_encoder,
            tokenizer=parts.tokenizer,
            scheduler=ddpm_scheduler(),
            processor=parts.processor,
        ).save_pretrained(folder)
        return
    if config.adapter.kind != "none" and config.adapter.export == "adapter":
        save_adapter(parts.transformer, folder, base=parts.base_hash, base_name=parts.base_name)
        parts.processor.save_pretrained(folder / "processor")  # the embodiments and statistics that go with it
        return
    pipeline = WAMPipeline(
        transformer=merged(parts.transformer),
        vae=parts.codec,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        scheduler=WAMScheduler(**config.scheduler),
        processor=parts.processor,
        image_encoder=parts.image_encoder,
        image_processor=parts.image_encoder and image_processor(parts.image_encoder, config.image_encoder.fit),
    )
    pipeline.save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(run(main))
