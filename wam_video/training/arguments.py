"""Which networks a run can train, which arguments each takes, and which settings go with the baseline."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from wam_video.errors import ConfigError, one_of
from wam_video.flow.density import DensityConfig
from wam_video.flow.loss import LossConfig
from wam_video.models.diffusion_policy import DiffusionPolicyTransformer
from wam_video.models.transformer import WAMTransformer

NETWORKS: dict[str, type] = {"wam": WAMTransformer, "diffusion_policy": DiffusionPolicyTransformer}
DERIVED_MODEL_KEYS = {
    "wam": ("embodiments", "num_views", "in_channels", "text_dim"),
    "diffusion_policy": ("action_dim", "state_dim", "action_horizon", "num_observations", "num_views", "text_dim"),
}
"""Arguments of a network that follow from the data, the codec and the text encoder."""


def check_arguments(what: str, kind: type, arguments: Mapping[str, Any], *, hidden: Sequence[str] = ()) -> None:
    """Refuse arguments that a class does not take.

    Raises:
        ConfigError: The message names the key and the nearest right one.
    """
    allowed = {name for name in inspect.signature(kind.__init__).parameters if name != "self"} - set(hidden)
    for key in arguments:
        if key not in allowed:
            raise ConfigError(one_of(f"configuration key under {what}.", key, allowed))


def check_model_arguments(network: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the network does not have, or that follow from elsewhere.

    Raises:
        ConfigError: The message names the key and the nearest right one.
    """
    derived = DERIVED_MODEL_KEYS[network]
    allowed = [name for name in inspect.signature(NETWORKS[network].__init__).parameters if name != "self"]
    for key in arguments:
        if key in derived:
            raise ConfigError(
                f"model.{key} can't be set: it follows from the data, the codec and the text encoder; remove it"
            )
        if key not in allowed:
            raise ConfigError(one_of("configuration key under model.", key, set(allowed) - set(derived)))
    patch = arguments.get("patch_size", (1, 2, 2))
    if len(patch) != 3 or any(int(side) < 1 for side in patch):
        raise ConfigError(
            f"model.patch_size is {list(patch)}; allowed: three numbers of 1 or more (frames, rows, columns)"
        )


def check_policy_run(config: Any) -> None:
    """Refuse settings that Diffusion Policy has no use for, rather than leave them without effect.

    Args:
        config: A `training.config.TrainConfig`.

    Raises:
        ConfigError: The message names the key, its value and the one that it must have.
    """
    plain = (
        ("density", DensityConfig(absent_video=1.0), "it never sees a future frame"),
        ("loss", LossConfig(), "its loss is the squared error of the noise"),
        ("scheduler", {}, "it samples by DDPM"),
        ("normalization", "min_max", "its samples are clipped to [-1, 1]"),
        ("teacher.kind", "none", "it has no video tokens"),
        ("adapter.kind", "none", "it is trained whole"),
        ("image_encoder.kind", "none", "it has its own"),
        ("codec.kind", "pixel", "it reads pixels"),
        ("text.train", False, "its prompts are encoded once"),
        ("optim.name", "adamw", "that is its optimizer"),
        ("backbone", None, "it starts from nothing"),
        ("init_from", None, "it starts from nothing"),
        ("gradient_checkpointing", "none", "it is small"),
        ("compile", False, "it has no blocks"),
    )
    for key, wanted, reason in plain:
        value = config
        for name in key.split("."):
            value = getattr(value, name)
        if value == wanted:
            continue
        where, found, right = _first_difference(key, value, wanted)
        raise ConfigError(
            f"{where} is {found!r}, but network is 'diffusion_policy' ({reason}); allowed: {right!r}; start from "
            "configs/model/diffusion_policy.yaml and leave the recipes out"
        )


def _first_difference(key: str, value: Any, wanted: Any) -> tuple[str, Any, Any]:
    """Return the key, value and wanted value of what differs: inside a configuration, its first field that does."""
    if not is_dataclass(wanted):
        return key, value, wanted
    name = next(f.name for f in fields(wanted) if getattr(value, f.name) != getattr(wanted, f.name))
    return f"{key}.{name}", getattr(value, name), getattr(wanted, name)
