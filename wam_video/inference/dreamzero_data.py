"""What a DreamZero release knows of bodies: dims, rates and statistics, from `experiment_cfg`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wam_video.data.processor import WAMProcessor
from wam_video.data.schema import EmbodimentSpec
from wam_video.errors import CheckpointError
from wam_video.inference.dreamzero import METADATA, Release

_FIELDS = ("mean", "std", "min", "max", "q01", "q99")
_LATENT_FRAMES = 4
"""Frames of a Wan latent."""
_TILED = "all cameras on one canvas, as DreamZero tiles them"


def release_bodies(release: Release) -> list[dict[str, Any]]:
    """Return the bodies of a release: our spec's fields, `stats`, and `latent_rate`: latent frames a second.

    Raises:
        CheckpointError: metadata.json lacks something, or says other widths than the network has.
    """
    if not release.metadata:
        raise CheckpointError(f"{release.folder / METADATA} names no embodiment; the statistics are part of the model")
    return [_body(release, tag, facts) for tag, facts in release.metadata.items()]


def _body(release: Release, tag: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    where = f"{release.folder / METADATA}, embodiment {tag!r}"
    try:
        statistics, modalities = facts["statistics"], facts["modalities"]
        fps = float(next(iter(modalities["video"].values()))["fps"])
        keys = {what: _order(release.experiment, tag, what, modalities[what]) for what in ("state", "action")}
        stats = {what: _joined(statistics[what], keys[what]) for what in keys}
    except (KeyError, TypeError, StopIteration, AttributeError) as error:
        raise CheckpointError(
            f"{where}: {error.args[0] if error.args else 'nothing'!r} is missing; fetch it again"
        ) from error
    network = release.network
    dims = {what: len(stats[what]["mean"]) for what in stats}
    for what, name in (("action", "action_dim"), ("state", "max_state_dim")):
        most = network.get(name, release.head.get(name))
        if most is not None and dims[what] > int(most):
            raise CheckpointError(
                f"{where}: {what} has {dims[what]} dimensions, the network {most}; they are of two models"
            )
    frames = _LATENT_FRAMES * int(network.get("num_frame_per_block", release.head.get("num_frame_per_block", 2)))
    actions = int(network.get("num_action_per_block", release.head.get("action_horizon", 24)))
    stride = actions / frames / fps
    relative = relative_keys(release)
    names = [
        f"{key}.{i}{' relative to the state' if key in relative else ''}"
        for key in keys["action"]
        for i in range(len(statistics["action"][key]["mean"]))
    ]
    return {
        "name": tag,
        "action_dim": dims["action"],
        "state_dim": dims["state"],
        "views": ["tiled"],
        "fps": 1 / stride,
        "action_rate": fps,
        "action_names": names,
        "state_names": [f"{key}.{i}" for key in keys["state"] for i in range(len(statistics["state"][key]["mean"]))],
        "description": f"{_TILED}; actions of {', '.join(sorted(relative)) or 'none'} are relative to the state at the chunk's start",
        "stats": {"actions": stats["action"], "state": stats["state"]},
        "latent_rate": 1 / stride / _LATENT_FRAMES,
        "stride": stride,
        "frames": frames,
        "actions": actions,
    }


def _joined(statistics: Mapping[str, Mapping[str, Sequence[float]]], keys: Sequence[str]) -> dict[str, Any]:
    return {name: [float(x) for key in keys for x in statistics[key][name]] for name in _FIELDS} | {"count": 0}


def _order(experiment: Mapping[str, Any], tag: str, what: str, known: Mapping[str, Any]) -> list[str]:
    """Return the keys of a modality in the order in which the release concatenates them: conf.yaml's, for this body."""
    listed = _find(experiment, f"transform_{tag}") or _find((experiment.get("transforms") or {}), tag) or {}
    for order in _all(listed, f"{what}_concat_order"):
        if isinstance(order, list):
            keys = [str(key).removeprefix(f"{what}.") for key in order]
            if missing := [key for key in keys if key not in known]:
                raise CheckpointError(f"conf.yaml lists {what} {missing[0]!r} of {tag!r}, which metadata.json lacks")
            return keys
    modality = (_find(experiment, f"modality_config_{tag}") or {}).get(what, {})
    if isinstance(modality, Mapping) and isinstance(modality.get("modality_keys"), list):
        return [str(key).removeprefix(f"{what}.") for key in modality["modality_keys"]]
    if len(known) > 1:
        raise CheckpointError(
            f"conf.yaml does not say in which order {what} of {tag!r} is put together ({', '.join(known)}); fetch it again"
        )
    return list(known)


def relative_keys(release: Release) -> list[str]:
    """Return the actions that the release gives relative to the state."""
    return (
        list(release.experiment.get("relative_action_keys") or []) if release.experiment.get("relative_action") else []
    )


def _find(mapping: Any, key: str) -> Any:
    return mapping.get(key) if isinstance(mapping, Mapping) else None


def _all(node: Any, key: str) -> Iterator[Any]:
    """Yield what is under a key anywhere in nested mappings and lists; `_target_`s are words like others."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name == key:
                yield value
            else:
                yield from _all(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from _all(value, key)


def release_processor(release: Release, bodies: Sequence[Mapping[str, Any]]) -> WAMProcessor:
    """Return the processor of a release: its statistics, hashed, and its window."""
    first = bodies[0]
    frames = int(release.head.get("num_frames", first["frames"] + 1)) - 1
    frames -= frames % first["frames"]
    size = release.experiment
    height, width = size.get("image_resolution_height"), size.get("image_resolution_width")
    window: dict[str, Any] = {
        "num_context_frames": 1,
        "num_future_frames": max(frames, first["frames"]),
        "context_stride_s": first["stride"],
        "future_stride_s": first["stride"],
        "action_horizon": max(frames, first["frames"]) // first["frames"] * first["actions"],
    }
    if isinstance(height, int) and isinstance(width, int):  # of a camera; the canvas is two by two
        window |= {"height": 2 * height, "width": 2 * width}
    fields = EmbodimentSpec.__dataclass_fields__
    specs = [{key: value for key, value in body.items() if key in fields} for body in bodies]
    return WAMProcessor(specs, {body["name"]: body["stats"] for body in bodies}, "quantile", window)
