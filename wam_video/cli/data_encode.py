"""`wam-video data encode`: the frozen codec runs once over the shards, and training reads its latents."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wam_video.cli.command import DONE
from wam_video.cli.data_tasks import add_executor_options
from wam_video.cli.options import parse_options
from wam_video.errors import ConfigError, DataError, first_line

if TYPE_CHECKING:
    import torch

    from wam_video.models.video_codec import Codec
    from wam_video.training.config import TrainConfig
    from wam_video.training.teacher import FrameTeacher

_EXAMPLE = """\
examples:
  wam-video data encode shards/pusht --codec pixel --config configs/data/pusht.yaml --output shards/pusht_latents
  wam-video data encode s3://lab/droid --codec Wan-AI/Wan2.1-T2V-1.3B-Diffusers --subfolder vae --output shards/droid_latents \\
      --config data.window.num_future_frames=32 --device cuda --part 0/8
  wam-video data encode shards/droid --codec pixel --config configs/data/pusht.yaml --output shards/droid_latents \\
      --executor slurm --workers 8 --executor-option partition=gpu --executor-option time=12:00:00

Give the configuration files of the training run (--config), for latents are of its windows and its codec: the run refuses
others. --teacher stores the features of the teacher of --config (teacher.*) beside the latents, and a run with that teacher
reads them. --texts stores the embeddings of every prompt, by the text encoder of --config, beside the shards of --output, or of
SHARDS where no --output is given; a run that finds them there does not run the encoder. Started again it goes on with the
shards that are missing; with --part I/N, N processes or machines share the work, and whoever is last finishes the folder. bfloat16 numbers are stored as uint16, because npy has no bfloat16."""


def add_encode(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `encode` to `wam-video data`."""
    sub = commands.add_parser(
        "encode",
        help="store the codec's latents of every window, so that training need not compute them",
        description="Encode the windows of a folder of shards with a frozen video codec into shards of latents (bfloat16).",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(command=_encode)
    sub.add_argument("shards", metavar="SHARDS", help="folder or address of shards of pixels")
    sub.add_argument("--output", type=Path, metavar="FOLDER", help="folder of latents to make")
    sub.add_argument("--texts", action="store_true", help="encode the prompts, too; without --output only them")
    sub.add_argument("--teacher", action="store_true", help="store the features of the teacher of --config, too")
    sub.add_argument("--codec", metavar="pixel|MODEL", help="pixel, or folder or hub id of an AutoencoderKLWan")
    sub.add_argument("--subfolder", metavar="NAME", help="of the model, where the VAE is, e.g. vae")
    sub.add_argument(
        "--config",
        nargs="*",
        default=[],
        metavar="CONFIG.yaml|key=value",
        help="of the training run: its windows and codec",
    )
    sub.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th window of a clip (default 1)")
    sub.add_argument("--batch-size", type=int, default=8, metavar="N", help="windows encoded at once (default 8)")
    sub.add_argument("--part", default="0/1", metavar="I/N", help="make the I-th of N shares of the shards, from 0")
    sub.add_argument(
        "--executor",
        choices=("local", "slurm", "ray"),
        help="run all parts by datatrove's tasks, --workers of them; slurm and ray submit and return",
    )
    sub.add_argument("--workers", type=int, default=1, metavar="N", help="parts, with --executor (default 1)")
    add_executor_options(sub)
    sub.add_argument("--keep-video", action="store_true", help="store the pixels beside the latents")
    sub.add_argument("--device", default="cpu", help="of the codec (default cpu)")


def _encode(arguments: argparse.Namespace) -> int:
    from wam_video.config import load
    from wam_video.training.build import build_codec
    from wam_video.training.config import TrainConfig
    from wam_video.training.preencode import EncodeConfig, Encoder

    codec_keys = []
    if arguments.codec == "pixel":
        codec_keys = ["codec.kind=pixel"]
    elif arguments.codec:
        codec_keys = ["codec.kind=wan", f"codec.path={arguments.codec}"]
    if arguments.subfolder:
        codec_keys.append(f"codec.subfolder={arguments.subfolder}")
    config = load(TrainConfig, [*arguments.config, *codec_keys])
    if arguments.output is None:
        if not arguments.texts:
            raise ConfigError(
                "neither --output nor --texts is given; --output FOLDER encodes video, --texts the prompts"
            )
        return _encode_texts(Path(arguments.shards), config, arguments.device)
    if arguments.executor is not None:
        return _by_tasks(arguments, config)
    part, num_parts = _part(arguments.part)
    options = EncodeConfig(
        window=config.data.window,
        every=arguments.every,
        batch_size=arguments.batch_size,
        part=part,
        num_parts=num_parts,
        keep_video=arguments.keep_video,
        store=config.data.store,
    )
    device = _device(arguments.device)
    codec: Any = build_codec(config.codec).requires_grad_(False).eval()
    teacher = _teacher(arguments.shards, config, codec).to(device) if arguments.teacher else None
    manifest = Encoder(arguments.shards, arguments.output, codec.to(device), options, teacher=teacher).run()
    if manifest is None:
        print(f"part {part} of {num_parts} is done; the others are not yet: {arguments.output} comes with the last")
        return DONE
    total = manifest.counts["total"]
    encoding = manifest.options["encoded"]
    print(
        f"{arguments.output}: {total['samples']} clips in {len(manifest.shards)} shard(s), {total['bytes'] / 2**20:.1f} MiB, "
        f"codec {encoding['codec'][:12]}"
    )
    return _encode_texts(arguments.output, config, arguments.device) if arguments.texts else DONE


def _by_tasks(arguments: argparse.Namespace, config: "TrainConfig") -> int:
    """Have every part made by a process of its own, here or on a cluster; the last one finishes the folder."""
    from wam_video.data.manifest import load_manifest
    from wam_video.data.store import as_store
    from wam_video.data.tasks import Part, run_parts

    if arguments.part != "0/1" or arguments.workers < 1:
        raise ConfigError(
            f"--part is {arguments.part} and --workers is {arguments.workers}; with --executor give no --part, and at least 1"
        )
    output: Path = arguments.output.resolve()
    if output.exists():
        raise DataError(f"output {str(arguments.output)!r} exists already; remove it or choose another folder")
    flags = [f"--{name}" for name in ("texts", "teacher") if getattr(arguments, name)]
    flags += ["--keep-video"] if arguments.keep_video else []
    given = {"codec": arguments.codec, "subfolder": arguments.subfolder, "every": arguments.every}
    given |= {"batch-size": arguments.batch_size, "device": arguments.device, "output": output}
    values = [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]
    keys = ["--config", *arguments.config] if arguments.config else []
    shards = str(Path(arguments.shards).resolve()) if Path(arguments.shards).exists() else arguments.shards
    run_parts(
        Part(("wam_video.cli.main", "data", "encode", shards, *flags, *values, *keys)),
        output.with_name(output.name + ".logs"),
        arguments.executor,
        parts=arguments.workers,
        options=parse_options(arguments.executor_option, "--executor-option"),
        done=lambda: {path.name for path in output.with_name(output.name + ".partial").glob("*.tar.json")},
        total=len(load_manifest(as_store(shards, config.data.store)).shards),
    )
    if arguments.executor == "local":
        print(f"{arguments.output}: {load_manifest(output).counts['total']['samples']} clips")
    else:
        print(f"{arguments.workers} parts are submitted; {arguments.output} comes with the last")
    return DONE


def _teacher(shards: str, config: "TrainConfig", codec: "Codec") -> "FrameTeacher":
    """Load the run's teacher; the network, whose tokens it speaks of, is only sketched."""
    from wam_video.data.manifest import load_manifest
    from wam_video.data.store import as_store
    from wam_video.models.teacher import load_teacher
    from wam_video.training.build import build_on_meta
    from wam_video.training.teacher import FrameTeacher

    if config.teacher.kind == "none":
        raise ConfigError(
            "--teacher is given, but teacher.kind is 'none'; give the training run's --config, with teacher.kind and teacher.model"
        )
    network = build_on_meta(config, load_manifest(as_store(shards, config.data.store)).embodiments)
    return FrameTeacher(load_teacher(config.teacher), codec, network.config["patch_size"], str(config.teacher.model))


def _device(name: str) -> "torch.device":
    """Return the device of a name.

    Raises:
        ConfigError: torch does not know it, or it is not there.
    """
    import torch

    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"--device is {name!r}, which can't be used ({first_line(error)}); try cpu, cuda or cuda:1"
        ) from error


def _encode_texts(folder: Path, config: "TrainConfig", device: str) -> int:
    from wam_video.training.build import build_text
    from wam_video.training.texts import NAME, prompts_of, write_texts

    tokenizer, encoder = build_text(config.text, config.seed)
    encoder.requires_grad_(False).eval().to(_device(device))  # type: ignore[arg-type]
    count = write_texts(folder, prompts_of(folder), tokenizer, encoder)
    print(f"{folder / NAME}: {count} prompts")
    return DONE


def _part(text: str) -> tuple[int, int]:
    part, slash, num_parts = text.partition("/")
    if not slash or not part.isdecimal() or not num_parts.isdecimal():
        raise ConfigError(f"--part is {text!r}; allowed: I/N, e.g. 0/8 for the first of eight")
    return int(part), int(num_parts)
