"""Generic configuration: a frozen dataclass <- YAML files, left to right <- `key=value`. Knows no component.

The schema is Python, instances are YAML that hold differences only. Unknown keys fail with the nearest right one.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wam_video.errors import ConfigError, one_of

C = TypeVar("C")


def load(schema: type[C], sources: Sequence[str | Path]) -> C:
    """Build `schema` from YAML files and `key=value` overrides, merged left to right, overrides last.

    Args:
        schema: A frozen keyword-only dataclass with a default for every field.
        sources: Paths of YAML files and `a.b=value` strings, in any order.

    Raises:
        ConfigError: A file is missing or no mapping, a key is unknown, or a value has the wrong type or range.
    """
    files = [s for s in sources if "=" not in str(s)]
    overrides = [str(s) for s in sources if "=" in str(s)]
    merged = OmegaConf.structured(schema)
    try:
        for layer in [*map(_read_yaml, files), OmegaConf.from_dotlist(overrides)]:
            _check_keys(merged, layer, "")
            merged = OmegaConf.merge(merged, layer)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{key or 'configuration'}: {str(error).splitlines()[0]}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """Return a dataclass instance as plain JSON-able containers."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def to_yaml(config: Any) -> str:
    """Return a dataclass instance as YAML that `load` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def _read_yaml(path: str | Path) -> DictConfig:
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"configuration file {str(path)!r} does not exist; give YAML files and key=value pairs")
    try:
        content = OmegaConf.load(path)
    except Exception as error:  # the YAML parser's own family
        raise ConfigError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, DictConfig):
        raise ConfigError(
            f"{path}: the top level is a {type(content).__name__}; it must be a mapping of keys to values"
        )
    return content


def _check_keys(schema: Any, layer: Any, prefix: str) -> None:
    """Refuse unknown keys of structured nodes before OmegaConf does, to name the whole path and the nearest key."""
    kinds = {DictConfig: "mapping of keys to values", ListConfig: "list"}
    wanted, found = (next((told for kind, told in kinds.items() if isinstance(x, kind)), "") for x in (schema, layer))
    if wanted and found and wanted != found:
        raise ConfigError(f"{prefix.rstrip('.')} is a {found}; it must be a {wanted}")
    if not isinstance(schema, DictConfig) or not isinstance(layer, DictConfig):
        return
    if OmegaConf.get_type(schema) is dict:
        return
    for key in layer:
        if key not in schema:
            raise ConfigError(
                one_of(f"configuration key under {prefix or 'the top level'}", key, [str(k) for k in schema])
            )
        if not OmegaConf.is_missing(layer, key) and not (
            isinstance(key, str) and OmegaConf.is_interpolation(layer, key)
        ):
            _check_keys(schema.get(key, None), layer.get(key, None), f"{prefix}{key}.")
