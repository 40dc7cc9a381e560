"""Every recipe on the tiny model: trains two steps, answers every mode or says why not, and is the same after loading."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from wam_video.cli import train
from wam_video.cli.command import run
from wam_video.config import load
from wam_video.data.schema import EmbodimentSpec
from wam_video.errors import ConfigError
from wam_video.flow.modes import POLICY_PATHS
from wam_video.flow.scheduler import WAMScheduler
from wam_video.inference.checks import unanswered
from wam_video.inference.chunks import count_steps
from wam_video.inference.pipeline import WAMPipeline
from wam_video.models.masks import AttentionConfig
from wam_video.models.transformer import WAMTransformer
from wam_video.tensors import Mode
from wam_video.testing import fake_shards
from wam_video.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(file.stem for file in (ROOT / "configs/recipe").glob("*.yaml"))
WINDOW = {"num_context_frames": 1, "num_future_frames": 4, "context_stride_s": 0.2, "future_stride_s": 0.2}
SMALL = ["model.num_layers=2", "model.num_attention_heads=2", "model.attention_head_dim=8", "model.ffn_dim=32"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    body = EmbodimentSpec(name="arm", action_dim=2, state_dim=2, views=("front",), fps=5.0, action_rate=10.0)
    return fake_shards(tmp_path_factory.mktemp("data") / "toy", [body])


@pytest.mark.parametrize(("recipe", "steps"), [("lingbot_va", 3 + 10 + 3 + 10), ("x_wam", 10), ("dreamzero", 32)])
def test_a_policy_takes_the_steps_of_its_path(recipe: str, steps: int) -> None:
    config = load(TrainConfig, [ROOT / f"configs/recipe/{recipe}.yaml"])
    rule, path = AttentionConfig.read(config.model.get("attention")), WAMScheduler(**config.scheduler)
    prepared = SimpleNamespace(num_chunks=2 if rule.causal else 1)
    assert count_steps(rule, prepared, POLICY_PATHS[path.config["policy_path"]], path.path()) == steps


def answer(pipe: WAMPipeline, mode: Mode) -> list[np.ndarray]:
    video = np.random.default_rng(0).integers(0, 256, (1, 1 + 4 * (mode is Mode.INVERSE), 16, 16, 3), dtype=np.uint8)
    actions = np.full((8, 2), 0.1, np.float32) if mode is Mode.FORWARD else None
    out = pipe(mode, video, state=np.zeros(2, np.float32), actions=actions, num_inference_steps=2, generator=0)
    return [value for value in (out.actions, out.video) if value is not None]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_answers_and_comes_back(recipe: str, shards: Path, tmp_path: Path) -> None:
    config = [str(ROOT / "configs/model/tiny.yaml"), str(ROOT / f"configs/recipe/{recipe}.yaml")]
    window = [f"data.window.{key}={value}" for key, value in WINDOW.items()]
    run_settings = [
        "steps=2",
        "batch_size=2",
        "optim.warmup_steps=1",
        "eval_every=0",
        "trackers=[]",
        "codec.patch_size=8",
    ]
    data = [f"data.datasets.toy.path={shards}", "data.window.action_horizon=8", f"output_dir={tmp_path / 'run'}"]
    assert run(train.main, [*config, *window, *run_settings, *SMALL, *data]) == 0
    pipe = WAMPipeline.from_pretrained(tmp_path / "run" / "model")
    refused = unanswered(pipe.transformer.attention)
    assert refused == ({Mode.FORWARD, Mode.INVERSE} if recipe == "fastwam" else set())
    pipe.save_pretrained(tmp_path / "again")
    again = WAMPipeline.from_pretrained(tmp_path / "again")
    for mode in Mode:
        if mode in refused:
            with pytest.raises(ConfigError, match=f"mode is '{mode.value}', but"):
                answer(pipe, mode)
            continue
        first, second = answer(pipe, mode), answer(again, mode)
        assert len(first) == (2 if mode is Mode.JOINT else 1)
        assert all(np.isfinite(a).all() and np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_starts_from_a_wan_backbone(recipe: str, tmp_path: Path) -> None:
    wan = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=16,
        freq_dim=8,
        ffn_dim=32,
        num_layers=2,
    )
    wan.save_pretrained(tmp_path / "transformer")
    settings = load(TrainConfig, [ROOT / f"configs/recipe/{recipe}.yaml"]).model
    body = {"name": "arm", "action_dim": 2, "state_dim": 2}
    network = WAMTransformer.from_wan(tmp_path, embodiments=[body], **settings)
    assert all(value.isfinite().all() for value in network.parameters())
    assert torch.equal(network.blocks[1].ffn.net[2].weight, wan.blocks[1].ffn.net[2].weight)
    seen = network.attention.video_sees_actions and "action_coupling" not in settings
    assert network.config["action_coupling"] == ("gated" if seen else "full")
