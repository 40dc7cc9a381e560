"""Several processes on the CPU: they are what was asked for, and do not change what is learned."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.training.fakes import tiny_config, tiny_trainer
from wam_video.models.parts import part_of
from wam_video.training.config import AdapterConfig, OptimConfig

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def launch(launcher: list[str], folder: Path, **settings: Any) -> list[dict[str, Any]]:
    """Run the worker under a launcher and return what each process says of itself."""
    folder.mkdir(exist_ok=True)
    result = subprocess.run(
        [sys.executable, "-m", *launcher, str(ROOT / "tests/distributed/worker.py"), str(folder), json.dumps(settings)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("facts-*.json"))]


def accelerate(name: str, *options: str) -> list[str]:
    port = str(29600 + os.getpid() % 300)
    return [
        *("accelerate.commands.launch", "--config_file", f"launch/accelerate/{name}.yaml"),
        *("--main_process_port", port, *options),
    ]


def close_to_one_process(folder: Path, ranks: int, tmp_path: Path, tolerance: float, **settings: Any) -> None:
    alone = tiny_trainer(tiny_config(tmp_path / "alone", batch_size=8, steps=4, **settings))
    alone.run([])
    for rank in range(ranks):
        weights = load_file(folder / f"weights-{rank}.safetensors")
        for name, value in alone.engine.module.named_parameters():
            torch.testing.assert_close(weights[name], value.detach(), atol=tolerance, rtol=0)


@pytest.mark.timeout(1300)
def test_two_gloo_processes_learn_what_one_does_and_resume(tmp_path: Path) -> None:
    launcher = accelerate("cpu_two_processes")
    facts = launch(launcher, tmp_path / "two", batch_size=4, steps=3)
    assert [(f["kind"], f["num_processes"], f["is_main"]) for f in facts] == [("ddp", 2, True), ("ddp", 2, False)]
    facts = launch(launcher, tmp_path / "two", batch_size=4, steps=4)
    assert [(f["first_step"], f["last_step"]) for f in facts] == [(3, 4)] * 2
    close_to_one_process(tmp_path / "two", 2, tmp_path, 1e-6)


@pytest.mark.timeout(1300)
def test_two_processes_that_share_the_tokens_learn_what_one_does(tmp_path: Path) -> None:
    facts = launch(accelerate("cpu_two_processes"), tmp_path / "two", batch_size=8, steps=4, sequence_parallel=2)
    assert [(f["kind"], f["num_processes"], f["last_step"]) for f in facts] == [("ddp", 2, 4)] * 2
    close_to_one_process(tmp_path / "two", 2, tmp_path, 1e-6)


@pytest.mark.timeout(1300)
def test_deepspeed_zero_2_on_two_processes_learns_what_one_does_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    launcher = accelerate("deepspeed_zero2", "--num_processes", "2")
    facts = launch(launcher, tmp_path / "two", batch_size=2, grad_accum=2, steps=3)
    assert [(f["kind"], f["num_processes"], f["is_main"]) for f in facts] == [
        ("deepspeed", 2, True),
        ("deepspeed", 2, False),
    ]
    facts = launch(launcher, tmp_path / "two", batch_size=2, grad_accum=2, steps=4)
    assert [(f["first_step"], f["last_step"]) for f in facts] == [(3, 4)] * 2
    close_to_one_process(tmp_path / "two", 2, tmp_path, 1e-5)


@pytest.mark.timeout(1300)
@pytest.mark.parametrize("engine", ["ddp", "deepspeed"])
def test_two_processes_train_an_adapter_and_groups_as_one_does_and_resume(tmp_path: Path, engine: str) -> None:
    base = tiny_trainer(tiny_config(tmp_path / "base"))
    base.run([])
    base.parts.transformer.save_pretrained(tmp_path / "base" / "model" / "transformer")
    frozen = {f"transformer.{name}": p.detach().clone() for name, p in base.parts.transformer.named_parameters()}
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    optim = {"lr": 1e-3, "warmup_steps": 2, "schedule": "constant", "groups": {"embodiment": 0.5}}
    adapter, init_from = {"kind": "lora", "rank": 2}, str(tmp_path / "base" / "model")
    options = {"batch_size": 2, "grad_accum": 2, "optim": optim, "adapter": adapter, "init_from": init_from}
    two = ("--num_processes", "2")
    launcher = accelerate("deepspeed_zero2", *two) if engine == "deepspeed" else accelerate("cpu_two_processes")
    for first, last in ((0, 3), (3, 4)):
        facts = launch(launcher, tmp_path / "two", **options, steps=last)
        assert [(f["kind"], f["first_step"], f["last_step"]) for f in facts] == [(engine, first, last)] * 2
    settings = {"optim": OptimConfig(**optim), "adapter": AdapterConfig(**adapter), "init_from": init_from}
    close_to_one_process(tmp_path / "two", 2, tmp_path, 1e-5, **settings)
    weights = load_file(tmp_path / "two" / "weights-0.safetensors")
    for name, value in weights.items():
        if part_of(name) in ("trunk", "conditioning"):
            assert torch.equal(value, frozen[name.replace(".base_layer.", ".")]), name
