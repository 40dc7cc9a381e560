"""From a released DreamZero checkpoint to a folder of ours: tensor by tensor, every one accounted for, or not at all."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wam_video.errors import CheckpointError, ConfigError, first_line
from wam_video.flow.scheduler import WAMScheduler
from wam_video.inference.dreamzero import PARTS, Release, facts_json, merged, open_release, value_of
from wam_video.inference.dreamzero_data import relative_keys, release_bodies, release_processor
from wam_video.inference.loading import INDEX, write_checksums
from wam_video.log import get_logger
from wam_video.models.convert import DREAMZERO_ATTENTION, DREAMZERO_OPTIONS, dreamzero_keys
from wam_video.models.convert_encoders import ENCODERS, UNUSED, empty, split
from wam_video.models.image_encoder import image_processor
from wam_video.models.transformer import WAMTransformer

_LOG = get_logger(__name__)

FACTS = "conversion.json"
SHARD_BYTES = 4_000_000_000
"""Of a file of weights, and so of what is in memory at once."""
_FILES = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
_TABLES = ("action_embedder.", "state_embedder.", "action_proj_out.")
_FRESH = ("no_state", "view_embedding", "registers")
"""Tensors of ours that DreamZero does not have; they are zero, and say nothing."""


@dataclass(frozen=True)
class Planned:
    """A tensor that is to be written."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def convert(
    checkpoint: Path, output: Path, *, base: Path | None = None, tokenizer: str | None = None
) -> dict[str, Any]:
    """Write a released DreamZero checkpoint as a checkpoint folder of ours and return what is to be known of it.

    Args:
        checkpoint: Folder in the released layout, a full model or a LoRA run.
        output: Must not exist; until all is written it is `<output>.partial`.
        base: The full release that a LoRA run without its base was trained on.
        tokenizer: Folder or Hub id of umt5's tokenizer, which the release does not hold; None: there is none, and calls bring
            `prompt_embeds`.

    Raises:
        CheckpointError: A file or tensor is missing, superfluous, or of another network or base.
        ConfigError: `output` exists, or `base` is missing or superfluous.
    """
    partial = output.with_name(output.name + ".partial")
    for folder in (output, partial):
        if folder.exists():
            raise ConfigError(f"{folder} exists; remove it, or give another --output")
    with open_release(checkpoint) as release:
        check_base(release, base)
        if base is None:
            return _write(release, None, output, partial, tokenizer)
        with open_release(base) as under:
            if under.lora:
                raise CheckpointError(f"base {base} is a LoRA run itself; give the full release that it was trained on")
            return _write(release, under, output, partial, tokenizer)


def check_base(release: Release, base: Path | None) -> None:
    """Refuse a base that is not the one that a LoRA run says it was trained on.

    Raises:
        CheckpointError: It is another one.
        ConfigError: It is missing, or not needed.
    """
    whole = "patch_embedding.weight" in release.tensors["transformer"]
    if whole and base is not None:
        raise ConfigError(f"{release.folder} holds all of its weights; leave --base out")
    if whole:
        return
    if not release.lora:
        raise CheckpointError(f"{release.folder} has no 'patch_embedding.weight' and no LoRA; it is incomplete")
    name = release.base
    if name is None:
        raise CheckpointError(
            f"{release.folder} is a LoRA on a plain Wan (its conf.yaml has no pretrained_model_path), which can't be its "
            "base here; merge it with DreamZero's own code first, or train from a DreamZero checkpoint"
        )
    if base is None:
        raise ConfigError(f"{release.folder} is a LoRA on {name!r}; give that checkpoint with --base")
    if not any(part.endswith(name) for path in (base, base.resolve()) for part in path.parts):
        raise CheckpointError(
            f"base {base} is not {name!r}, which {release.folder} was trained on: a LoRA on another base is silently another "
            f"model; give a folder of that name (in its path)"
        )


def _write(
    release: Release, base: Release | None, output: Path, partial: Path, tokenizer: str | None
) -> dict[str, Any]:
    bodies = release_bodies(release)
    modules, plans = {}, {}
    for part in PARTS:
        entries = dict(base.tensors[part]) if base else {}
        entries |= release.tensors[part]
        if part == "transformer":
            modules[part], plans[part] = _transformer(release, entries, bodies)
        elif entries or part == "vae":
            modules[part], plans[part] = _encoder(release, part, entries)
    try:
        for part, plan in plans.items():
            folder = partial / part
            folder.mkdir(parents=True)
            module = modules[part]
            (module.save_config if hasattr(module, "save_config") else module.config.save_pretrained)(folder)
            _save(plan, folder, _FILES.get(part, "model"))
            _LOG.info("%s: %d tensors", part, len(plan))
        return _finish(release, bodies, tokenizer, output, partial, modules)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise CheckpointError(
                f"{partial} can't be written ({error.strerror or error}); free space, or write elsewhere"
            ) from error
        raise


