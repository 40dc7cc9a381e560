"""Start from a pretrained Wan video transformer: read its folder in diffusers' format into a `WAMTransformer`.

Strict: every tensor of the folder has a place, every tensor of ours comes from the folder or is one of `NEW`. One tensor at
a time goes from disk to its place, so that there are never two copies of the weights.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import nn

from wam_video.errors import CheckpointError, ConfigError, one_of
from wam_video.models.expert import ActionExpert
from wam_video.models.layers import EmbodimentLinear
from wam_video.models.masks import AttentionConfig

Model = TypeVar("Model", bound=ModelMixin)

WEIGHTS = "diffusion_pytorch_model.safetensors"
WAN_DEFAULTS: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "image_dim": None,
    "added_kv_proj_dim": None,
}
"""What diffusers' `WanTransformer3DModel` takes where its config.json says nothing; these keys shape our network too."""
WAN_FIXED: dict[str, Any] = {
    "qk_norm": "rms_norm_across_heads",
    "pos_embed_seq_len": None,
    "window_size": (-1, -1),
}
"""Settings that this library has in one form only."""
WAN_IGNORED = frozenset({"rope_max_seq_len", "add_img_emb"})
"""Settings without a meaning here: positions need no table, and `image_dim` says whether there is an image context."""
IGNORED_SUFFIX = ".norm_added_q.weight"
"""A tensor of the image-to-video checkpoints that no released code uses."""
OURS: dict[str, tuple[Any, ...]] = {
    "video_prediction": ("velocity",),
    "action_prediction": ("velocity", "sample"),
    "residual_video": (False,),
    "absolute_positions": (False,),
}
"""Options of ours that would make the video path another one than Wan's, with what they may be."""
NEW = (
    "expert.",
    "action_embedder.",
    "state_embedder.",
    "action_proj_out.",
    "no_state",
    "view_embedding",
    "registers",
    "side_gate",
)
"""Tensors that Wan does not have, by how their name starts (`side_gate`: ends).

Maps of embodiments: variance 1 / (input width), the one that reads actions out zero. Registers: variance 1 / width. Gates,
the vectors of views and the token of an unknown state: zero. So actions, state and registers leave the video as it was. An
expert: as its `init` says (`ActionExpert.reset_parameters`).
"""
WAN22_LATENT_CHANNELS = 48
"""Of the video VAE of Wan2.2 TI2V 5B, which makes 24 frames a second; every other Wan makes 16."""


