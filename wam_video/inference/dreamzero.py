"""A released DreamZero checkpoint, read as data: nothing in it is imported, instantiated or run.

`config.json` and `experiment_cfg/conf.yaml` name classes (Hydra's `_target_`); only numbers and words are taken from them.
Layout: the tensors of the whole policy under `action_head.`: `model` (the diffusion transformer), `text_encoder`,
`image_encoder`, `vae`. A LoRA run has `model.base_model.model`, with `lora_A` and `lora_B` beside what they are for.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wam_video.errors import CheckpointError, first_line
from wam_video.inference.loading import read_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
CONFIG, EXPERIMENT, METADATA = "config.json", "experiment_cfg/conf.yaml", "experiment_cfg/metadata.json"
PARTS = {
    "transformer": "action_head.model.",
    "text_encoder": "action_head.text_encoder.",
    "image_encoder": "action_head.image_encoder.",
    "vae": "action_head.vae.",
}
_PEFT, _BASE_LAYER = "base_model.model.", ".base_layer."
_LORA = {".lora_A.default.weight": "A", ".lora_B.default.weight": "B"}
_TAKEN_FROM = ("wam-video convert dreamzero reads the released layout", "fetch the checkpoint again")


@dataclass(kw_only=True)
class Release:
    """The files of a checkpoint, opened; use it as a context, which closes them."""

    folder: Path
    head: dict[str, Any]
    """`action_head_cfg.config` of config.json."""
    experiment: dict[str, Any]
    metadata: dict[str, Any]
    tensors: dict[str, dict[str, tuple[Any, str]]]
    """Part -> name without what all of its names start with -> open file and the name there."""
    lora: dict[str, dict[str, tuple[Any, str]]]
    """Name of an adapted weight of the transformer -> `A` and `B`."""
    stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Release":
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    @property
    def network(self) -> dict[str, Any]:
        """Sizes of the diffusion transformer, as config.json has them."""
        return self.head["diffusion_model_cfg"]

    @property
    def scale(self) -> float:
        """By what the product of an adapter's matrices is multiplied."""
        return float(self.head.get("lora_alpha", 4)) / float(self.head.get("lora_rank", 4))

    @property
    def base(self) -> str | None:
        """Which DreamZero checkpoint training started from, as its configuration names it; None: a plain Wan."""
        path = self.experiment.get("pretrained_model_path")
        return str(path).rstrip("/").rsplit("/", 1)[-1] if path else None


def shape_of(entry: tuple[Any, str]) -> tuple[int, ...]:
    """Return the shape of a tensor in an open file."""
    file, name = entry
    return tuple(file.get_slice(name).get_shape())


def value_of(entry: tuple[Any, str]) -> Float[Tensor, "..."]:
    """Read a tensor."""
    file, name = entry
    return file.get_tensor(name)


def open_release(folder: Path) -> Release:
    """Open a checkpoint folder.

    Raises:
        CheckpointError: It is not of that layout, incomplete, or holds a tensor that belongs to none of its parts.
    """
    config = _mapping(folder / CONFIG, read_json(folder / CONFIG), "action_head_cfg")
    head = config["action_head_cfg"].get("config", config["action_head_cfg"])
    _mapping(folder / CONFIG, head, "diffusion_model_cfg")
    experiment = _read_yaml(folder / EXPERIMENT)
    metadata = read_json(folder / METADATA)
    release = Release(
        folder=folder,
        head=head,
        experiment=experiment,
        metadata=metadata,
        tensors={part: {} for part in PARTS},
        lora={},
    )
    try:
        for name, entry in _entries(folder, release.stack):
            _place(release, name, entry)
        _check_lora(release)
    except CheckpointError:
        release.stack.close()
        raise
    return release


