"""Training an adapter: the rest stays as it was, to the bit; it is saved, loaded, merged, and refused by another base."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.unit.training.fakes import FakeFeed, differing, moved, snapshot, tiny_config, tiny_trainer, weights
from wam_video.cli.train import _export, _show
from wam_video.errors import CheckpointError, ConfigError
from wam_video.inference.pipeline import WAMPipeline
from wam_video.models.adapters import FULL_WEIGHTS, LORA_WEIGHTS, folder_hash, merged
from wam_video.models.parts import part_of
from wam_video.tensors import Batch
from wam_video.testing import fake_batch
from wam_video.training import callbacks as hooks
from wam_video.training.config import AdapterConfig, OptimConfig, TrainConfig
from wam_video.training.trainer import Trainer

LORA = {"kind": "lora", "rank": 2, "alpha": 4.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a few steps, in which nothing is zero any more."""
    folder = tmp_path_factory.mktemp("base")
    trainer = tiny_trainer(tiny_config(folder))
    trainer.run([hooks.ExportCallback(_export, folder / "model", 0)])
    return folder / "model"


def lora_config(folder: Path, base: Path, **changes: Any) -> TrainConfig:
    adapter = AdapterConfig(**(LORA | changes.pop("adapter", {})))
    optim = changes.pop("optim", OptimConfig(lr=1e-2, warmup_steps=2, schedule="constant"))
    return tiny_config(folder, init_from=str(base), adapter=adapter, optim=optim, **changes)


def trained(config: TrainConfig) -> Trainer:
    trainer = tiny_trainer(config)
    trainer.run([hooks.ExportCallback(_export, Path(config.output_dir) / "out", 0)])
    return trainer


def predict(pipe: WAMPipeline, batch: Batch, mode: str = "joint") -> tuple[np.ndarray, np.ndarray]:
    pipe.set_progress_bar_config(disable=True)
    made = pipe.predict(batch, mode, generator=3, num_inference_steps=2)
    return made.actions, made.video


def test_an_adapter_trains_its_matrices_and_what_is_named_beside_them(tmp_path: Path, base: Path) -> None:
    trainer = tiny_trainer(lora_config(tmp_path, base))
    before = snapshot(trainer)
    assert {name.replace(".default", "") for name in before if "blocks.0.attn1.to_q.lora" in name} == {
        "transformer.blocks.0.attn1.to_q.lora_A.weight",
        "transformer.blocks.0.attn1.to_q.lora_B.weight",
    }
    assert all(min(v.shape) == 2 for name, v in before.items() if part_of(name) == "lora")
    trainer.run([])
    changed = moved(trainer, before)
    assert {part_of(name) for name in changed} == {"lora", "embodiment"}
    assert {name for name in before if part_of(name) == "lora"} <= changed
    assert set(trainer.ema.state_dict()) == {name for name in before if part_of(name) in ("lora", "embodiment")}
    optimized = {id(p) for group in trainer.engine.optimizer.param_groups for p in group["params"]}
    frozen = [p for name, p in trainer.engine.module.named_parameters() if part_of(name) not in ("lora", "embodiment")]
    assert frozen and all(id(p) not in optimized and p.grad is None and not p.requires_grad for p in frozen)


def test_an_adapter_alone_leaves_every_other_weight(tmp_path: Path, base: Path) -> None:
    trainer = tiny_trainer(lora_config(tmp_path, base, adapter={"full": []}))
    before = snapshot(trainer)
    trainer.run([])
    assert {part_of(name) for name in moved(trainer, before)} == {"lora"}


def test_a_new_adapter_changes_nothing_and_does_not_depend_on_the_global_generator(tmp_path: Path, base: Path) -> None:
    torch.manual_seed(1)
    one = tiny_trainer(lora_config(tmp_path / "a", base))
    torch.manual_seed(2)
    two = tiny_trainer(lora_config(tmp_path / "b", base))
    assert not differing(snapshot(one), snapshot(two))
    plain = WAMPipeline.from_pretrained(base).transformer.state_dict()
    whole = merged(one.parts.transformer).state_dict()
    assert plain.keys() == whole.keys()
    assert not differing(plain, whole)


