"""`wam-video train`: train from YAML files and key=value overrides; started again, it goes on where it stopped.

Under a launcher: `accelerate launch --config_file launch/accelerate/X.yaml -m wam_video.cli.train CONFIG.yaml ...`.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wam_video.cli.command import DONE, FAILED, quiet_libraries, run
from wam_video.config import load, to_yaml
from wam_video.errors import ConfigError
from wam_video.log import get_logger, setup_logging

if TYPE_CHECKING:
    from wam_video.training.build import Parts
    from wam_video.training.config import TrainConfig
    from wam_video.training.engines import Launch

_LOG = get_logger(__name__)

_EXAMPLE = """\
examples:
  wam-video train configs/model/tiny.yaml configs/data/pusht.yaml configs/train/pusht_tiny.yaml
  wam-video train configs/model/tiny.yaml configs/data/pusht.yaml optim.lr=1e-3 output_dir=runs/mine --dry-run
  accelerate launch --config_file launch/accelerate/multi_gpu.yaml -m wam_video.cli.train configs/model/tiny.yaml ...

Files merge left to right, then key=value. The same command again resumes from the newest checkpoint in output_dir."""


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
    return _train(config)


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


def _train(config: "TrainConfig") -> int:
    quiet_libraries()
    from wam_video.training import callbacks as hooks
    from wam_video.training.engines import EngineConfig, start_engine
    from wam_video.training.feed import ShardFeed
    from wam_video.training.metrics import open_trackers
    from wam_video.training.saving import SavingFailedError
    from wam_video.training.trainer import Trainer, TrainingFailedError

    request = _StopRequest()
    engine = start_engine(EngineConfig.of(config), _launch())
    trainer = Trainer(config, ShardFeed(config.data, config.seed), engine, should_stop=request.is_made)
    if config.eval_every:
        trainer.validation_batches()  # a missing split is told before hours of training
    trackers = []
    if engine.is_main:
        trainer.output.mkdir(parents=True, exist_ok=True)
        (trainer.output / "config.yaml").write_text(to_yaml(config))
        trackers = open_trackers(config.trackers, trainer.output, {"config": to_yaml(config)}, trainer.start_step)
    _LOG.info("%s, %d parameters", engine.describe(), sum(p.numel() for p in engine.module.parameters()))
    export_every = config.save_every if config.export_on_save else 0
    alone = config.adapter.kind != "none" and config.adapter.export == "adapter"
    chain = [
        hooks.LogCallback(config.log_every),
        *([hooks.ValidateCallback(config.eval_every)] if config.eval_every else []),
        hooks.CheckpointCallback(config.save_every),
        hooks.ExportCallback(_export, trainer.output / ("adapter" if alone else "model"), export_every),
        hooks.TrackerCallback(trackers),
    ]
    try:
        with request:
            trainer.run(chain, trackers)
    except (TrainingFailedError, SavingFailedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    finally:
        engine.close()
    return DONE


def _launch() -> "Launch":
    """Read what the launcher announced; the environment is read here and not in the package."""
    import torch

    from wam_video.training.engines import Launch

    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if not torch.accelerator.is_available():  # whoever imports DeepSpeed would be warned that it had to guess
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return Launch(num_processes=int(os.environ.get("WORLD_SIZE", "1")), deepspeed=deepspeed)


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


class _StopRequest:
    """SIGTERM and SIGINT ask the run to save and stop; a second SIGINT interrupts it where it is."""

    def __init__(self) -> None:
        self._made = False
        self._before: dict[int, Any] = {}

    def is_made(self) -> bool:
        """Say whether a signal has come."""
        return self._made

    def __enter__(self) -> "_StopRequest":
        self._before = {number: signal.signal(number, self._make) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _make(self, number: int, _frame: object) -> None:
        if self._made and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._made = True
        _LOG.info("%s: saving a checkpoint and stopping", signal.Signals(number).name)


if __name__ == "__main__":
    sys.exit(run(main))
