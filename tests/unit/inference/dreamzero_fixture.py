"""A small DreamZero release in the real layout: the names are those of the published code, the numbers random."""

import itertools
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from tests.conftest import ROOT

PARITY = ROOT.parent / "shared" / "parity" / "dreamzero_i2v.safetensors"
TAG, RANK = "toy_arm", 4
Weights = dict[str, torch.Tensor]


def random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator) * 0.1


def text_encoder(width: int = 24, heads: int = 4, hidden: int = 32, layers: int = 2) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (384, width), "norm.weight": (width,)}
    for i in range(layers):
        at = f"blocks.{i}."
        shapes |= {f"{at}norm{n}.weight": (width,) for n in (1, 2)}
        shapes |= {f"{at}attn.{x}.weight": (width, width) for x in "qkvo"}
        shapes |= {f"{at}ffn.gate.0.weight": (hidden, width), f"{at}ffn.fc1.weight": (hidden, width)}
        shapes |= {f"{at}ffn.fc2.weight": (width, hidden), f"{at}pos_embedding.embedding.weight": (32, heads)}
    return shapes


def image_encoder(width: int = 1280, hidden: int = 16, layers: int = 2) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "log_scale": (),
        "visual.cls_embedding": (1, 1, width),
        "visual.pos_embedding": (1, 5, width),
        "visual.patch_embedding.weight": (width, 3, 14, 14),
        "visual.head": (width, 16),
    }
    for name in ("pre_norm", "post_norm"):
        shapes |= {f"visual.{name}.{leaf}": (width,) for leaf in ("weight", "bias")}
    for i in range(layers):
        for name, out, inp in (
            ("attn.to_qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.0", hidden, width),
            ("mlp.2", width, hidden),
        ):
            shapes[f"visual.transformer.{i}.{name}.weight"] = (out, inp)
            shapes[f"visual.transformer.{i}.{name}.bias"] = (out,)
        for n in (1, 2):
            shapes |= {f"visual.transformer.{i}.norm{n}.{leaf}": (width,) for leaf in ("weight", "bias")}
    return {f"model.{name}": shape for name, shape in shapes.items()}


def _conv(name: str, out: int, inp: int, *kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, inp, *kernel), f"{name}.bias": (out,)}


def _block(name: str, inp: int, out: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.residual.0.gamma": (inp, 1, 1, 1),
        f"{name}.residual.3.gamma": (out, 1, 1, 1),
    }
    shapes |= _conv(f"{name}.residual.2", out, inp, 3, 3, 3) | _conv(f"{name}.residual.6", out, out, 3, 3, 3)
    return shapes | (_conv(f"{name}.shortcut", out, inp, 1, 1, 1) if inp != out else {})


def _middle(half: str, width: int, ends: tuple[int, int], head: int) -> dict[str, tuple[int, ...]]:
    shapes = _block(f"{half}.middle.0", width, width) | _block(f"{half}.middle.2", width, width)
    shapes |= {f"{half}.middle.1.norm.gamma": (width, 1, 1)} | _conv(f"{half}.middle.1.to_qkv", 3 * width, width, 1, 1)
    shapes |= _conv(f"{half}.middle.1.proj", width, width, 1, 1) | _conv(f"{half}.conv1", ends[1], ends[0], 3, 3, 3)
    return shapes | {f"{half}.head.0.gamma": (head, 1, 1, 1)}


