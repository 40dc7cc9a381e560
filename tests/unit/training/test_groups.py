"""Parts that are frozen or have a learning rate of their own: what is frozen stays as it was, to the bit."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training.fakes import differing, moved, snapshot, tiny_config, tiny_trainer, weights
from wam_video.errors import ConfigError
from wam_video.models.parts import part_of
from wam_video.training import callbacks as hooks
from wam_video.training.config import OptimConfig, TextConfig


@pytest.mark.parametrize(
    ("groups", "still"),
    [
        ({"trunk": 0.0}, {"trunk"}),
        ({"trunk": 0.0, "conditioning": 0.0}, {"trunk", "conditioning"}),
        ({"embodiment": 0.0}, {"embodiment"}),
        ({"text": 0.0}, {"text"}),
    ],
)
def test_frozen_groups_stay_to_the_bit_through_a_resumed_run(
    tmp_path: Path, groups: dict[str, float], still: set[str]
) -> None:
    text = TextConfig(d_model=16, num_layers=1, num_heads=2, max_length=16, train=True)
    options = {"optim": OptimConfig(lr=1e-2, warmup_steps=2, schedule="constant", groups=groups), "text": text}
    whole = tiny_trainer(tiny_config(tmp_path / "whole", **options))
    before = snapshot(whole)
    whole.run([])
    assert {part_of(name) for name in moved(whole, before)} == {part_of(name) for name in before} - still
    assert not {part_of(name) for name in whole.ema.state_dict()} & still
    module = whole.engine.module
    assert all(
        not whole.engine.optimizer.state.get(p) for name, p in module.named_parameters() if part_of(name) in still
    )
    steps = itertools.count()
    cut = tiny_trainer(tiny_config(tmp_path / "cut", **options), should_stop=lambda: next(steps) == 2)
    cut.run([hooks.CheckpointCallback(100)])
    second = tiny_trainer(tiny_config(tmp_path / "cut", **options))
    assert second.progress.step == 2
    second.run([])
    assert not differing(weights(whole), weights(second))


def test_what_is_frozen_does_not_count_in_the_norm_of_the_gradient(tmp_path: Path) -> None:
    norms = []

    class Watch:
        def on_step(self, run: object, result: Any) -> None:
            norms.append(result.grad_norm)

        def on_end(self, run: object) -> None: ...

    for name, groups in (("all", {}), ("some", {"trunk": 0.0})):
        optim = OptimConfig(lr=1e-3, warmup_steps=0, schedule="constant", groups=groups)
        tiny_trainer(tiny_config(tmp_path / name, steps=1, optim=optim)).run([Watch()])
    assert 0 < norms[1] < norms[0]


def test_a_multiple_of_the_learning_rate_multiplies_the_first_step(tmp_path: Path) -> None:
    steps: list[dict[str, torch.Tensor]] = []
    for name, groups in (("one", {}), ("other", {"embodiment": 3.0, "blocks.0.ffn.*": 0.5})):
        optim = OptimConfig(lr=1e-3, warmup_steps=0, schedule="constant", clip_norm=0, weight_decay=0, groups=groups)
        trainer = tiny_trainer(tiny_config(tmp_path / name, steps=1, optim=optim))
        before = snapshot(trainer)
        trainer.run([])
        steps.append({key: p.detach() - before[key] for key, p in trainer.engine.module.named_parameters()})
    for key, step in steps[0].items():
        factor = 3.0 if part_of(key) == "embodiment" else 0.5 if ".ffn." in key else 1.0
        torch.testing.assert_close(steps[1][key], step * factor, atol=2e-7, rtol=1e-3)
    assert max(step.abs().max() for step in steps[0].values()) > 5e-4


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"trunc": 0.0}, r"groups key is 'trunc'; allowed: .*Did you mean 'trunk'\?"),
        ({"expert": 0.0}, "matches no|groups key is 'expert'"),
        ({"blok.0.*": 0.0}, r"'blok\.0\.\*', which matches no parameter.*'blocks"),
        ({"trunk": 0.0, "conditioning": 0.0, "embodiment": 0.0}, "freezes everything"),
    ],
)
def test_groups_that_mean_nothing_are_refused_in_one_line(
    tmp_path: Path, groups: dict[str, float], message: str
) -> None:
    config = tiny_config(tmp_path, optim=OptimConfig(groups=groups, warmup_steps=0))
    with pytest.raises(ConfigError, match=message) as caught:
        tiny_trainer(config)
    assert "\n" not in str(caught.value)