@pytest.mark.parametrize("options", [{}, {"batch_size": 2, "grad_accum": 2}])
def test_a_resumed_adapter_with_dropout_ends_with_the_same_bits(
    tmp_path: Path, base: Path, options: dict[str, int]
) -> None:
    options |= {"adapter": {"dropout": 0.5}}
    whole = tiny_trainer(lora_config(tmp_path / "whole", base, **options))
    whole.run([])
    steps = itertools.count()
    first = tiny_trainer(lora_config(tmp_path / "cut", base, **options), should_stop=lambda: next(steps) == 2)
    first.run([hooks.CheckpointCallback(100)])
    assert first.progress.step == 2
    torch.rand(3)
    second = tiny_trainer(lora_config(tmp_path / "cut", base, **options))
    second.run([])
    assert not differing(weights(whole), weights(second))
    assert differing(weights(whole), weights(first))


def test_micro_batches_do_not_change_an_adapter(tmp_path: Path, base: Path) -> None:
    one = trained(lora_config(tmp_path / "a", base, batch_size=8))
    two = trained(lora_config(tmp_path / "b", base, batch_size=4, grad_accum=2))
    for name, value in one.engine.module.named_parameters():
        torch.testing.assert_close(value, dict(two.engine.module.named_parameters())[name], atol=1e-5, rtol=0)