def _finish(
    release: Release,
    bodies: list[dict[str, Any]],
    tokenizer: str | None,
    output: Path,
    partial: Path,
    parts: Mapping[str, Any],
) -> dict[str, Any]:
    encoder = parts.get("image_encoder")
    release_processor(release, bodies).save_pretrained(partial / "processor")
    WAMScheduler(
        num_inference_steps=16,
        solver="ab2",
        shift_video=5.0,
        shift_action=5.0,
        guidance_scale={"video": 5.0, "actions": 1.0},
        policy_path="joint",
    ).save_pretrained(partial / "scheduler")
    index: dict[str, Any] = {"_class_name": "WAMPipeline", "_diffusers_version": diffusers.__version__}
    index |= {"transformer": ["wam_video", "WAMTransformer"], "vae": ["diffusers", "AutoencoderKLWan"]}
    index["text_encoder"] = ["transformers", "UMT5EncoderModel"] if "text_encoder" in parts else [None, None]
    index["tokenizer"] = [None, None]
    if tokenizer is not None:
        index["tokenizer"] = ["transformers", _copy_tokenizer(tokenizer, partial / "tokenizer")]
    index |= {"scheduler": ["wam_video", "WAMScheduler"], "processor": ["wam_video", "WAMProcessor"]}
    index |= {"image_encoder": [None, None], "image_processor": [None, None]}
    if encoder is not None:  # DreamZero shows CLIP the whole canvas, not its middle
        processor = image_processor(encoder, "stretch")
        processor.save_pretrained(partial / "image_processor")
        index["image_encoder"] = ["transformers", "CLIPVisionModel"]
        index["image_processor"] = ["transformers", type(processor).__name__]
    facts = {
        "source": release.folder.name,
        "base": release.base if release.lora else None,
        "lora_tensors_merged": len(release.lora),
        "unused_tensors": [PARTS[part] + name for part, names in UNUSED.items() for name in names],
        "embodiments": [body["name"] for body in bodies],
        "relative_actions": relative_keys(release),
    }
    (partial / INDEX).write_text(facts_json(index), encoding="utf-8")
    (partial / FACTS).write_text(facts_json(facts), encoding="utf-8")
    write_checksums(partial)
    partial.rename(output)
    return facts


def _copy_tokenizer(name: str, folder: Path) -> str:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, model_max_length=512)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"tokenizer {name!r} can't be read ({first_line(error)}); give umt5's") from error
    tokenizer.save_pretrained(folder)
    return type(tokenizer).__name__


def _transformer(
    release: Release, entries: Mapping[str, Any], bodies: list[dict[str, Any]]
) -> tuple[nn.Module, dict[str, Planned]]:
    names = dreamzero_keys(entries)
    with torch.device("meta"):
        network = WAMTransformer(**network_arguments(release, entries, bodies))
    if strange := sorted(set(release.lora) - set(entries)):
        raise CheckpointError(f"{release.folder} adapts {strange[0]!r}, which its base lacks; it is of another base")
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    plan = {}
    for theirs, ours in names.items():
        table = ours.startswith(_TABLES)
        shape = tuple(entries[theirs][0].get_slice(entries[theirs][1]).get_shape())
        fits = shape == wanted.get(ours)
        if table and ours in wanted:  # one row for all bodies there, padded to the release's own width
            fits = shape[0] == 1 and all(have >= need for have, need in zip(shape[1:], wanted[ours][1:], strict=True))
        if not fits:
            raise CheckpointError(
                f"{release.folder} holds {theirs!r} of shape {shape}, config.json says {wanted.get(ours, 'there is none')}; "
                "its files are of two networks"
            )
        plan[ours] = Planned(wanted[ours], _reader(release, theirs, entries[theirs], wanted[ours], table=table))
    for name in _FRESH:
        plan[name] = Planned(wanted[name], lambda shape=wanted[name]: torch.zeros(shape))
    return network, _complete(release, "transformer", plan, wanted)


def _reader(
    release: Release, name: str, entry: tuple[Any, str], shape: tuple[int, ...], *, table: bool
) -> Callable[[], Tensor]:
    def read() -> Tensor:
        value = value_of(entry)
        if name in release.lora:
            value = merged(value, release.lora[name], release.scale)
        if table:
            value = value[(slice(None), *(slice(0, size) for size in shape[1:]))].expand(shape)
        return value

    return read


