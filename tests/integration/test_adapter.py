"""An adapter as a user meets it: trained on a checkpoint, exported alone, used with that checkpoint and no other."""

import json
from pathlib import Path

import pytest

from wam_video.cli import evaluate, generate, train
from wam_video.cli.command import run
from wam_video.data.schema import EmbodimentSpec
from wam_video.testing import fake_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    body = EmbodimentSpec(name="arm", action_dim=2, state_dim=2, views=("front",), fps=5.0, action_rate=10.0)
    return fake_shards(tmp_path_factory.mktemp("data") / "toy", [body])


def arguments(shards: Path, output: Path, *more: str) -> list[str]:
    model = "num_layers=1 num_attention_heads=2 attention_head_dim=8 ffn_dim=32 patch_size=[1,1,1] freq_dim=16"
    return [
        *(f"data.datasets.toy.path={shards}", f"output_dir={output}", "data.window.action_horizon=4"),
        *(f"model.{setting}" for setting in model.split()),
        *("text.d_model=16", "text.num_layers=1", "text.num_heads=2", "text.max_length=16", "optim.schedule=constant"),
        *("steps=3", "batch_size=4", "optim.warmup_steps=1", "optim.lr=1e-2", "eval_every=0", "trackers=[]", *more),
    ]


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert run(train.main, arguments(shards, folder / "base")) == 0
    lora = ("adapter.kind=lora", "adapter.rank=2", "adapter.export=adapter", f"init_from={folder / 'base' / 'model'}")
    assert run(train.main, arguments(shards, folder / "tuned", *lora)) == 0
    assert run(train.main, arguments(shards, folder / "other", "seed=1")) == 0
    assert not (folder / "tuned" / "model").exists()
    return folder


def generated(shards: Path, folder: Path, *more: str) -> int:
    fixed = ("--mode", "policy", "--input", str(shards), "--output", str(folder), "--steps", "1", "--overwrite")
    return run(generate.main, [*fixed, *more])


def test_generate_with_an_adapter(shards: Path, runs: Path, tmp_path: Path) -> None:
    base, adapter = str(runs / "base" / "model"), str(runs / "tuned" / "adapter")
    assert generated(shards, tmp_path / "plain", "--model", base) == 0
    assert generated(shards, tmp_path / "tuned", "--model", base, "--adapter", adapter) == 0
    plain, tuned = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("plain", "tuned"))
    assert tuned["adapter"] == adapter and len(tuned["adapter_hash"]) == 64
    assert "adapter" not in plain and plain["model_hash"] == tuned["model_hash"]
    assert (tmp_path / "plain" / "actions.npy").read_bytes() != (tmp_path / "tuned" / "actions.npy").read_bytes()


def test_an_adapter_with_another_base_is_one_line_and_exit_code_2(
    shards: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", str(runs / "other" / "model"), "--adapter", str(runs / "tuned" / "adapter"))
    assert generated(shards, tmp_path / "out", *options) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is for the base" in said and str(runs / "base" / "model") in said


def test_evaluate_puts_the_base_beside_the_adapted_model(
    shards: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = str(runs / "base" / "model"), str(runs / "tuned" / "adapter")
    fixed = ["--data", str(shards), "--modes", "policy", "--windows", "4", "--steps", "1", "--output", str(tmp_path)]
    models = ["--model", f"base={base}", "--model", f"tuned={base}"]
    assert run(evaluate.main, [*fixed, *models, "--adapter", f"tuned={adapter}"]) == 0
    one, two = json.loads((tmp_path / "metrics.json").read_text())["models"]
    assert "adapter" not in one and two["adapter"] == adapter
    assert one["model_hash"] == two["model_hash"] and one["rows"] != two["rows"]
    assert run(evaluate.main, [*fixed, *models, "--adapter", adapter]) == 2
    assert run(evaluate.main, [*fixed, *models, "--adapter", f"tund={adapter}"]) == 2
    assert "Did you mean 'tuned'" in capsys.readouterr().err