def test_a_saved_adapter_comes_back_to_the_bit_and_merges_within_rounding(tmp_path: Path, base: Path) -> None:
    config = lora_config(tmp_path, base, adapter={"export": "adapter", "dropout": 0.1})
    trainer = trained(config)
    folder = tmp_path / "out"
    assert {p.name for p in folder.iterdir()} == {LORA_WEIGHTS, FULL_WEIGHTS, "processor"}
    pipe = WAMPipeline.from_pretrained(base)
    batch = fake_batch(pipe, 3)
    plain = predict(pipe, batch)
    pipe.load_adapter(folder)
    after = predict(pipe, batch)
    assert not np.array_equal(plain[0], after[0]) and not np.array_equal(plain[1], after[1])
    with trainer.ema.applied():
        live = WAMPipeline.from_pretrained(base, transformer=trainer.parts.transformer.eval())
        for a, b in zip(predict(live, batch), after, strict=True):
            assert np.array_equal(a, b)
    with pytest.raises(ConfigError, match="already has an adapter"):
        pipe.load_adapter(folder)
    with pytest.raises(ConfigError, match="merge=True"):
        pipe.save_pretrained(tmp_path / "refused")
    fused = WAMPipeline.from_pretrained(base)
    fused.load_adapter(folder, merge=True)
    for a, b in zip(predict(fused, batch), after, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    _same_latents(fused, pipe, batch)
    fused.save_pretrained(tmp_path / "fused")
    again = WAMPipeline.from_pretrained(tmp_path / "fused")
    for a, b in zip(predict(again, batch), predict(fused, batch), strict=True):
        assert np.array_equal(a, b)
    _export(tmp_path / "merged", trainer.parts, lora_config(tmp_path, base))
    assert WAMPipeline.from_pretrained(tmp_path / "merged").transformer.config["num_layers"] == 1


def _same_latents(a: WAMPipeline, b: WAMPipeline, batch: Batch) -> None:
    """In the network's own units, where 1e-6 means rounding."""
    x, y = (p.predict(batch, "joint", generator=3, num_inference_steps=2, output_type="latent") for p in (a, b))
    torch.testing.assert_close(x.actions, y.actions, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(x.video, y.video, atol=1e-6, rtol=1e-6)


def test_the_file_is_diffusers_own(tmp_path: Path, base: Path) -> None:
    trainer = trained(lora_config(tmp_path, base, adapter={"export": "adapter", "full": []}))
    network = WAMPipeline.from_pretrained(base).transformer
    network.load_lora_adapter(tmp_path / "out", prefix=None, weight_name=LORA_WEIGHTS)
    with trainer.ema.applied():
        trainer.parts.transformer.save_lora_adapter(tmp_path / "theirs")
    ours, theirs = tmp_path / "out" / LORA_WEIGHTS, tmp_path / "theirs" / LORA_WEIGHTS
    assert not differing(load_file(ours), load_file(theirs))
    headers = []
    for path in (ours, theirs):
        with safe_open(path, framework="pt") as file:
            headers.append(json.loads(file.metadata()["lora_adapter_metadata"]))
    for header in headers:
        header["target_modules"].sort()
    assert headers[0] == headers[1]
    loaded = {k.replace("default_0", "default"): v for k, v in network.state_dict().items()}
    with trainer.ema.applied():
        assert not differing(loaded, dict(trainer.parts.transformer.state_dict()))


def test_an_adapter_of_another_base_is_refused_in_one_line(tmp_path: Path, base: Path) -> None:
    trained(lora_config(tmp_path, base, adapter={"export": "adapter"}))
    pipe = WAMPipeline.from_pretrained(base)
    pipe.save_pretrained(tmp_path / "resaved", max_shard_size="20KB")
    assert len(list((tmp_path / "resaved" / "transformer").glob("*.safetensors"))) > 1
    assert folder_hash(base / "transformer") == folder_hash(tmp_path / "resaved" / "transformer")
    WAMPipeline.from_pretrained(tmp_path / "resaved").load_adapter(tmp_path / "out")
    with torch.no_grad():
        pipe.transformer.proj_out.bias[0] += 1
    pipe.save_pretrained(tmp_path / "other")
    other = WAMPipeline.from_pretrained(tmp_path / "other")
    before = {k: v.clone() for k, v in other.transformer.state_dict().items()}
    with pytest.raises(CheckpointError, match="is for the base") as caught:
        other.load_adapter(tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not differing(before, other.transformer.state_dict())


@pytest.mark.parametrize(
    ("name", "message"),
    [(LORA_WEIGHTS, "is missing"), (FULL_WEIGHTS, "is missing"), ("processor/processor_config.json", "is missing")],
)
def test_an_incomplete_adapter_is_refused(tmp_path: Path, base: Path, name: str, message: str) -> None:
    trained(lora_config(tmp_path, base, adapter={"export": "adapter"}, steps=3))
    (tmp_path / "out" / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        WAMPipeline.from_pretrained(base).load_adapter(tmp_path / "out")


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, base: Path) -> None:
    trained(lora_config(tmp_path, base, adapter={"export": "adapter"}, steps=3))
    path = tmp_path / "out" / FULL_WEIGHTS
    tensors = load_file(path)
    save_file(tensors | {"no_state": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"no_state is \(3,\)"):
        WAMPipeline.from_pretrained(base).load_adapter(tmp_path / "out")
    save_file({k: v for k, v in tensors.items() if k != "registers"}, path)
    with pytest.raises(CheckpointError, match="registers"):
        WAMPipeline.from_pretrained(base).load_adapter(tmp_path / "out")
    low_rank = tmp_path / "out" / LORA_WEIGHTS
    save_file(load_file(low_rank), low_rank)
    with pytest.raises(CheckpointError, match="does not say which base"):
        WAMPipeline.from_pretrained(base).load_adapter(tmp_path / "out")


def test_an_adapter_goes_into_a_base_that_was_loaded_in_half_precision(tmp_path: Path, base: Path) -> None:
    trained(lora_config(tmp_path, base, adapter={"export": "adapter"}))
    half = WAMPipeline.from_pretrained(base, torch_dtype=torch.bfloat16)
    batch = fake_batch(half, 3)
    before = predict(half, batch)[1]
    half.load_adapter(tmp_path / "out")
    assert half.transformer.blocks[0].attn1.to_q.lora_A["default"].weight.dtype is torch.bfloat16
    whole = WAMPipeline.from_pretrained(base)
    whole.load_adapter(tmp_path / "out")
    after, exact = predict(half, batch)[1], predict(whole, batch)[1]
    assert np.abs(after - exact).mean() < 0.2 * np.abs(before - exact).mean(), "the same but for rounding"


def test_an_adapter_brings_its_own_embodiments(tmp_path: Path, base: Path) -> None:
    class OtherBodies(FakeFeed):
        def __init__(self) -> None:
            super().__init__()
            from wam_video.data.schema import EmbodimentSpec
            from wam_video.testing import TinyConfig, tiny_processor

            self._processor = tiny_processor(TinyConfig(action_free=True))
            bodies = self._processor.config.embodiments
            self.embodiments = {body["name"]: EmbodimentSpec.from_dict(body) for body in bodies}

    trainer = tiny_trainer(lora_config(tmp_path, base, adapter={"export": "adapter"}), OtherBodies())
    trainer.run([hooks.ExportCallback(_export, tmp_path / "out", 0)])
    pipe = WAMPipeline.from_pretrained(base)
    assert len(pipe.transformer.config["embodiments"]) == 2
    pipe.load_adapter(tmp_path / "out")
    assert [body["name"] for body in pipe.transformer.config["embodiments"]] == ["arm", "hand", "clips"]
    batch = fake_batch(pipe, 3)
    with trainer.ema.applied():
        live = WAMPipeline.from_pretrained(
            base, transformer=trainer.parts.transformer.eval(), processor=trainer.parts.processor
        )
        for a, b in zip(predict(live, batch), predict(pipe, batch), strict=True):
            assert np.array_equal(a, b)
    pipe = WAMPipeline.from_pretrained(base)
    pipe.load_adapter(tmp_path / "out", merge=True)
    pipe.save_pretrained(tmp_path / "saved")
    assert len(WAMPipeline.from_pretrained(tmp_path / "saved").processor.config["embodiments"]) == 3


def test_a_base_that_changed_does_not_continue_a_run(tmp_path: Path, base: Path) -> None:
    copy = tmp_path / "base"
    WAMPipeline.from_pretrained(base).save_pretrained(copy)
    config = lora_config(tmp_path / "run", copy, steps=3)
    tiny_trainer(config).run([hooks.CheckpointCallback(10)])
    pipe = WAMPipeline.from_pretrained(copy)
    with torch.no_grad():
        pipe.transformer.proj_out.bias[0] += 1
    pipe.save_pretrained(copy)
    with pytest.raises(CheckpointError, match="has other weights"):
        tiny_trainer(config)


def test_what_an_adapter_freezes_can_not_have_a_learning_rate(tmp_path: Path, base: Path) -> None:
    config = lora_config(tmp_path, base, optim=OptimConfig(groups={"trunk": 0.1}, warmup_steps=0))
    with pytest.raises(ConfigError, match="freezes all of it"):
        tiny_trainer(config)
    with pytest.raises(ConfigError, match=r"optim\.groups\.trunk is -1"):
        OptimConfig(groups={"trunk": -1.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": AdapterConfig(kind="lora")}, "nothing to adapt"),
        ({"adapter": AdapterConfig(kind="lora", export="adapter"), "backbone": "wan"}, "init_from is not set"),
    ],
)
def test_an_adapter_needs_a_base(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(tmp_path, **changes)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kind", "lorra", "Did you mean 'lora'"),
        ("rank", 0, "adapter.rank is 0"),
        ("alpha", 0.0, "adapter.alpha"),
        ("dropout", 1.0, "adapter.dropout"),
        ("export", "merge", "Did you mean 'merged'"),
        ("target_modules", [], "target_modules is empty"),
    ],
)
def test_settings_of_an_adapter_out_of_range(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdapterConfig(**{field: value})


def test_a_target_that_is_no_linear_layer_is_refused(tmp_path: Path, base: Path) -> None:
    with pytest.raises(ConfigError, match=r"target_modules entry is 'to_g'; allowed: .*attn1\.to_q"):
        tiny_trainer(lora_config(tmp_path, base, adapter={"target_modules": ["to_g"]}))


def test_a_dry_run_prints_the_parts(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _show(lora_config(tmp_path, base)) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("#   ")]
    table = {line[1]: (int(line[2].replace(",", "")), line[3].strip(",")) for line in lines}
    assert {part: how for part, (_, how) in table.items()} == {
        "trunk": "frozen",
        "conditioning": "frozen",
        "embodiment": "trained",
        "lora": "trained",
    }
    trainer = tiny_trainer(lora_config(tmp_path, base))
    for part in ("trunk", "conditioning", "lora"):
        own = [p.numel() for name, p in trainer.engine.module.named_parameters() if part_of(name) == part]
        assert table[part][0] == sum(own), part


def test_the_header_names_the_base(tmp_path: Path, base: Path) -> None:
    trained(lora_config(tmp_path, base, adapter={"export": "adapter"}, steps=3))
    with safe_open(tmp_path / "out" / LORA_WEIGHTS, framework="pt") as file:
        header = json.loads(file.metadata()["wam_video"])
    assert header["base"] == folder_hash(base / "transformer")
    assert header["base_name"] == str(base)
