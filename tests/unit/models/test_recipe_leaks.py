"""For every recipe and mode: perturbing a group of tokens moves exactly the outputs that the recipe says, the others not a bit."""

from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from tests.unit.models.test_kv_cache import (
    BODIES,
    CONTEXT,
    PER,
    SIZE,
    B,
    C,
    V,
    forced,
    observe,
    predict,
    spans,
    start,
    window,
)
from tests.unit.models.test_leaks import REACHES, perturbed
from wam_video.config import load
from wam_video.flow.modes import MODES, POLICY_PATHS, ModeSpec, Role
from wam_video.models.transformer import WAMTransformer
from wam_video.tensors import Mode
from wam_video.training.config import TrainConfig

ALL = dict.fromkeys(("context", "video1", "actions1", "state1"), "V1 A1")
RULES = {
    "uwm": ALL,
    "action_only": ALL,
    "inverse_only": ALL,
    "x_wam": ALL,
    "fastwam": {"context": "V1 A1", "video1": "V1", "actions1": "A1", "state1": "A1"},
    "dreamzero": REACHES["dreamzero"][1],
    "dreamzero_flash": REACHES["dreamzero"][1],
    "lingbot_va": REACHES["lingbot_va"][1] | {"video1": "V1 A1", "actions3": "V3 A3", "state1": "V1 A1"},
}
"""Recipe -> group of tokens -> the videos and actions (of each chunk) that it must move; no others may move."""
CLOCKS = {Role.GIVEN: 0.0, Role.GENERATE: 0.6, Role.UNKNOWN: 1.0}
PATHS = {mode.value: spec for mode, spec in MODES.items()} | {"policy, absent": POLICY_PATHS["absent"]}


def network(recipe: str) -> WAMTransformer:
    settings = load(TrainConfig, [ROOT / "configs/model/tiny.yaml", ROOT / f"configs/recipe/{recipe}.yaml"]).model
    torch.manual_seed(0)
    small = dict(num_layers=2, num_attention_heads=2, attention_head_dim=12, ffn_dim=48, text_dim=16, in_channels=C)
    model = WAMTransformer(embodiments=BODIES, num_views=V, **{**settings, **small, "patch_size": (1, 2, 2)})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def clocks(spec: ModeSpec, frames: int, actions: int) -> dict[str, torch.Tensor]:
    future = torch.full((B, frames - CONTEXT), CLOCKS.get(spec.video, 1.0))
    t_video = torch.cat([torch.zeros(B, CONTEXT), future], dim=1)
    return {"t_video": t_video, "t_action": torch.full((B, actions), CLOCKS[spec.actions])}


def outputs(model: WAMTransformer, w: dict[str, Any], spec: ModeSpec, chunks: int) -> dict[str, torch.Tensor]:
    times = clocks(spec, w["noisy"].shape[3], w["actions"].shape[1])
    changes: dict[str, Any] = dict(times) if model.attention.causal else times | {"history": None}
    if spec.video is Role.ABSENT:
        past = slice(0, CONTEXT)
        changes |= {"latents": w["clean"][:, :, :, past], "t_video": times["t_video"][:, past]}
        changes["latent_times"] = w["latent_times"][:, past]
    made = forced(model, w, **changes)
    found = {}
    for chunk in range(1, chunks + 1):
        frames, actions = spans(chunk)
        if spec.video is not Role.ABSENT:
            found[f"V{chunk}"] = made.video[:, :, :, frames]
        found[f"A{chunk}"] = made.actions[:, actions]
    return found


@torch.no_grad()
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("recipe", RULES)
def test_a_group_reaches_what_the_recipe_says(recipe: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, spec = network(recipe), PATHS[path]
    chunks = 3 if model.attention.causal else 1
    if spec.video is Role.ABSENT and model.attention.causal:
        pytest.skip(
            "a causal network is asked with its last chunk's frames left out: tests/unit/models/test_kv_cache.py"
        )
    module = forced.__globals__
    for name, value in (("CHUNKS", chunks), ("FRAMES", CONTEXT + SIZE * chunks), ("ACTIONS", PER * chunks)):
        monkeypatch.setitem(module, name, value)
    w = window()
    before, moved = outputs(model, w, spec, chunks), {}
    for group in RULES[recipe]:
        after = outputs(model, perturbed(w, group), spec, chunks)
        moved[group] = " ".join(name for name in before if not torch.equal(before[name], after[name]))
    expected = {
        group: " ".join(name for name in reach.split() if name in before)
        for group, reach in RULES[recipe].items()
        if not (spec.video is Role.ABSENT and group.startswith("video"))
    }
    assert {group: moved[group] for group in expected} == expected


def test_every_recipe_is_in_the_table() -> None:
    assert {file.stem for file in (ROOT / "configs/recipe").glob("*.yaml")} == set(RULES)
    assert set(PATHS) >= {mode.value for mode in Mode}


@torch.no_grad()
@pytest.mark.parametrize("recipe", ["dreamzero", "dreamzero_flash", "lingbot_va"])
def test_a_causal_recipe_says_chunk_by_chunk_what_it_says_all_at_once(recipe: str) -> None:
    model, w = network(recipe), window()
    whole, cache = forced(model, w), start(model, w)
    for chunk in range(1, w["state"].shape[1] + 1):
        cache = observe(model, cache, w, chunk - 1)
        out, (frames, actions) = predict(model, cache, w, chunk), spans(chunk)
        torch.testing.assert_close(out.video, whole.video[:, :, :, frames], atol=1e-5, rtol=0)
        torch.testing.assert_close(out.actions, whole.actions[:, actions], atol=1e-5, rtol=0)
