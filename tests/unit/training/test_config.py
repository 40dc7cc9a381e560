from pathlib import Path

import pytest

from wam_video.config import load, to_yaml
from wam_video.errors import ConfigError
from wam_video.training.config import EMAConfig, OptimConfig, TrainConfig


def test_a_misspelt_model_key_is_refused_with_the_right_one() -> None:
    with pytest.raises(ConfigError, match=r"num_layer'.*Did you mean 'num_layers'"):
        load(TrainConfig, ["model.num_layer=3"])


@pytest.mark.parametrize("key", ["embodiments", "num_views", "in_channels", "text_dim"])
def test_a_model_key_that_follows_from_elsewhere_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"model.{key} can't be set"):
        TrainConfig(model={key: 3})


def test_a_misspelt_scheduler_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'solver'"):
        TrainConfig(scheduler={"solvr": "heun"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("steps=0", "steps is 0"),
        ("optim.schedule=cosin", "Did you mean 'cosine'"),
        ("mixed_precision=fp16", "allowed: auto, bf16, no"),
        ("trackers=[tensorbord]", "Did you mean 'tensorboard'"),
        ("optim.warmup_steps=5000", "fewer than steps"),
        ("codec.kind=wan", "codec.path is not set"),
        ("model.patch_size=[1,2]", "three numbers"),
        ("batch_sise=3", "Did you mean 'batch_size'"),
        ("optim.lr=.nan", "optim.lr is nan; allowed: above 0, finite"),
        ("optim.eps=-1e-8", "optim.eps is -1e-08; allowed: above 0"),
        ("optim.betas=[0.9,2]", r"optim.betas is \[0.9, 2.0\]; allowed: two numbers from 0 to below 1"),
        ("codec.patch_size=0", "codec.patch_size is 0"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(change: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(TrainConfig, [change])


def test_the_resolved_yaml_gives_the_same_configuration(tmp_path: Path) -> None:
    config = load(
        TrainConfig, ["model.num_layers=3", "density.edges.forward=0.2", "data.datasets.a.path=x", "steps=7000"]
    )
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert load(TrainConfig, [tmp_path / "resolved.yaml"]) == config


def test_averages_and_clipping_can_be_switched_off() -> None:
    assert EMAConfig(decay=0).decay == 0
    assert OptimConfig(clip_norm=0).clip_norm == 0
