"""Diffusion Policy's network: what it reads, what it is made of, and that it is not spoiled by its own sizes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from wam_video.errors import ConfigError
from wam_video.models.diffusion_policy import (
    DiffusionPolicyTransformer,
    ddpm_scheduler,
    repeat_missing,
    spatial_softmax,
)

SIZES: dict[str, Any] = {
    **{"action_dim": 3, "state_dim": 2, "action_horizon": 5, "num_observations": 2, "num_views": 2, "text_dim": 6},
    **{"dim": 16, "num_layers": 2, "num_attention_heads": 2, "backbone_widths": [16, 16], "num_keypoints": 4},
}


def network(**changes: Any) -> DiffusionPolicyTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DiffusionPolicyTransformer(**(SIZES | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # as drawn, what is seen hardly counts
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


def inputs(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    found = {
        "pixels": torch.rand(2, 2, 3, 2, 24, 24, generator=g) * 2 - 1,
        "state": torch.randn(2, 2, generator=g),
        "text": torch.randn(2, 4, 6, generator=g),
        "actions": torch.randn(2, 5, 3, generator=g),
        "steps": torch.tensor([7, 80]),
    }
    return found | changes


def run(model: DiffusionPolicyTransformer, x: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(x["actions"], x["steps"], model.observe(x["pixels"], x["state"], x["text"]))


@torch.no_grad()
def test_every_input_is_heard() -> None:
    model, base = network(), inputs()
    before = run(model, base)
    assert before.shape == (2, 5, 3)
    for name in ("pixels", "state", "text", "steps"):
        changed = base[name] + (1 if name == "steps" else torch.rand(base[name].shape) * 0.5)
        assert not torch.allclose(run(model, inputs(**{name: changed})), before, atol=1e-6), name


@torch.no_grad()
def test_each_picture_is_heard_and_each_view_has_eyes_of_its_own() -> None:
    model, base = network(), inputs()
    before = run(model, base)
    for view in range(2):
        for frame in range(2):
            pixels = base["pixels"].clone()
            pixels[:, view, :, frame] = pixels[:, view, :, frame].flip(-1)
            assert not torch.allclose(run(model, inputs(pixels=pixels)), before, atol=1e-6)
    swapped = run(model, inputs(pixels=base["pixels"].flip(1)))
    assert not torch.allclose(swapped, before, atol=1e-6)


@torch.no_grad()
def test_an_action_does_not_see_later_ones() -> None:
    model, base = network(), inputs()
    actions = base["actions"].clone()
    actions[:, 3] += 1
    moved = (run(model, inputs(actions=actions)) - run(model, base)).abs().amax(dim=(0, 2)) > 1e-6
    assert moved.tolist() == [False, False, False, True, True]


def test_the_published_network_is_a_resnet_18_for_each_view_without_batchnorm() -> None:
    with torch.device("meta"):
        model = DiffusionPolicyTransformer(action_dim=2, state_dim=2, action_horizon=16, num_observations=2)
    kinds = [type(module) for module in model.modules()]
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(nn.GroupNorm) == 20
    assert (
        sum(p.numel() for p in model.views[0].backbone.parameters()) == 11_176_512
    )  # torchvision's, less its classifier
    assert len(model.decoder.layers) == 8 and model.decoder.layers[0].self_attn.num_heads == 4
    assert model.decoder.layers[0].dropout.p == 0.3


def test_the_diffusion_is_the_published_one() -> None:
    config = ddpm_scheduler().config
    assert (config.num_train_timesteps, config.beta_schedule) == (100, "squaredcos_cap_v2")
    assert (config.prediction_type, config.clip_sample, config.variance_type) == ("epsilon", True, "fixed_small")


def test_spatial_softmax_finds_a_peak() -> None:
    maps = torch.zeros(1, 2, 3, 5)
    maps[0, 0, 2, 4] = maps[0, 1, 1, 0] = 100.0
    assert torch.allclose(spatial_softmax(maps)[0], torch.tensor([[1.0, 1.0], [-1.0, 0.0]]))


@torch.no_grad()
def test_a_picture_is_cropped_anew_in_training_and_in_the_middle_else() -> None:
    model = network(dropout=0.0)
    x = inputs()
    assert torch.equal(run(model, x), run(model, x))
    model.train()
    torch.manual_seed(0)
    several = [run(model, x) for _ in range(3)]
    assert not torch.equal(several[0], several[1]) or not torch.equal(several[1], several[2])
    whole = network(dropout=0.0, crop=1.0).train()
    assert torch.equal(run(whole, x), run(whole, x))


def test_frames_before_the_start_are_the_first_one_there_is() -> None:
    pixels = torch.arange(3.0).reshape(1, 1, 1, 3, 1, 1).expand(2, 1, 3, 3, 2, 2)
    filled = repeat_missing(pixels, torch.tensor([[False, False, True], [False, True, True]]))
    assert filled[:, 0, 0, :, 0, 0].tolist() == [[2, 2, 2], [1, 1, 2]]


def test_it_comes_back_from_its_folder_to_the_bit(tmp_path: Path) -> None:
    model = network()
    model.save_pretrained(tmp_path)
    again = DiffusionPolicyTransformer.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(run(again, inputs()), run(model, inputs()))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"crop": 0.0}, "crop is 0.0; allowed: above 0 to 1"),
        ({"backbone_widths": [20]}, "multiple of 16"),
        ({"dim": 15}, "width 15 and 2 heads"),
        ({"num_layers": 0}, "0 layers"),
    ],
)
def test_sizes_that_can_not_be_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        network(**change)


def test_pictures_that_leave_one_cell_are_refused() -> None:
    model = network()
    small = inputs(pixels=torch.zeros(2, 2, 3, 2, 9, 24))
    with pytest.raises(ConfigError, match=rf"frames are 9x24; .* at least {model.least_side} pixels"):
        run(model, small)
    side = model.least_side
    maps = model.views[0].backbone(torch.zeros(1, 3, *[round(side * 0.9)] * 2)).last_hidden_state
    assert min(maps.shape[2:]) > 1
