import pytest
import torch
from torch import nn

from tests.unit.training.fakes import MODEL
from wam_video.models.transformer import WAMTransformer
from wam_video.training.config import EMAConfig, OptimConfig
from wam_video.training.ema import EMA
from wam_video.training.engines.weights import WholeWeights
from wam_video.training.optim import build_optimizer, decays, learning_rate


def test_warm_up_is_linear_and_ends_at_the_full_rate() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(config, step, 100) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("schedule", "half", "last"), [("constant", 1.0, 1.0), ("cosine", 0.55, 0.1), ("wsd", 1.0, 0.1)]
)
def test_schedules_pass_through_their_known_points(schedule: str, half: float, last: float) -> None:
    config = OptimConfig(lr=1.0, warmup_steps=0, schedule=schedule, min_lr_ratio=0.1, decay_share=0.2)
    assert learning_rate(config, 50, 100) == pytest.approx(half)
    assert learning_rate(config, 100, 100) == pytest.approx(last)


def test_wsd_comes_down_in_the_last_share_of_the_steps() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=0, schedule="wsd", min_lr_ratio=0.0, decay_share=0.2)
    assert [learning_rate(config, step, 100) for step in (79, 80, 90)] == pytest.approx([1.0, 1.0, 0.5])


def test_only_matrices_of_the_trunk_decay() -> None:
    bodies = [{"name": "a", "action_dim": 2, "state_dim": 2}]
    network = WAMTransformer(**MODEL | {"embodiments": bodies, "in_channels": 12})
    decayed = {name for name, p in network.named_parameters() if decays(name, p)}
    assert "proj_out.weight" in decayed
    assert "patch_embedding.weight" in decayed
    assert any("attn1" in name for name in decayed)
    for part in ("bias", "norm", "table", "registers", "action_embedder", "state_embedder", "action_proj_out", "view_"):
        assert not any(part in name for name in decayed), part
    groups = build_optimizer(OptimConfig(), network).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


def test_the_average_follows_its_closed_form() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    ema = EMA(EMAConfig(decay=0.9, warmup=False), WholeWeights(module.named_parameters()))
    nn.init.ones_(module.weight)
    for step in range(5):
        ema.update(step)
    assert ema.state_dict()["weight"].item() == pytest.approx(1 - 0.9**5)


def test_the_average_warms_up() -> None:
    ema = EMA(EMAConfig(decay=0.99), WholeWeights(nn.Linear(1, 1).named_parameters()))
    assert ema.decay(0) == pytest.approx(0.1)
    assert ema.decay(10_000) == 0.99


def test_the_average_is_applied_and_the_weights_come_back_to_the_bit() -> None:
    module = nn.Linear(3, 3)
    ema = EMA(EMAConfig(), WholeWeights(module.named_parameters()))
    before = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.mul_(1.1)
    trained = module.weight.detach().clone()
    with ema.applied():
        assert torch.equal(module.weight, before)
    assert torch.equal(module.weight, trained)
