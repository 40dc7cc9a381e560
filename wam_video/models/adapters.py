"""Low-rank adapters on disk and in a network (Hu et al. 2021): a folder that goes with one base checkpoint and no other.

`pytorch_lora_weights.safetensors` is the file that diffusers' `save_lora_adapter` writes, and `load_lora_adapter(folder,
prefix=None, weight_name=...)` reads; its header also names the base by the hash of its weights. `full_weights.safetensors` holds what was trained whole beside it: the layers of the embodiments.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wam_video.errors import CheckpointError, ConfigError, MissingDependencyError, first_line
from wam_video.models.layers import EmbodimentLinear
from wam_video.models.parts import part_of, plain_name
from wam_video.models.transformer import WAMTransformer

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
FULL_WEIGHTS = "full_weights.safetensors"
HEADER = "wam_video"
"""Our key in the header of `LORA_WEIGHTS`."""
NAME = "default"
"""Of the adapter in the network."""
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class AdapterInfo:
    """What an adapter says of itself."""

    base: str
    """Hash of the base's weights (`weights_hash`)."""
    base_name: str
    """Where the base was when the adapter was trained."""
    embodiments: list[dict[str, Any]]
    """The network's, which are the base's or new ones."""
    num_views: int
    version: int = FORMAT


def needs_peft() -> None:
    """Raise MissingDependencyError unless PEFT can be imported."""
    if find_spec("peft") is None:
        raise MissingDependencyError("peft", "train", "an adapter")


def has_adapter(transformer: nn.Module) -> bool:
    """Say whether a network has an adapter that is not merged."""
    return bool(getattr(transformer, "peft_config", None))


def weights_hash(transformer: WAMTransformer) -> str:
    """Return the hash of a network's weights: of the files it was loaded from, else of its tensors.

    Raises:
        CheckpointError: A file can't be read.
    """
    folder = Path(transformer.config.get("_name_or_path") or "")
    if transformer.config.get("_name_or_path") and any(folder.glob("*.safetensors")):
        return folder_hash(folder)
    state = transformer.state_dict()
    return _hash((name, lambda name=name: state[name]) for name in sorted(state))


def folder_hash(folder: Path) -> str:
    """Return a hash (sha256, hex) of the names, types, shapes and values in a folder's safetensors, however they are sharded.

    Raises:
        CheckpointError: There are none, or one can't be read.
    """
    readers: dict[str, Callable[[], Tensor]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} can't be read ({error}); copy or fetch the checkpoint again") from error
        readers |= {name: lambda file=file, name=name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not readers:
        raise CheckpointError(f"{folder} has no .safetensors file; give a checkpoint folder")
    return _hash(sorted(readers.items()))


def _hash(tensors: Iterable[tuple[str, Callable[[], Tensor]]]) -> str:
    digest = hashlib.sha256()
    for name, read in tensors:
        value = read().detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_adapter(transformer: WAMTransformer, folder: Path, *, base: str, base_name: str) -> None:
    """Write a network's adapter, and beside it the embodiment layers and whatever else is trained whole.

    Args:
        transformer: A network with an adapter.
        folder: Made if need be.
        base: Hash of the base's weights.
        base_name: Where the base is.
    """
    from peft import get_peft_model_state_dict

    info = AdapterInfo(
        base=base,
        base_name=base_name,
        embodiments=[dict(body) for body in transformer.config["embodiments"]],
        num_views=transformer.config["num_views"],
    )
    settings = {k: sorted(v) if isinstance(v, set) else v for k, v in transformer.peft_config[NAME].to_dict().items()}
    header = {
        "format": "pt",
        LORA_ADAPTER_METADATA_KEY: json.dumps(settings, indent=2, sort_keys=True),
        HEADER: json.dumps(asdict(info), sort_keys=True),
    }
    low_rank = get_peft_model_state_dict(transformer, adapter_name=NAME)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in low_rank.items()}, folder / LORA_WEIGHTS, metadata=header)
    full = {
        plain_name(name): p.detach().cpu().contiguous()
        for name, p in transformer.named_parameters()
        if part_of(name) == "embodiment" or (p.requires_grad and part_of(name) != "lora")
    }
    save_file(full, folder / FULL_WEIGHTS, metadata={"format": "pt"})


def read_info(folder: Path) -> AdapterInfo:
    """Read what an adapter says of itself.

    Raises:
        CheckpointError: The folder holds no adapter, one that is not ours, or one of a newer format.
    """
    path = folder / LORA_WEIGHTS
    if not path.is_file() or not (folder / FULL_WEIGHTS).is_file():
        missing = path if not path.is_file() else folder / FULL_WEIGHTS
        raise CheckpointError(f"{missing} is missing; give the folder of an adapter that training exported")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read ({error}); copy or fetch the adapter again") from error
    if not isinstance(header, dict) or header.get("version", FORMAT + 1) > FORMAT:
        raise CheckpointError(
            f"{path} does not say which base it is for, in format {FORMAT}; train it with this library, or update wam-video"
        )
    try:
        return AdapterInfo(**header)
    except TypeError as error:
        raise CheckpointError(f"{path} has an altered header ({error}); copy or fetch the adapter again") from error