def _encoder(
    release: Release, part: str, entries: Mapping[str, tuple[Any, str]]
) -> tuple[nn.Module, dict[str, Planned]]:
    start, rename, _ = ENCODERS[part]
    used = {name: entry for name, entry in entries.items() if name not in UNUSED[part]}
    shapes = {name.removeprefix(start): tuple(e[0].get_slice(e[1]).get_shape()) for name, e in used.items()}
    try:
        module = empty(part, shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{release.folder} has no {PARTS[part]}{start}{error.args[0]}; it is incomplete"
        ) from error
    tied = {"encoder.embed_tokens.weight"}
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items() if name not in tied}
    plan = {}
    for name, entry in used.items():
        short = name.removeprefix(start)
        ours = rename(short) if name.startswith(start) else []
        if not ours:
            raise CheckpointError(
                f"{release.folder} holds {PARTS[part] + name!r}, which is no tensor of Wan's; don't use it"
            )
        for index, target in enumerate(ours):
            plan[target] = Planned(wanted.get(target, ()), lambda e=entry, s=short, i=index: split(s, value_of(e))[i])
    return module, _complete(release, part, plan, wanted)


def _complete(
    release: Release, part: str, plan: dict[str, Planned], wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, Planned]:
    """Check that nothing is missing or left over; shapes are checked as the tensors are read."""
    for what, names in (
        ("lacks", set(wanted) - set(plan)),
        ("has, beside those of its sizes,", set(plan) - set(wanted)),
    ):
        if names:
            raise CheckpointError(
                f"{release.folder} {what} {len(names)} tensors of {part}, the first is {min(names)!r} (its name here); it is "
                "incomplete or of another network"
            )
    return plan


def network_arguments(release: Release, entries: Mapping[str, Any], bodies: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the arguments of our network for the sizes of a release.

    Raises:
        CheckpointError: config.json lacks one.
    """
    sizes = release.network
    try:
        dim, heads, latents = sizes["dim"], sizes["num_heads"], sizes["out_dim"]
        image = entries.get("img_emb.proj.0.weight")
        image_dim = None if image is None else int(image[0].get_slice(image[1]).get_shape()[0])
        text = entries["text_embedding.0.weight"]
        return {
            "embodiments": [{key: body[key] for key in ("name", "action_dim", "state_dim")} for body in bodies],
            "in_channels": latents,
            "condition_channels": sizes["in_dim"] - latents,
            "num_layers": sizes["num_layers"],
            "num_attention_heads": heads,
            "attention_head_dim": dim // heads,
            "ffn_dim": sizes["ffn_dim"],
            "freq_dim": sizes["freq_dim"],
            "text_dim": int(text[0].get_slice(text[1]).get_shape()[1]),
            "image_dim": image_dim,
            "added_kv_proj_dim": None if image_dim is None else dim,
            "eps": float(sizes.get("eps", 1e-6)),
            "rope_rate": bodies[0]["latent_rate"],
            "embodiment_hidden_dim": _hidden(entries),
            "attention": DREAMZERO_ATTENTION | {"chunk_frames": sizes["num_frame_per_block"]},
            **DREAMZERO_OPTIONS,
        }
    except KeyError as error:
        raise CheckpointError(
            f"{release.folder} has no {error.args[0]!r} (sizes are in config.json); it is incomplete"
        ) from error


def _hidden(entries: Mapping[str, Any]) -> int:
    file, name = entries["state_encoder.layer1.b"]
    return int(file.get_slice(name).get_shape()[1])


def _save(plan: Mapping[str, Planned], folder: Path, stem: str) -> None:
    """Write tensors in files of `SHARD_BYTES`; no more than one file's are in memory."""
    shards: list[list[str]] = []
    batch: dict[str, Tensor] = {}
    held = total = 0

    def flush() -> None:
        nonlocal batch, held
        save_file(batch, folder / f"{stem}-{len(shards) + 1:05d}.safetensors", metadata={"format": "pt"})
        shards.append(list(batch))
        batch, held = {}, 0

    for name, planned in plan.items():
        value = planned.read().contiguous()
        if tuple(value.shape) != planned.shape:
            raise CheckpointError(f"{name!r} is {tuple(value.shape)} in the checkpoint; its sizes say {planned.shape}")
        size = value.numel() * value.element_size()
        if batch and held + size > SHARD_BYTES:
            flush()
        batch[name] = value.clone()
        held, total = held + size, total + size
    flush()
    if len(shards) == 1:
        (folder / f"{stem}-00001.safetensors").rename(folder / f"{stem}.safetensors")
        return
    weight_map = {}
    for number, names in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{stem}-{number:05d}.safetensors").rename(folder / name)
        weight_map |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(facts_json(index), encoding="utf-8")
