"""The baselines in a training run: what each one trains, on what it is trained, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.inference.tiny_policy import SIZES, one_body, windows
from tests.unit.training.fakes import FakeFeed, differing, tiny_config, tiny_trainer, weights
from wam_video.config import load
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.windows import WindowConfig
from wam_video.errors import ConfigError
from wam_video.flow.density import DensityConfig
from wam_video.flow.loss import LossConfig, loss_terms
from wam_video.models.diffusion_policy import ddpm_scheduler, repeat_missing
from wam_video.tensors import Batch, Mode, Prediction
from wam_video.training import callbacks as hooks
from wam_video.training.build import build_on_meta
from wam_video.training.config import EMAConfig, OptimConfig, TrainConfig
from wam_video.training.ema import EMA
from wam_video.training.engines.weights import WholeWeights
from wam_video.training.metrics import JsonLines, region_means, region_sums
from wam_video.training.optim import build_optimizer
from wam_video.training.sample import is_video_absent
from wam_video.training.trainer import Trainer
from wam_video.training.validate import trained_modes, validation_losses

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


class OneBody(FakeFeed):
    """Windows of one body, large enough for a ResNet."""

    def __init__(self) -> None:
        self._processor = one_body()
        self._rows = windows(self._processor, 32)
        body = EmbodimentSpec.from_dict(self._processor.config["embodiments"][0])
        self.embodiments = {body.name: body}


def policy_config(folder: Path, **changes: Any) -> TrainConfig:
    values = {
        "network": "diffusion_policy",
        "model": SIZES,
        "density": DensityConfig(absent_video=1.0),
        "ema": EMAConfig(power=0.75),
        "normalization": "min_max",
    }
    return tiny_config(folder, **(values | changes))


def policy_trainer(folder: Path, **changes: Any) -> Trainer:
    return tiny_trainer(policy_config(folder, **changes), OneBody())


def recipe(name: str) -> TrainConfig:
    return load(TrainConfig, [ROOT / "configs/model/tiny.yaml", ROOT / f"configs/recipe/{name}.yaml"])


def test_the_loss_of_diffusion_policy_falls_on_a_few_windows(tmp_path: Path) -> None:
    still = SIZES | {"dropout": 0.0, "crop": 1.0, "dim": 32}
    optim = OptimConfig(lr=3e-3, warmup_steps=5, schedule="constant")
    trainer = policy_trainer(tmp_path, model=still, steps=80, batch_size=32, optim=optim)
    tracker = JsonLines(tmp_path / "metrics.jsonl", from_step=0)
    trainer.run([hooks.LogCallback(20), hooks.ValidateCallback(80)], [tracker])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss_policy"] for line in lines if "loss_policy" in line]
    assert losses[-1] < 0.6 * losses[0]
    assert "loss_video" not in lines[0]
    (check,) = [line for line in lines if "val_policy" in line]
    assert {key for key in check if key.startswith("val_")} == {"val_policy"}


def test_the_loss_is_the_error_of_the_noise_at_the_step_that_was_drawn(tmp_path: Path) -> None:
    trainer = policy_trainer(tmp_path)
    module = trainer.engine.module.eval()
    batch = trainer._feed.batch([3, 4, 5])
    sample = trainer.sampler(batch, CPU, absent_video=True)
    with torch.no_grad():
        video, actions = module(sample)
        clean, noise = sample.noisy.clean.actions, sample.noisy.noise.actions
        step = (sample.t_action * 100).long()
        noisy = ddpm_scheduler().add_noise(clean, noise, step)
        pixels = batch.video[:, :, :, :2].float() / 127.5 - 1
        network = trainer.parts.transformer
        found = network(noisy, step, network.observe(pixels, sample.state, sample.text_embeds))
    terms = loss_terms(LossConfig(), Prediction(video=video, actions=actions), sample.noisy, ("velocity",) * 2, 2)
    assert video is None and len(step.unique()) > 1
    torch.testing.assert_close(terms.action_sum.sum(), ((found - noise) ** 2 * batch.action_mask).sum())


def test_the_future_does_not_reach_diffusion_policy_in_training(tmp_path: Path) -> None:
    trainer = policy_trainer(tmp_path)
    module = trainer.engine.module.eval()
    batch = trainer._feed.batch([0, 1])
    future = batch.video.clone()
    future[:, :, :, 2:] = 255 - future[:, :, :, 2:]
    past = batch.video.clone()
    past[:, :, :, 1] = 255 - past[:, :, :, 1]

    def predict(changed: Batch) -> torch.Tensor:
        with torch.no_grad():
            return module(trainer.sampler(changed, CPU, absent_video=True))[1]

    before = predict(batch)
    assert torch.equal(predict(replace(batch, video=future)), before)
    assert not torch.equal(predict(replace(batch, video=past)), before)


def test_frames_that_were_not_recorded_are_the_next_one_in_training_too(tmp_path: Path) -> None:
    trainer = policy_trainer(tmp_path)
    module = trainer.engine.module.eval()
    batch = trainer._feed.batch([0, 1])
    mask = batch.frame_mask.clone()
    mask[:, :, 0] = False
    twice = repeat_missing(batch.video, mask[:, 0])
    with torch.no_grad():
        missing = module(trainer.sampler(replace(batch, frame_mask=mask), CPU, absent_video=True))[1]
        repeated = module(trainer.sampler(replace(batch, video=twice), CPU, absent_video=True))[1]
    torch.testing.assert_close(missing, repeated, atol=1e-6, rtol=0)


def test_a_resumed_run_crops_and_drops_the_same(tmp_path: Path) -> None:
    whole = policy_trainer(tmp_path / "whole", steps=4)
    whole.run([])
    policy_trainer(tmp_path / "two", steps=3, optim=whole.config.optim).run([hooks.CheckpointCallback(2)])
    torch.manual_seed(99)
    resumed = policy_trainer(tmp_path / "two", steps=4)
    assert resumed.start_step == 3
    resumed.run([])
    assert not differing(weights(whole), weights(resumed))


def test_the_average_warms_up_by_a_power() -> None:
    average = EMA(EMAConfig(decay=0.99, power=0.75), WholeWeights(torch.nn.Linear(1, 1).named_parameters()))
    assert [average.decay(step) for step in (0, 1)] == [0, 0]
    assert average.decay(16) == pytest.approx(1 - 16**-0.75)
    assert average.decay(10_000) == 0.99


def test_the_eyes_have_a_weight_decay_of_their_own(tmp_path: Path) -> None:
    module = policy_trainer(tmp_path).engine.module
    config = OptimConfig(weight_decay=1e-3, decays={"views.*": 1e-6})
    rates = {
        p: group["weight_decay"] for group in build_optimizer(config, module).param_groups for p in group["params"]
    }
    found = {name: rates[p] for name, p in module.named_parameters()}
    assert found["transformer.views.0.keypoints.weight"] == 1e-6
    assert found["transformer.decoder.layers.0.linear1.weight"] == 1e-3
    assert {found[f"transformer.{name}"] for name in ("position_embedding", "memory_position_embedding")} == {0}
    assert found["transformer.norm_out.weight"] == found["transformer.proj_out.bias"] == 0
    with pytest.raises(ConfigError, match=r"optim.decays key is 'eyes.\*'"):
        build_optimizer(OptimConfig(decays={"eyes.*": 0.0}), module)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("density.absent_video=0.5", r"density.absent_video is 0.5, .*allowed: 1.0"),
        ("density.start=0.5", r"density.start is 0.5"),
        ("loss.action_weight=2", r"loss.action_weight is 2"),
        ("adapter.kind=lora", r"adapter.kind is 'lora'"),
        ("init_from=x", r"init_from is 'x'"),
        ("normalization=mean_std", r"normalization is 'mean_std'.*clipped.*allowed: 'min_max'"),
        ("optim.name=muon", r"optim.name is 'muon'.*allowed: 'adamw'"),
        ("scheduler.solver=heun", r"scheduler is .*by DDPM"),
        ("model.num_layer=3", r"Did you mean 'num_layers'"),
        ("model.action_dim=3", r"model.action_dim can't be set"),
        ("network=diffusion_polisy", r"Did you mean 'diffusion_policy'"),
    ],
)
def test_settings_that_diffusion_policy_has_no_use_for_are_refused(change: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(TrainConfig, ["steps=2000", ROOT / "configs/model/diffusion_policy.yaml", change])


def test_several_bodies_and_a_wam_tool_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exactly one body that acts"):
        tiny_trainer(policy_config(tmp_path), FakeFeed())
    with pytest.raises(ConfigError, match="network is 'diffusion_policy'; allowed here: 'wam'"):
        build_on_meta(policy_config(tmp_path), OneBody().embodiments)


def test_action_only_never_sees_a_future_frame(tmp_path: Path) -> None:
    config = recipe("action_only")
    assert config.scheduler["policy_path"] == "absent"
    trainer = tiny_trainer(tiny_config(tmp_path, density=config.density, loss=config.loss))
    for step in range(50):
        assert is_video_absent(config.density, 0, step)
    sample = trainer.sampler(trainer._feed.batch([0, 1, 2, 3]), CPU, absent_video=True)
    assert sample.noisy.x_t.video.shape[3] == sample.num_context
    assert sample.video_count.sum() == 0 and sample.action_count.sum() > 0
    assert only_regions(trainer, sample) == {"loss_action", "loss_policy"}
    assert set(validation_losses(trainer)) == {"val_policy"}


def test_inverse_only_is_given_the_future_and_loses_on_actions_alone(tmp_path: Path) -> None:
    config = recipe("inverse_only")
    trainer = tiny_trainer(tiny_config(tmp_path, density=config.density, loss=config.loss))
    batch = trainer._feed.batch(list(range(16)))
    assert not any(is_video_absent(config.density, 0, step) for step in range(50))
    sample = trainer.sampler(batch, CPU)
    assert torch.equal(sample.noisy.x_t.video, sample.noisy.clean.video)
    assert sample.video_count.sum() == 0 and sample.action_count.sum() > 0
    assert only_regions(trainer, sample) == {"loss_action", "loss_inverse"}
    assert set(validation_losses(trainer)) == {"val_inverse"}


def only_regions(trainer: Trainer, sample: Any) -> set[str]:
    with torch.no_grad():
        video, actions = trainer.engine.module(sample)
    predicted = Prediction(video=video, actions=actions)
    terms = loss_terms(trainer.config.loss, predicted, sample.noisy, trainer.prediction_kinds, sample.num_context)
    return set(region_means(region_sums(sample, terms)))


@pytest.mark.parametrize(
    ("density", "modes"),
    [
        (DensityConfig(), set(Mode)),
        (DensityConfig(edges={"inverse": 0.5}), set(Mode)),
        (DensityConfig(edges={"inverse": 0.5, "policy": 0.5}), {Mode.POLICY, Mode.INVERSE}),
        (DensityConfig(absent_video=1.0), {Mode.POLICY}),
    ],
)
def test_a_run_is_validated_in_the_modes_that_it_trains(density: DensityConfig, modes: set[Mode]) -> None:
    assert set(trained_modes(density)[0]) == modes


def test_the_baselines_of_a_comparison_have_the_same_windows_steps_and_order() -> None:
    shared = [ROOT / "configs/data/metaworld.yaml", ROOT / "configs/train/compare_baselines.yaml"]
    ours = [load(TrainConfig, [ROOT / "configs/model/tiny.yaml", ROOT / f"configs/recipe/{name}.yaml", *shared])
            for name in ("action_only", "inverse_only", "uwm")]  # fmt: skip
    theirs = load(TrainConfig, [*shared, ROOT / "configs/model/diffusion_policy.yaml"])
    keys = ("steps", "batch_size", "grad_accum", "seed", "data")
    assert all(getattr(config, key) == getattr(theirs, key) for config in ours for key in keys)
    assert isinstance(theirs.data.window, WindowConfig)
    assert (theirs.optim.name, theirs.normalization, theirs.ema.power) == ("adamw", "min_max", 0.75)