def check_base(transformer: WAMTransformer, folder: Path, info: AdapterInfo) -> None:
    """Refuse an adapter that was trained on another base, or a network that already has one.

    Raises:
        CheckpointError: It was.
        ConfigError: It has.
    """
    if has_adapter(transformer):
        raise ConfigError("the model already has an adapter; load its checkpoint again, or merge the adapter first")
    found = weights_hash(transformer)
    if found != info.base:
        raise CheckpointError(
            f"adapter {str(folder)!r} is for the base {info.base_name!r} with weights {info.base[:12]}, "
            f"this model has {found[:12]}; use it with that base"
        )


def load_adapter(transformer: WAMTransformer, folder: Path, info: AdapterInfo) -> None:
    """Put an adapter and what was trained beside it into its base, unmerged.

    Raises:
        CheckpointError: A file is broken, or its tensors do not fit the network.
        MissingDependencyError: PEFT is not installed.
    """
    needs_peft()
    from peft import get_peft_model_state_dict

    _refit(transformer, info)
    try:
        full, low_rank = load_file(folder / FULL_WEIGHTS), load_file(folder / LORA_WEIGHTS)
        _copy_full(transformer, full, folder)
        mode = transformer.training
        # without a prefix, as diffusers saves the adapter of one model; its annotation forgets that None is allowed
        options: dict[str, Any] = {"prefix": None, "weight_name": LORA_WEIGHTS, "adapter_name": NAME}
        transformer.load_lora_adapter(folder, **options)
        transformer.train(mode)  # new layers start in training mode, where dropout is at work
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = first_line(error)
        raise CheckpointError(f"adapter {folder} can't be loaded ({reason}); copy or fetch it again") from error
    if strays := low_rank.keys() ^ get_peft_model_state_dict(transformer, adapter_name=NAME).keys():
        raise CheckpointError(f"adapter {folder} does not fit the model: {min(strays)!r} is only in one of them")


def merged(transformer: WAMTransformer) -> WAMTransformer:
    """Return a plain network with the adapter added to the weights; the tensors that it does not touch are shared."""
    if not has_adapter(transformer):
        return transformer
    from peft.tuners.tuners_utils import BaseTunerLayer

    state = {plain_name(name): value for name, value in transformer.state_dict().items() if part_of(name) != "lora"}
    for name, module in transformer.named_modules():
        if isinstance(module, BaseTunerLayer):
            weight: Tensor = module.get_base_layer().weight  # type: ignore[assignment]
            delta: Tensor = module.get_delta_weight(NAME)  # type: ignore[operator]
            state[f"{name}.weight"] = (weight.detach().float() + delta.detach().float()).to(weight.dtype)
    plain = _twin(transformer)
    plain.load_state_dict(state, assign=True)
    buffers = dict(transformer.named_buffers())
    for name, _ in list(plain.named_buffers()):
        path, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(path), leaf, buffers[name])
    return plain.train(transformer.training)


def _twin(transformer: WAMTransformer, **changes: Any) -> WAMTransformer:
    """Return the same network on the meta device."""
    config = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
    with torch.device("meta"):
        return type(transformer)(**(config | changes))


@torch.no_grad()
def _refit(transformer: WAMTransformer, info: AdapterInfo) -> None:
    """Give the network the embodiments and views of an adapter; their weights come with it."""
    new = {"embodiments": info.embodiments, "num_views": info.num_views}
    if all(_same(transformer.config[key], value) for key, value in new.items()):
        return
    twin = _twin(transformer, **new)
    for name, module in list(twin.named_modules()):
        if isinstance(module, EmbodimentLinear):
            like = transformer.get_submodule(name).get_parameter("weight")
            module.to_empty(device=like.device).reset_parameters(torch.Generator(like.device))
            transformer.set_submodule(name, module.to(like.dtype))
    old = dict(transformer.named_parameters())
    for name, value in twin.named_parameters():
        if value.shape != old[name].shape:
            path, _, leaf = name.rpartition(".")
            fresh = torch.zeros(value.shape, dtype=old[name].dtype, device=old[name].device)
            setattr(transformer.get_submodule(path), leaf, nn.Parameter(fresh))
    transformer.register_to_config(**new)


def _same(a: Any, b: Any) -> bool:
    return json.dumps(a, sort_keys=True, default=dict) == json.dumps(b, sort_keys=True, default=dict)


@torch.no_grad()
def _copy_full(transformer: WAMTransformer, full: Mapping[str, Tensor], folder: Path) -> None:
    own = dict(transformer.named_parameters())
    needed = {name for name in own if part_of(name) == "embodiment"}
    if lost := needed - full.keys() or full.keys() - own.keys():
        raise CheckpointError(f"{folder / FULL_WEIGHTS} does not fit the model: {min(lost)!r} is only in one of them")
    for name, value in full.items():
        if own[name].shape != value.shape:
            raise CheckpointError(
                f"{folder / FULL_WEIGHTS} does not fit the model: {name} is {tuple(value.shape)} instead of "
                f"{tuple(own[name].shape)}"
            )
        own[name].copy_(value)