def load_wan(
    kind: type[Model],
    repo_or_folder: str | Path,
    options: Mapping[str, Any],
    *,
    subfolder: str | None = "transformer",
    torch_dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> Model:
    """Build a network of class `kind` in the shape of a Wan checkpoint and fill it.

    Args:
        kind: `WAMTransformer`.
        repo_or_folder: A folder in diffusers' format, or a Hub id, of which only `subfolder` is fetched.
        options: Arguments of the network; those that the checkpoint settles must agree with it. Unless they say otherwise,
            video that sees actions does so through closed gates (`action_coupling="gated"`; "full" changes the video path) and
            `rope_rate` is the checkpoint's latent frames a second: 4, or 6 for Wan2.2 TI2V 5B.
        subfolder: Of the transformer; Wan2.2 14B has a second one in `transformer_2`. None: the folder itself.
        torch_dtype: Of the weights; None: float32. What must stay in float32 does (`_keep_in_fp32_modules`).
        generator: Source of the new weights; None: torch's global one.

    Raises:
        CheckpointError: The folder is incomplete, of another network, or holds tensors that don't fit; names them.
        ConfigError: An option is unknown, contradicts the checkpoint, or would change the video path.
    """
    folder = _find(repo_or_folder, subfolder, [f"{Path(WEIGHTS).stem}*.safetensors", "*.json"])
    with torch.device("meta"):
        model = kind(**_merged(kind, folder, options))
    with ExitStack() as stack:
        files = {name: stack.enter_context(_open(folder / name)) for name in _shards(folder)}
        _check_tensors(model, files, folder)
        for file in files.values():
            for name in file.keys():  # noqa: SIM118 - no mapping
                if not name.endswith(IGNORED_SUFFIX):
                    _place(model, name, file.get_tensor(name).to(_dtype(kind, name, torch_dtype), copy=True))
    _initialise(model, torch_dtype, generator)
    return model.eval()


def backbone_arguments(
    kind: type, repo_or_folder: str | Path, options: Mapping[str, Any], *, subfolder: str | None = "transformer"
) -> dict[str, Any]:
    """Return all arguments of the network that `load_wan` would build; reads no weights.

    Raises:
        CheckpointError: See `load_wan`.
        ConfigError: See `load_wan`.
    """
    return _merged(kind, _find(repo_or_folder, subfolder, ["config.json"]), options)


def _merged(kind: type, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    arguments = wan_arguments(_read_json(folder / "config.json"), folder)
    _check_options(kind, options, arguments)
    seen = AttentionConfig.read(options.get("attention")).video_sees_actions
    return arguments | {"action_coupling": "gated" if seen else "full"} | dict(options)


def wan_arguments(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the arguments of our network for the config.json of a Wan transformer.

    Raises:
        CheckpointError: It is of another network, or of a Wan that this library does not have.
    """
    found = config.get("_class_name")
    if found != "WanTransformer3DModel":
        raise CheckpointError(f"{folder / 'config.json'} is of a {found!r}; allowed: 'WanTransformer3DModel'")
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if not key.startswith("_")}
    for key, value in values.items():
        if key in WAN_FIXED and value != WAN_FIXED[key]:
            raise CheckpointError(f"{folder / 'config.json'} has {key} {value!r}; allowed: {WAN_FIXED[key]!r}")
        if key not in WAN_DEFAULTS and key not in WAN_FIXED and key not in WAN_IGNORED:
            raise CheckpointError(
                f"{folder / 'config.json'} has {key!r}, which is unknown; this is no plain Wan text- or image-to-video model"
            )
    arguments = {key: values.get(key, default) for key, default in WAN_DEFAULTS.items()}
    latents = arguments["out_channels"] or arguments["in_channels"]
    condition = arguments["in_channels"] - latents
    if condition < 0:
        raise CheckpointError(
            f"{folder / 'config.json'} has {arguments['in_channels']} in_channels and {latents} out_channels; "
            "allowed: at least as many in as out"
        )
    rate = 6.0 if latents == WAN22_LATENT_CHANNELS else 4.0
    return arguments | {
        "in_channels": latents,
        "out_channels": latents,
        "condition_channels": condition,
        "rope_rate": rate,
    }


def _check_options(kind: type, options: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    settled = set(arguments) - {"rope_rate"}
    allowed = {name for name in inspect.signature(kind).parameters if name != "self"}
    for name, value in options.items():
        if name not in allowed:
            raise ConfigError(one_of("option of from_wan", name, allowed - settled))
        if name in settled and value != arguments[name]:
            raise ConfigError(
                f"{name} is {value!r}; the Wan checkpoint has {arguments[name]!r}: take the codec, the text encoder and the "
                "model settings that go with it"
            )
        if value not in OURS.get(name, (value,)):
            raise ConfigError(
                f"{name} is {value!r}; allowed with a Wan checkpoint: {', '.join(map(repr, OURS[name]))}, "
                "for its video path predicts velocities from relative positions"
            )


def _find(repo_or_folder: str | Path, subfolder: str | None, patterns: Sequence[str]) -> Path:
    root = Path(repo_or_folder).expanduser()
    if not root.is_dir():
        prefix = f"{subfolder}/" if subfolder else ""
        root = _fetch(str(repo_or_folder), [prefix + pattern for pattern in patterns])
    folder = root / subfolder if subfolder else root
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; give a folder in diffusers' format and its subfolder")
    return folder


def _fetch(repo: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(
            f"{repo!r} is no folder here and can't be fetched from the Hub ({reason}); give a folder or 'owner/name'"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read ({error}); copy or fetch the checkpoint again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__} instead of a mapping; fetch it again")
    return content


def _shards(folder: Path) -> list[str]:
    """Return the names of the files that hold the weights."""
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        return [WEIGHTS]
    names = _read_json(index).get("weight_map", {}).values()
    if bad := sorted(name for name in names if Path(name).name != name):
        raise CheckpointError(f"{index} names files outside its folder, the first is {bad[0]!r}; don't use it")
    return sorted(set(names))


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} can't be read ({error}); copy or fetch the checkpoint again") from error


def _is_new(name: str) -> bool:
    return name.startswith(NEW) or name.endswith(NEW[-1])


def _check_tensors(model: nn.Module, files: Mapping[str, Any], folder: Path) -> None:
    """Compare names and shapes before anything is read."""
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items() if not _is_new(name)}
    theirs: dict[str, tuple[int, ...]] = {}
    for file_name, file in files.items():
        for name in file.keys():  # noqa: SIM118 - no mapping
            if name in theirs:
                raise CheckpointError(f"{folder / file_name} holds {name!r} once more; fetch the checkpoint again")
            theirs[name] = tuple(file.get_slice(name).get_shape())
    known = {name for name in theirs if not name.endswith(IGNORED_SUFFIX)}
    for what, names in (("lacks", set(ours) - known), ("has beside Wan's", known - set(ours))):
        if names:
            raise CheckpointError(f"{folder} {what} {_few(names)}; it is incomplete or of another network")
    wrong = {name for name in ours if ours[name] != theirs[name]}
    if wrong:
        shapes = [f"{name} {theirs[name]} instead of {ours[name]}" for name in sorted(wrong)]
        raise CheckpointError(f"{folder} holds {_few(shapes)}; its weights and its config.json are of two networks")


def _few(names: Any) -> str:
    first, more = sorted(names)[:3], len(names) - 3
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


def _dtype(kind: type, name: str, dtype: torch.dtype | None) -> torch.dtype:
    """Return the type of a tensor; the rule is that of diffusers' `from_pretrained`."""
    kept = any(part in name.split(".") for part in getattr(kind, "_keep_in_fp32_modules", None) or ())
    return torch.float32 if dtype is None or kept else dtype


def _place(model: nn.Module, name: str, value: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, nn.Parameter(value))


def _initialise(model: nn.Module, dtype: torch.dtype | None, generator: torch.Generator | None) -> None:
    """Give the tensors that Wan does not have their first values; see `NEW`."""
    kind = type(model)
    for module_name, module in model.named_modules():
        if isinstance(module, EmbodimentLinear):
            module.to_empty(device="cpu").reset_parameters(generator)
            module.to(_dtype(kind, module_name, dtype))
    expert = getattr(model, "expert", None)
    if isinstance(expert, ActionExpert):
        expert.to_empty(device="cpu").reset_parameters(
            model if expert.config.init == "interpolate" else None, generator
        )
        for name, value in expert.named_parameters():
            _place(expert, name, value.detach().to(_dtype(kind, name, dtype)))
    for name, value in list(model.named_parameters()):
        if value.is_meta:
            fresh = torch.zeros(value.shape)
            if name == "registers":
                fresh.normal_(std=value.shape[-1] ** -0.5, generator=generator)
            _place(model, name, fresh.to(_dtype(kind, name, dtype)))
