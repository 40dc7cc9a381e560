"""Shards with latent actions: the actions of one more embodiment, with what the recording said kept beside them.

The videos are the same bytes. `actions.npy` holds the latents: row i is what happens from frame `i * step` to frame
`(i + 1) * step`, `step` frames being the model's interval. The recording's own arrays stand as `source.actions.npy`,
`source.state.npy` and `source.reward.npy`, which training does not read; they are for probes, and for the way back.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from wam_video.data.latents import OPTION as ENCODED
from wam_video.data.manifest import Manifest, SampleEntry, ShardEntry, load_manifest
from wam_video.data.reader import decode_clip, read_sample
from wam_video.data.rewrite import rewrite_shards
from wam_video.data.schema import EmbodimentSpec, check_name
from wam_video.errors import ConfigError, DataError
from wam_video.latent_actions.networks import LatentActionModel, LatentModelConfig
from wam_video.latent_actions.pairs import Body, inputs, ready

OPTION = "latent_actions"
"""Key of `Manifest.options` under which it is said by which model, and of what."""
_ARRAYS = ("actions.npy", "state.npy", "reward.npy")
_BATCH = 256


def default_name(config: LatentModelConfig) -> str:
    """Return what the embodiment of a model's latents is called."""
    return f"latent_{config.method}{config.dim}"


def latent_spec(config: LatentModelConfig, source: EmbodimentSpec, name: str = "") -> EmbodimentSpec:
    """Return the embodiment whose actions are latents of a source's video."""
    fps, step = source.fps, max(1, round(config.interval_s * source.fps))
    return EmbodimentSpec(
        name=check_name("--name", name or default_name(config)),
        action_dim=config.dim,
        state_dim=0,
        views=source.views,
        fps=fps,
        action_rate=fps / step,
        action_names=tuple(f"z{i}" for i in range(config.dim)),
        action_units=("normalised",) * config.dim,
        description=f"latent actions ({config.method}) of what happens within {config.interval_s:g} s of video",
    )


def label(data: Path, output: Path, model: LatentActionModel, digest: str, body: Body, name: str = "") -> Manifest:
    """Write shards of one body's clips with latent actions; samples of other bodies are left out.

    Args:
        data: Folder of shards with pixels.
        output: Folder to make; started again it goes on with the shards that are missing.
        model: From `files.load_model`.
        digest: The model's hash, for the manifest.
        body: Whose video, through which camera.
        name: Of the new embodiment; `latent_<method><dim>` by default.

    Raises:
        DataError: The shards hold latents of a codec or no clip as long as the interval, a sample can't be read, or the output
            can't be written.
        ConfigError: The model's interval is no whole number of stored frames, or a body of the source has that name.
    """
    manifest = load_manifest(data)
    for key, what in ((ENCODED, "latents of a codec, not pixels alone"), (OPTION, "latent actions already")):
        if key in manifest.options:
            raise DataError(f"{str(data)!r} holds {what}; give the shards that it was made from")
    spec, step = latent_spec(model.config, body.spec, name), body.step(model.config.interval_s)
    if spec.name in manifest.embodiments:
        raise ConfigError(f"--name is {spec.name!r}, a body of {str(data)!r} itself; give another, or leave it out")
    if not any(sample.num_frames > step for split in ("train", "val") for _, sample in body.samples(manifest, split)):
        raise DataError(
            f"{str(data)!r} holds no two frames of {body.spec.name!r} {model.config.interval_s:g} s apart; train a model of "
            "a shorter interval"
        )
    about = {
        "model": digest,
        "config": asdict(model.config),
        "view": body.view,
        "source": asdict(body.spec),
        "embodiment": spec.name,
    }

    def rewrite(shard: ShardEntry, sample: SampleEntry) -> tuple[SampleEntry, Mapping[str, bytes]] | None:
        if sample.embodiment != body.spec.name:
            return None
        members = read_sample(data, shard, sample)
        clip = decode_clip(members, views=[body.view], where=f"shard {shard.name!r}, sample {sample.key!r}")
        if body.view not in clip.video:
            raise DataError(
                f"shard {shard.name!r}, sample {sample.key!r} has no camera {body.view!r}; choose another --view"
            )
        latents = label_frames(model, clip.video[body.view], step)
        entry = replace(sample, embodiment=spec.name, num_actions=len(latents))
        return entry, _members(members, latents, spec, clip.info)

    return rewrite_shards(data, output, rewrite, {spec.name: spec}, {OPTION: about})


@torch.no_grad()
def label_frames(model: LatentActionModel, video: UInt8[np.ndarray, "f h w 3"], step: int) -> Float[np.ndarray, "n d"]:
    """Return the latents of a clip: row i of frames `i * step` and `(i + 1) * step`."""
    first, second = video[::step][:-1], video[::step][1:]
    rows = [
        model.label(ready(inputs(first[i : i + _BATCH], second[i : i + _BATCH], model.config)))
        for i in range(0, len(first), _BATCH)
    ]
    return torch.cat(rows).numpy().astype(np.float32) if rows else np.zeros((0, model.config.dim), np.float32)


def _members(
    members: Mapping[str, bytes], latents: Float[np.ndarray, "n d"], spec: EmbodimentSpec, info: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return a sample's members: videos as they are, latents as actions, the recording's arrays under `source.`."""
    made = {name: data for name, data in members.items() if name.endswith(".mp4") or name == "text.npy"}
    sink = io.BytesIO()
    np.lib.format.write_array(sink, np.ascontiguousarray(latents), version=(1, 0), allow_pickle=False)
    made["actions.npy"] = sink.getvalue()
    made |= {f"source.{name}": members[name] for name in _ARRAYS if name in members}
    source = {key: info.get(key) for key in ("embodiment", "action_rate", "num_actions")}
    told = {
        **info,
        "embodiment": spec.name,
        "action_rate": spec.action_rate,
        "num_actions": len(latents),
        "notes": sorted({*info.get("notes", ()), "latent_actions"}),
        "extra": {**info.get("extra", {}), "source": source},
    }
    made["json"] = (json.dumps(told, sort_keys=True, indent=1) + "\n").encode()
    return made
