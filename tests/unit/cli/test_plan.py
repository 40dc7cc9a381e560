"""`wam-video plan`: the figures are those of the model, the table says them, mistakes are one line."""

import json
from math import prod
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

from wam_video.cli.command import run
from wam_video.cli.plan import main
from wam_video.config import load
from wam_video.training.build import build_on_meta, count_parameters
from wam_video.training.config import TrainConfig
from wam_video.training.feed import find_embodiments

MODELS = Path(__file__).parents[3] / "configs" / "model"
TINY = str(MODELS / "tiny.yaml")
WAN = {"wan2.1-1.3b": (30, 12, 8960, 16), "wan2.2-5b": (30, 24, 14336, 48), "wan2.1-14b": (40, 40, 13824, 16)}
"""Layers, heads, feed-forward width and latent channels of the published networks."""


def test_the_plan_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "plan.json"
    assert main([TINY, "--grid", "4", "4", "4", "--device", "cpu", "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    config = load(TrainConfig, [TINY])
    assert figures["parameters"]["total"] == count_parameters(config, find_embodiments(config.data)[0])
    cells = prod(config.model["patch_size"])
    assert figures["sample"]["tokens"] == 4 * 4 * 4 // cells + 1 + 8 + config.model["num_registers"]
    assert figures["assumptions"]["efficiency"] == 0.4
    table = capsys.readouterr().out
    assert f"{figures['parameters']['total']:,}" in table
    assert "bound" in table and "latency" in table


def test_the_window_gives_the_grid_of_a_pixel_codec(tmp_path: Path) -> None:
    output = tmp_path / "plan.json"
    size = ["codec.patch_size=16", "data.window.height=64", "data.window.width=32"]
    assert main([TINY, *size, "--views", "2", "--output", str(output)]) == 0
    sample = json.loads(output.read_text())["sample"]
    assert (sample["grid"], sample["views"], sample["context"]) == ([4, 4, 2], 2, 2)


@pytest.mark.parametrize(("name", "sizes"), WAN.items())
def test_a_wan_model_resolves_without_a_download_and_has_wans_parameters(name: str, sizes: tuple[int, ...]) -> None:
    layers, heads, ffn_dim, channels = sizes
    config = load(TrainConfig, [MODELS / f"{name}.yaml"])
    network = build_on_meta(config, find_embodiments(config.data)[0])
    with torch.device("meta"):
        wan = WanTransformer3DModel(
            num_layers=layers, num_attention_heads=heads, ffn_dim=ffn_dim, in_channels=channels, out_channels=channels
        )
    ours = ("action_embedder.", "action_proj_out.", "state_embedder.", "no_state", "view_embedding", "registers")
    shapes = {key: p.shape for key, p in network.named_parameters() if not key.startswith(ours)}
    assert all(p.device == torch.device("meta") for p in network.parameters())
    assert sum(shape.numel() for shape in shapes.values()) == sum(p.numel() for p in wan.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "h1000"], "Did you mean 'h100'?"),
        (["--mode", "polcy"], "Did you mean 'policy'?"),
        (["--offload", "cpu", "--zero", "2"], "allowed: all, none, optimizer"),
        (["--efficiency", "40"], "a share of the peak"),
        (["--precision", "fp8", "--device", "a100"], "allowed: bf16"),
        (["--context", "9"], "at most the grid's 4"),
        (["model.num_layer=3"], "Did you mean 'num_layers'?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, [TINY, "--grid", "4", "4", "4", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_an_unknown_grid_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, [TINY]) == 2
    assert "give --grid" in capsys.readouterr().err


RECIPES = MODELS.parent / "recipe"


@pytest.mark.parametrize(
    ("recipe", "frames", "calls", "tokens", "pflop"),
    [
        (
            "dreamzero",
            9,
            16,
            1785,
            1.87,
        ),  # the release: 32 passes of some 58 TFLOP, 3 of which are the prompt's, each time
        ("dreamzero_flash", 9, 1, 1785, 0.107),
        ("fastwam", 3, 10, 33, 0.0274),
        ("lingbot_va", 9, 13, 1793, 1.52),
        ("x_wam", 3, 10, 2689, 0.736),
        ("uwm", 4, 10, 3545, 0.987),
    ],
)
def test_a_recipe_says_how_it_decides(
    recipe: str, frames: int, calls: int, tokens: int, pflop: float, tmp_path: Path
) -> None:
    output = tmp_path / "plan.json"
    sources = [str(MODELS / "wan2.1-14b.yaml"), str(RECIPES / f"{recipe}.yaml")]
    assert main([*sources, "--grid", str(frames), "44", "80", "--output", str(output)]) == 0
    decision = json.loads(output.read_text())["decision"]
    assert (decision["calls"], decision["queries"]) == (calls, tokens)
    assert decision["decision_flops"] == pytest.approx(pflop * 1e15, rel=0.01)