def vae(width: int = 4, latent: int = 16) -> dict[str, tuple[int, ...]]:
    """Wan2.1's."""
    shapes = _conv("conv1", 2 * latent, 2 * latent, 1, 1, 1) | _conv("conv2", latent, latent, 1, 1, 1)
    sizes, place = [width * m for m in (1, 1, 2, 4, 4)], 0
    shapes |= _middle("encoder", sizes[-1], (3, width), sizes[-1])
    shapes |= _conv("encoder.head.2", 2 * latent, sizes[-1], 3, 3, 3)
    for level, (inp, out) in enumerate(itertools.pairwise(sizes)):
        for start in (inp, out):
            shapes |= _block(f"encoder.downsamples.{place}", start, out)
            place += 1
        if level < 3:
            shapes |= _conv(f"encoder.downsamples.{place}.resample.1", out, out, 3, 3)
            if level > 0:
                shapes |= _conv(f"encoder.downsamples.{place}.time_conv", out, out, 3, 1, 1)
            place += 1
    sizes, place = [width * m for m in (4, 4, 4, 2, 1)], 0
    shapes |= _middle("decoder", sizes[0], (latent, sizes[0]), width) | _conv("decoder.head.2", 3, width, 3, 3, 3)
    for level, (inp, out) in enumerate(itertools.pairwise(sizes)):
        for index in range(3):
            shapes |= _block(f"decoder.upsamples.{place}", (inp // 2 if level else inp) if index == 0 else out, out)
            place += 1
        if level < 3:
            shapes |= _conv(f"decoder.upsamples.{place}.resample.1", out // 2, out, 3, 3)
            if level < 2:
                shapes |= _conv(f"decoder.upsamples.{place}.time_conv", 2 * out, out, 3, 1, 1)
            place += 1
    return shapes


def parity() -> tuple[dict[str, int], Weights]:
    """Sizes, and all tensors, of the stored reference."""
    with safe_open(PARITY, "pt") as file:
        sizes = {key: int(value) for key, value in file.metadata().items() if value.isdigit()}
        return sizes, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def release_weights() -> Weights:
    """Every tensor of a full release, under the names of the whole policy."""
    g = torch.Generator().manual_seed(0)
    _, tensors = parity()
    weights = {
        f"action_head.model.{n.removeprefix('weights.')}": v for n, v in tensors.items() if n.startswith("weights.")
    }
    for part, shapes in (("text_encoder", text_encoder()), ("image_encoder", image_encoder()), ("vae.model", vae())):
        weights |= {f"action_head.{part}.{name}": random(shape, g) for name, shape in shapes.items()}
    return weights


def lora_weights(names: list[str], full: Weights) -> Weights:
    """An adapter of some weights of the transformer (names without what they start with), and action maps of its own."""
    g = torch.Generator().manual_seed(1)
    start = "action_head.model.base_model.model."
    weights: Weights = {}
    for name in names:
        out, inp = full[f"action_head.model.{name}.weight"].shape
        weights[f"{start}{name}.lora_A.default.weight"] = random((RANK, inp), g)
        weights[f"{start}{name}.lora_B.default.weight"] = random((out, RANK), g)
    for name in (n for n in full if n.startswith("action_head.model.action_")):
        weights[name.replace("action_head.model.", start)] = full[name] + 1
    return weights


def statistics(dims: dict[str, int]) -> dict[str, Any]:
    return {
        key: {f: [i + 0.1 * j for j in range(dim)] for i, f in enumerate(("min", "q01", "mean", "q99", "max", "std"))}
        for key, dim in dims.items()
    }


def write_release(folder: Path, weights: Weights, *, pretrained: str | None = None, shards: int = 2) -> Path:
    """Write config.json, experiment_cfg/ and sharded safetensors."""
    sizes, _ = parity()
    network = {
        "_target_": "groot.vla.model.dreamzero.modules.no_such_module.CausalWanModel",
        **{"model_type": "i2v", "dim": sizes["dim"], "in_dim": 36, "ffn_dim": sizes["ffn"], "out_dim": 16},
        **{"freq_dim": sizes["freq_dim"], "eps": 1e-6, "num_heads": sizes["heads"], "num_layers": sizes["layers"]},
        **{"num_frame_per_block": sizes["frames_per_block"], "num_action_per_block": 24, "num_state_per_block": 1},
    }
    head = {
        "_target_": "os.system",
        "diffusion_model_cfg": network,
        **{"lora_rank": RANK, "lora_alpha": 2 * RANK, "num_frames": 33, "action_dim": 5, "max_state_dim": 7},
    }
    order = {
        "state_concat_order": ["state.grip", "state.joint"],
        "action_concat_order": ["action.joint", "action.grip"],
    }
    experiment = {
        "pretrained_model_path": pretrained,
        **{"relative_action": True, "relative_action_keys": ["joint"]},
        **{"image_resolution_height": 176, "image_resolution_width": 320},
        "transforms": {TAG: {"_target_": "os.system", "transforms": [{"_target_": "x"}, {"_target_": "y", **order}]}},
    }
    metadata = {
        TAG: {
            "statistics": {"state": statistics({"joint": 6, "grip": 1}), "action": statistics({"grip": 1, "joint": 4})},
            "modalities": {
                "video": {"front": {"resolution": [320, 180], "channels": 3, "fps": 15.0}},
                "state": {"joint": {"shape": [6]}, "grip": {"shape": [1]}},
                "action": {"grip": {"shape": [1]}, "joint": {"shape": [4]}},
            },
            "embodiment_tag": TAG,
        }
    }
    (folder / "experiment_cfg").mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "vla", "action_head_cfg": {"_target_": "x", "config": head}})
    )
    (folder / "experiment_cfg" / "conf.yaml").write_text(yaml.safe_dump(experiment))
    (folder / "experiment_cfg" / "metadata.json").write_text(json.dumps(metadata))
    names = sorted(weights)
    index: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: weights[name].contiguous() for name in names[shard::shards]}
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder
