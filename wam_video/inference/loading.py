"""Checkpoint folders: finding one, checking that it is whole, and saying in one line what is wrong with it."""

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from wam_video.data.manifest import hash_file
from wam_video.data.processor import WAMProcessor
from wam_video.errors import CheckpointError, first_line

INDEX = "model_index.json"
CHECKSUMS = "checksums.json"
"""Beside the index: `{"sha256": {file: hex}}` of every safetensors file. Folders from before it existed have none."""
METRICS = "metrics.json"
"""Figures that may stand beside the index; no part of the model."""
RECORDS = ("metrics", "rollout", "rank", "ablation")
"""Kinds of such files: `KIND.json` or `KIND_NAME.json`."""
CONFIG_FILES = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
    "processor": "processor_config.json",
    "image_encoder": "config.json",
    "image_processor": "preprocessor_config.json",
}
"""The file that each component's folder must have."""
WITH_WEIGHTS = ("transformer", "vae", "text_encoder", "image_encoder")
OPTIONAL = ("text_encoder", "tokenizer", "image_encoder", "image_processor")

_DOWNLOADED = ["*.json", "*.safetensors"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_REMEDY = "copy or fetch the checkpoint again"


def resolve(name_or_path: str | Path, *, what: str = "model", **hub: Any) -> Path:
    """Return the checkpoint folder of a path or a Hub id; the latter is fetched first (JSON and safetensors only).

    Args:
        name_or_path: An existing folder, or `owner/name`.
        what: What it is, for the messages.
        hub: Passed on to `huggingface_hub.snapshot_download`: `revision`, `token`, `cache_dir`, `local_files_only`, ...

    Raises:
        CheckpointError: It is neither, or can't be fetched.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not _HUB_ID.fullmatch(str(name_or_path)):
        raise CheckpointError(
            f"{what} {str(name_or_path)!r} is no folder; give a checkpoint folder or a Hub id 'owner/name'"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=_DOWNLOADED, **hub))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{what} {str(name_or_path)!r} is no folder here and can't be fetched from the Hub ({first_line(error)}); "
            "give a checkpoint folder or a Hub id 'owner/name'"
        ) from error


def check_folder(
    folder: Path,
    class_name: str,
    passed: frozenset[str] = frozenset(),
    components: Collection[str] = tuple(CONFIG_FILES),
) -> None:
    """Check that every file which loading needs is there and can be read; nothing is built yet.

    Args:
        folder: Checkpoint folder.
        class_name: Of the pipeline that the index must name.
        passed: Components that the caller brings, which need no files.
        components: Those that the pipeline has.

    Raises:
        CheckpointError: A file is missing or broken; the message names it.
    """
    index = read_json(folder / INDEX)
    if index.get("_class_name") != class_name:
        raise CheckpointError(f"{folder / INDEX} is of a {index.get('_class_name')!r}; allowed: {class_name!r}")
    for component, config_file in CONFIG_FILES.items():
        if component in passed or component not in components:
            continue
        entry = index.get(component)
        if not (isinstance(entry, list) and len(entry) == 2 and entry[0]):
            if component not in OPTIONAL:
                raise CheckpointError(f"{folder / INDEX} has no {component!r}; {_REMEDY}")
            continue
        read_json(folder / component / config_file)
        if component in WITH_WEIGHTS:
            tensor_names(folder / component)


def tensor_names(folder: Path) -> set[str]:
    """Return the names of all tensors of one component's safetensors files.

    Raises:
        CheckpointError: There are none, one that the index lists is missing, or one is cut short.
    """
    files = sorted(folder.glob("*.safetensors"))
    for index in folder.glob("*.safetensors.index.json"):
        listed = {folder / name for name in read_json(index).get("weight_map", {}).values()}
        for missing in sorted(listed - set(files)):
            raise CheckpointError(f"{missing} is missing, which {index.name} lists; {_REMEDY}")
    if not files:
        raise CheckpointError(f"{folder} has no .safetensors file; {_REMEDY}")
    names: set[str] = set()
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                names.update(tensors.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} can't be read ({first_line(error)}); {_REMEDY}") from error
    return names


def culprit(folder: Path, message: str) -> Path:
    """Return the component's folder that an error while loading is about, by the tensor it names; else the whole folder."""
    words = set(re.findall(r"[\w.]+\.[\w.]+", message))
    for component in WITH_WEIGHTS:
        if (folder / component).is_dir() and words & tensor_names(folder / component):
            return folder / component
    return folder


def check_weights(folder: Path, component: str, module: nn.Module) -> None:
    """Check that the files hold every tensor of a module: diffusers only warns, and goes on with random numbers.

    Raises:
        CheckpointError: A tensor is missing.
    """
    if getattr(module.config, "quantization_config", None):
        return  # quantised layers save under names of their own
    saved = tensor_names(folder / component)
    state = module.state_dict()
    found = {state[name].data_ptr() for name in saved & set(state)}  # a tied tensor is saved under one of its names
    missing = sorted(name for name, tensor in state.items() if name not in saved and tensor.data_ptr() not in found)
    if missing:
        raise CheckpointError(
            f"{folder / component} lacks {len(missing)} tensors of the model, the first is {missing[0]!r}; {_REMEDY}"
        )


def adapter_processor(folder: Path) -> WAMProcessor:
    """Return the processor of an adapter, which knows the embodiments that it was trained on.

    Raises:
        CheckpointError: It is missing or altered.
    """
    read_json(folder / "processor" / CONFIG_FILES["processor"])
    try:
        found: Any = WAMProcessor.from_pretrained(str(folder / "processor"))
    except CheckpointError:
        raise
    except Exception as error:  # whatever diffusers raises at an altered file
        raise CheckpointError(f"{folder / 'processor'} can't be loaded ({first_line(error)}); {_REMEDY}") from error
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file.

    Raises:
        CheckpointError: The file is missing, or no JSON mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; {_REMEDY}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read ({first_line(error)}); {_REMEDY}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__} instead of a mapping; {_REMEDY}")
    return content