def _place(release: Release, name: str, entry: tuple[Any, str]) -> None:
    for part, start in PARTS.items():
        if not name.startswith(start):
            continue
        rest = name.removeprefix(start)
        if part == "transformer":
            rest = rest.removeprefix(_PEFT).replace(_BASE_LAYER, ".")
            for end, letter in _LORA.items():
                if rest.endswith(end):
                    release.lora.setdefault(rest.removesuffix(end) + ".weight", {})[letter] = entry
                    return
        if rest in release.tensors[part]:
            raise CheckpointError(f"{release.folder} holds {name!r} twice; {_TAKEN_FROM[1]}")
        release.tensors[part][rest] = entry
        return
    raise CheckpointError(
        f"{release.folder} holds {name!r}, which is no part of DreamZero's policy ({', '.join(PARTS.values())}); "
        f"{_TAKEN_FROM[0]}"
    )


def _check_lora(release: Release) -> None:
    rank = int(release.head.get("lora_rank", 4))
    for name, pair in release.lora.items():
        if set(pair) != {"A", "B"}:
            raise CheckpointError(
                f"{release.folder} has lora_{'A' if 'B' in pair else 'B'} of {name!r} missing; {_TAKEN_FROM[1]}"
            )
        (rows, _), (_, columns) = shape_of(pair["A"]), shape_of(pair["B"])
        if rows != rank or columns != rank:
            raise CheckpointError(
                f"{release.folder} adapts {name!r} with rank {rows}, config.json says {rank}; they are of two runs"
            )


def _entries(folder: Path, stack: ExitStack) -> Iterator[tuple[str, tuple[Any, str]]]:
    """Yield every tensor of every file that the index lists, and see that the index tells the truth."""
    listed: dict[str, str] | None = None
    if (folder / INDEX).is_file():
        listed = dict(_mapping(folder / INDEX, read_json(folder / INDEX), "weight_map")["weight_map"])
        if bad := sorted(name for name in set(listed.values()) if Path(name).name != name):
            raise CheckpointError(
                f"{folder / INDEX} names files outside its folder, the first is {bad[0]!r}; don't use it"
            )
    seen: set[str] = set()
    for shard in [SINGLE] if listed is None else sorted(set(listed.values())):
        path = folder / shard
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} can't be read ({str(error)[:200]}); {_TAKEN_FROM[1]}") from error
        for name in file.keys():  # noqa: SIM118 - no mapping
            if listed is not None and listed.get(name) != shard:
                raise CheckpointError(f"{path} holds {name!r}, which {INDEX} does not list there; {_TAKEN_FROM[1]}")
            seen.add(name)
            yield name, (file, name)
    if listed is not None and (missing := sorted(set(listed) - seen)):
        raise CheckpointError(f"{folder} lacks {missing[0]!r}, which {INDEX} lists; {_TAKEN_FROM[1]}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; {_TAKEN_FROM[0]}") from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} can't be read ({first_line(error)}); {_TAKEN_FROM[1]}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__} instead of a mapping; {_TAKEN_FROM[1]}")
    return content


def _mapping(path: Path, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(content.get(key), dict):
        raise CheckpointError(f"{path} has no {key!r}; {_TAKEN_FROM[0]}")
    return dict(content)


def merged(weight: Float[Tensor, "o i"], pair: Mapping[str, tuple[Any, str]], scale: float) -> Float[Tensor, "o i"]:
    """Return a weight with its adapter added, in the weight's type: W + scale B A (Hu et al. 2021, eq. 3)."""
    product = value_of(pair["B"]).float() @ value_of(pair["A"]).float()
    if product.shape != weight.shape:
        raise CheckpointError(
            f"an adapter is for a weight of {tuple(product.shape)}, the base has {tuple(weight.shape)}; it is of another base"
        )
    return (weight.to(torch.float32) + scale * product).to(weight.dtype)


def facts_json(facts: Mapping[str, Any]) -> str:
    """Return what is to be remembered of a conversion as JSON."""
    return json.dumps(facts, indent=2, sort_keys=True) + "\n"
