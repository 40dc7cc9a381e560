"""A latent action model in a folder: `model.safetensors`, `config.json` with its hash, `metrics.json`."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from wam_video.data.manifest import hash_file
from wam_video.errors import CheckpointError, DataError, WamError, first_line
from wam_video.latent_actions.networks import LatentActionModel, LatentModelConfig

WEIGHTS, CONFIG, METRICS = "model.safetensors", "config.json", "metrics.json"
VERSION = 1


def save_model(model: LatentActionModel, figures: Mapping[str, Any], folder: Path) -> str:
    """Write a model and its figures into a new folder, which appears whole or not at all; return the weights' hash.

    Raises:
        DataError: The folder exists already, or can't be written.
    """
    check_new(folder)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")  # `.partial` may be labelling that waits to go on
    try:
        partial.mkdir(parents=True)
        state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(state, partial / WEIGHTS, metadata={"format": "pt"})
        digest = hash_file(partial / WEIGHTS)
        config = {"schema_version": VERSION, "sha256": digest, "model": asdict(model.config)}
        for name, content in ((CONFIG, config), (METRICS, figures)):
            (partial / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    except (OSError, SafetensorError) as error:  # the latter is how its writer tells of a full disk
        raise DataError(
            f"can't write to {str(folder)!r}: {first_line(error)}; make room or choose another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return digest


def check_new(folder: Path) -> None:
    """Refuse a folder that holds something already.

    Raises:
        DataError: It does.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"output {str(folder)!r} exists already; remove it or choose another folder")


def load_model(folder: Path) -> tuple[LatentActionModel, str]:
    """Read a model, ready to label, and its weights' hash.

    Raises:
        CheckpointError: The folder is none of a latent action model, or its files are broken, altered or of a newer version.
    """
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version, digest, values = raw["schema_version"], raw["sha256"], raw["model"]
        if not isinstance(version, int) or version > VERSION:
            raise CheckpointError(f"{path}: version is {version}; this library reads up to {VERSION}: update wam-video")
        config = LatentModelConfig(**values)
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read ({error.strerror}); give a folder that `wam-video latent-actions train` wrote"
        ) from error
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, WamError) as error:
        raise CheckpointError(f"{path} is no latent action model ({first_line(error)}); train it again") from error
    weights = folder / WEIGHTS
    if not weights.is_file() or hash_file(weights) != digest:
        what = "is missing" if not weights.is_file() else "is cut short or altered: its hash is not that of config.json"
        raise CheckpointError(f"{weights} {what}; copy the folder or train it again")
    model = LatentActionModel(config)
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"{weights} does not fit its config.json ({first_line(error)}); train it again"
        ) from error
    return model.eval().requires_grad_(False), digest