def write_checksums(folder: Path) -> None:
    """Write the sha256 of the folder's safetensors files beside its index; nothing where it has none."""
    files = {file.relative_to(folder).as_posix(): hash_file(file) for file in sorted(folder.glob("*/*.safetensors"))}
    if files:
        (folder / CHECKSUMS).write_text(json.dumps({"sha256": files}, indent=2) + "\n", encoding="utf-8")


def verify_weights(folder: Path, passed: frozenset[str] = frozenset()) -> None:
    """Check that weights are those that were exported, where the folder says what they were. Reads them all once.

    Args:
        folder: Checkpoint folder.
        passed: Components that the caller brings, whose files are not looked at.

    Raises:
        CheckpointError: A file is missing or altered; the message names it.
    """
    if not (folder / CHECKSUMS).is_file():
        return
    listed = read_json(folder / CHECKSUMS).get("sha256")
    if not isinstance(listed, dict):
        raise CheckpointError(f"{folder / CHECKSUMS} has no 'sha256'; {_REMEDY}")
    for name, expected in listed.items():
        if name.partition("/")[0] in passed:
            continue
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing, which {CHECKSUMS} lists; {_REMEDY}")
        if (found := hash_file(folder / name)) != expected:
            raise CheckpointError(
                f"{folder / name} has sha256 {found[:16]}, {CHECKSUMS} says {str(expected)[:16]}: it was altered; {_REMEDY}, or "
                f"remove {CHECKSUMS} if you changed the weights yourself"
            )


def _is_record(file: Path, folder: Path) -> bool:
    """Whether a file holds what was measured of a checkpoint, not a part of it."""
    return file.parent == folder and file.stem.split("_", 1)[0] in RECORDS


def model_hash(folder: str | Path) -> str:
    """Return a hash (sha256, hex) of a checkpoint folder: of the names and bytes of its JSON and safetensors files.

    Figures laid beside it (`metrics.json`, `rollout_pusht.json`, ...) leave it as it is.
    """
    digest = hashlib.sha256()
    folder = Path(folder)
    files = [p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors") and not _is_record(p, folder)]
    for file in sorted(files):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{hash_file(file)}\n".encode())
    return digest.hexdigest()
