"""Several processes on the CPU: they are what was asked for, and do not change what is learned."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.forked import Runs
from tests.unit.training.fakes import tiny_config, tiny_trainer
from wam_video.models.parts import part_of
from wam_video.training import callbacks as hooks
from wam_video.training.config import AdapterConfig, OptimConfig
from wam_video.training.metrics import JsonLines
from wam_video.training.trainer import Trainer

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(900)]

KINDS = {"ddp": "ddp", "fsdp": "fsdp", "zero2": "deepspeed", "zero3": "deepspeed"}


def launch(forks: Runs, name: str, engine: str = "ddp", **settings: Any) -> list[dict[str, Any]]:
    """Run two processes of an engine and return what each says of itself."""
    environment = {"ACCELERATE_USE_DEEPSPEED": "false"}
    if KINDS[engine] == "deepspeed":
        pytest.importorskip("deepspeed")
        file = forks.folder / f"{engine}.json"
        file.write_text(
            json.dumps({"zero_optimization": {"stage": int(engine[-1])}, "zero_allow_untested_optimizer": True})
        )
        environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
        environment |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_MIXED_PRECISION": "no"}
    request = {"settings": {"engine": KINDS[engine], **settings}, "processes": 2, "launch": environment}
    assert forks(name, request) == [0, 0], forks.log(name) + forks.log(name, 1)
    return [json.loads((forks.folder / name / f"facts-{rank}.json").read_text()) for rank in range(2)]


def one_process(folder: Path, **settings: Any) -> Trainer:
    """Return a run that was done by one process, which learned from as many windows."""
    alone = tiny_trainer(tiny_config(folder, batch_size=8, steps=4, **settings))
    folder.mkdir(exist_ok=True)
    alone.run([hooks.LogCallback(1)], [JsonLines(folder / "metrics.jsonl", from_step=0)])
    return alone


def check_close(folder: Path, alone: Trainer, tolerance: float) -> None:
    """Compare the weights, where a process has them whole, and the averages, which are put together."""
    for rank in range(2):
        weights = load_file(folder / f"weights-{rank}.safetensors")
        for name, value in alone.engine.module.named_parameters():
            if name in weights:
                torch.testing.assert_close(weights[name], value.detach(), atol=tolerance, rtol=0)
    averages = load_file(folder / "averages.safetensors")
    wanted = alone.ema.state_dict()
    assert averages.keys() >= {name.removeprefix("transformer.") for name in wanted}
    for name, value in wanted.items():
        torch.testing.assert_close(averages[name.removeprefix("transformer.")], value, atol=tolerance, rtol=0)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero2"])
def test_two_processes_learn_what_one_does_and_resume(forks: Runs, tmp_path: Path, engine: str) -> None:
    sizes = {"batch_size": 4} if engine == "ddp" else {"batch_size": 2, "grad_accum": 2}
    facts = launch(forks, f"two-{engine}", engine, steps=3, **sizes)
    kind = KINDS[engine]
    assert [(f["kind"], f["num_processes"], f["is_main"]) for f in facts] == [(kind, 2, True), (kind, 2, False)]
    facts = launch(forks, f"two-{engine}", engine, steps=4, **sizes)
    assert [(f["first_step"], f["last_step"]) for f in facts] == [(3, 4)] * 2
    check_close(forks.folder / f"two-{engine}", one_process(tmp_path), 1e-6 if engine == "ddp" else 1e-5)


@pytest.mark.parametrize("engine", list(KINDS))
def test_two_processes_that_share_the_tokens_learn_and_count_what_one_does(
    forks: Runs, tmp_path: Path, engine: str
) -> None:
    name, sizes = f"shared-{engine}", {"batch_size": 4, "grad_accum": 2} if engine == "fsdp" else {"batch_size": 8}
    facts = launch(forks, name, engine, steps=4, sequence_parallel=2, eval_every=1, **sizes)
    assert [(f["kind"], f["num_processes"], f["last_step"]) for f in facts] == [(KINDS[engine], 2, 4)] * 2
    check_close(forks.folder / name, one_process(tmp_path), 1e-6)
    ours, theirs = (
        [line for line in lines(folder) if "loss_video" in line] for folder in (forks.folder / name, tmp_path)
    )
    assert len(ours) == len(theirs) == 4
    for mine, other in zip(ours, theirs, strict=True):
        for key in other.keys() & {"loss_video", "loss_action", "loss_policy", "loss_inverse", "grad_norm"}:
            assert mine[key] == pytest.approx(other[key], abs=1e-5), key
        frames = [line["frames_per_second"] / line["samples_per_second"] for line in (mine, other)]
        assert frames[0] == pytest.approx(frames[1]), "frames in a sample: they were counted by each process"


@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_two_processes_train_an_adapter_and_groups_as_one_does_and_resume(
    forks: Runs, tmp_path: Path, engine: str
) -> None:
    base = tiny_trainer(tiny_config(tmp_path / "base"))
    base.run([])
    base.parts.transformer.save_pretrained(tmp_path / "base" / "model" / "transformer")
    frozen = {f"transformer.{name}": p.detach().clone() for name, p in base.parts.transformer.named_parameters()}
    optim = {"lr": 1e-3, "warmup_steps": 2, "schedule": "constant", "groups": {"embodiment": 0.5}}
    adapter, init_from = {"kind": "lora", "rank": 2}, str(tmp_path / "base" / "model")
    options = {"batch_size": 2, "grad_accum": 2, "optim": optim, "adapter": adapter, "init_from": init_from}
    name = f"adapter-{engine}"
    for first, last in ((0, 3), (3, 4)):
        facts = launch(forks, name, engine, **options, steps=last)
        assert [(f["kind"], f["first_step"], f["last_step"]) for f in facts] == [(KINDS[engine], first, last)] * 2
    settings = {"optim": OptimConfig(**optim), "adapter": AdapterConfig(**adapter), "init_from": init_from}
    check_close(forks.folder / name, one_process(tmp_path / "alone", **settings), 1e-5)
    for key, value in load_file(forks.folder / name / "weights-0.safetensors").items():
        if part_of(key) in ("trunk", "conditioning"):
            assert torch.equal(value, frozen[key.replace(".base_layer.", ".")]), key
