"""Every engine is what it says, learns what DDP learns, and reads what any other wrote at any number of processes.

The engines go on from each other's checkpoints in one chain, ddp (from the start) -> fsdp -> zero 2 -> zero 3 -> fsdp in two
copies on four processes -> ddp on three, so that each start of processes shows several things.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.engine_worker import PoisonedFeed
from tests.unit.training.fakes import tiny_config, tiny_trainer

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(1300)]

STEPS, POISONED = 16, 78
"""The window is in the tenth step of eight windows each."""
_PORTS = itertools.count(29900 + os.getpid() % 500 * 8)
Run = tuple[Path, list[dict[str, Any]]]


def launched(launcher: list[str], folder: Path, **settings: Any) -> Run:
    """Run the worker under a launcher; return its folder and what each process says of itself."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"steps": STEPS, "save_every": 2, "poisoned": POISONED, **settings}
    worker = str(ROOT / "tests/distributed/engine_worker.py")
    result = subprocess.run(
        [sys.executable, "-m", *launcher, worker, str(folder), json.dumps(settings)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return folder, [json.loads(path.read_text()) for path in sorted(folder.glob("facts-*.json"))]


def accelerate(name: str) -> list[str]:
    config = ["--config_file", f"launch/accelerate/{name}.yaml", "--num_processes", "2", "--mixed_precision", "no"]
    return ["accelerate.commands.launch", *config, "--main_process_port", str(next(_PORTS))]


def torchrun(processes: int) -> list[str]:
    return ["torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(next(_PORTS))]


def saved(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:07d}"


def from_checkpoint(source: Path, step: int, folder: Path) -> Path:
    """Return a run's folder with another run's checkpoint in it."""
    shutil.copytree(saved(source, step), saved(folder, step))
    return folder


def assembled(folder: Path) -> dict[str, torch.Tensor]:
    """Put the pieces of a checkpoint together, as a reader of the keys would who has no other code of ours."""
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for path in folder.glob("*.safetensors"):
        for key, value in load_file(path).items():
            name, _, where = key.rpartition("/") if key.count("/") == 2 else (key, "", "0-0")
            start = int(where.split("-")[0])
            assert start not in pieces.setdefault(name, {}), f"{key} is there twice"
            pieces[name][start] = value
    whole = {}
    for name, parts in pieces.items():
        ends = [start + part.numel() for start, part in sorted(parts.items())]
        assert sorted(parts)[1:] == ends[:-1], f"{name} has holes or overlaps"
        whole[name] = torch.cat([parts[start] for start in sorted(parts)]) if len(parts) > 1 else parts[min(parts)]
    return whole


def unequal(a: Path, b: Path) -> list[str]:
    """Return what is not the same to the bit in two checkpoints."""
    one, two = assembled(a), assembled(b)
    assert one.keys() == two.keys()
    assert any("exp_avg_sq" in name for name in one)
    return [name for name in one if not torch.equal(one[name].view(-1), two[name].view(-1))]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Run the engines, each from a checkpoint of the one before."""
    pytest.importorskip("deepspeed")
    root = tmp_path_factory.mktemp("engines")
    launchers = {
        "ddp": accelerate("cpu_two_processes"),
        "fsdp": accelerate("fsdp2"),
        "zero2": accelerate("deepspeed_zero2"),
        "zero3": accelerate("deepspeed_zero3"),
    }
    runs: dict[str, Run] = {}
    for number, (name, launcher) in enumerate(launchers.items()):
        if number:
            from_checkpoint(root / list(launchers)[number - 1], 2 * number, root / name)
        # Accumulated or not: the same eight windows a step.
        sizes = {"batch_size": 2, "grad_accum": 2} if name in ("zero2", "fsdp") else {"batch_size": 4}
        runs[name] = launched(launcher, root / name, **sizes)
    return runs


ENGINES = {"ddp": ("ddp", 0), "fsdp": ("fsdp", 2), "zero2": ("deepspeed", 4), "zero3": ("deepspeed", 6)}


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_is_what_was_launched_and_holds_its_share(chain: dict[str, Run], name: str) -> None:
    kind, first = ENGINES[name]
    facts = chain[name][1]
    assert [(f["kind"], f["num_processes"], f["first_step"]) for f in facts] == [(kind, 2, first)] * 2
    assert "ZeRO " + name[-1] in facts[0]["about"] if kind == "deepspeed" else True
    total = chain["ddp"][1][0]["held"]
    held = [f["held"] for f in facts]
    assert held == [total, total] if name == "ddp" else sum(held) == total and max(held) < 0.6 * total


@pytest.mark.parametrize("name", ["fsdp", "zero2", "zero3"])
def test_an_engine_goes_on_from_anothers_checkpoint_to_the_bit(chain: dict[str, Run], name: str) -> None:
    before = list(chain)[list(chain).index(name) - 1]
    assert unequal(saved(chain[before][0], ENGINES[name][1]), chain[name][0] / "again") == []


@pytest.mark.parametrize("name", ["fsdp", "zero2", "zero3"])
def test_losses_are_those_of_ddp_and_a_bad_step_is_skipped_everywhere(chain: dict[str, Run], name: str) -> None:
    wanted = chain["ddp"][1][0]["steps"][ENGINES[name][1] :]
    assert len(wanted) >= 10
    for facts in chain[name][1]:
        assert (
            [s["applied"] for s in facts["steps"]]
            == [s["applied"] for s in wanted]
            == [s["step"] != 10 for s in wanted]
        )
        for step, theirs in zip(facts["steps"], wanted, strict=True):
            for key in ("loss_video", "loss_action", "norm"):
                assert step[key] == pytest.approx(theirs[key], abs=1e-4, nan_ok=True), (step["step"], key)
        assert facts["validation"] == pytest.approx(chain["ddp"][1][0]["validation"], abs=1e-4)


@pytest.mark.parametrize("name", ["fsdp", "zero2", "zero3"])
def test_average_and_export_are_those_of_ddp(chain: dict[str, Run], name: str) -> None:
    ours, theirs = (assembled(saved(chain[run][0], STEPS)) for run in (name, "ddp"))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, atol=1e-5, rtol=0)
    exported = load_file(chain[name][0] / "model" / "w.safetensors")
    expected = load_file(chain["ddp"][0] / "model" / "w.safetensors")
    assert exported.keys() == expected.keys()
    for key, value in exported.items():
        assert torch.equal(value.view(-1), ours[f"transformer.{key}/ema"]), key
        torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=0)


def test_one_process_goes_on_from_zero_3(chain: dict[str, Run], tmp_path: Path) -> None:
    from_checkpoint(chain["zero3"][0], 8, tmp_path)
    trainer = tiny_trainer(tiny_config(tmp_path, batch_size=8, steps=STEPS, keep_last=0), PoisonedFeed(POISONED))
    assert trainer.progress.step == 8
    own = assembled(saved(chain["zero3"][0], 8))
    assert all(torch.equal(p.view(-1), own[f"{n}/weight"]) for n, p in trainer.engine.module.named_parameters())
    trainer.run([])
    wanted = assembled(saved(chain["ddp"][0], STEPS))
    for name, average in trainer.ema.state_dict().items():
        torch.testing.assert_close(average.view(-1), wanted[f"{name}/ema"], atol=1e-5, rtol=0)


def test_four_processes_in_two_copies_and_three_after_them(chain: dict[str, Run], tmp_path: Path) -> None:
    four = from_checkpoint(chain["zero3"][0], 8, tmp_path / "four")
    hybrid = {"engine": "fsdp", "fsdp": {"shard_size": 2}, "batch_size": 1, "grad_accum": 2}
    _, facts = launched(torchrun(4), four, **hybrid)
    assert [(f["kind"], f["num_processes"]) for f in facts] == [("fsdp", 4)] * 4
    assert "mesh 2 copy x 2 shard" in facts[0]["about"]
    assert sum(f["held"] for f in facts) == 2 * chain["ddp"][1][0]["held"]
    assert unequal(saved(chain["zero3"][0], 8), four / "again") == []
    theirs = assembled(saved(chain["ddp"][0], STEPS))
    for key, value in assembled(saved(four, STEPS)).items():
        torch.testing.assert_close(value, theirs[key], atol=1e-5, rtol=0)
    three = from_checkpoint(four, 10, tmp_path / "three")
    _, facts = launched(torchrun(3), three, engine="ddp", batch_size=1, grad_accum=2, steps=10)
    assert [(f["kind"], f["num_processes"], f["first_step"]) for f in facts] == [("ddp", 3, 10)] * 3
    assert unequal(saved(four, 10), three / "again") == []
