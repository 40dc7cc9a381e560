"""Two processes, one of which meets with an accident: what the other does, what is left behind, and how it goes on."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.forked import Runs
from wam_video.data.schema import EmbodimentSpec
from wam_video.testing import fake_shards

ROOT = Path(__file__).resolve().parents[2]
WORKER = str(ROOT / "tests/distributed/health_worker.py")
TENSORS = "*.safetensors"
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    body = EmbodimentSpec(name="arm", action_dim=2, state_dim=2, views=("front",), fps=5.0, action_rate=10.0)
    return fake_shards(tmp_path_factory.mktemp("data") / "toy", [body])


def arguments(shards: Path, output: Path, *more: str) -> list[str]:
    model = "num_layers=1 num_attention_heads=2 attention_head_dim=8 ffn_dim=32 patch_size=[1,1,1] freq_dim=16"
    text = "d_model=16 num_layers=1 num_heads=2 max_length=16"
    return [
        *(f"data.datasets.toy.path={shards}", f"output_dir={output}", "data.window.action_horizon=4"),
        *(f"model.{setting}" for setting in model.split()),
        *(f"text.{setting}" for setting in text.split()),
        *(
            "steps=6",
            "batch_size=2",
            "optim.warmup_steps=2",
            "save_every=1",
            "keep_last=0",
            "eval_every=0",
            "log_every=1",
        ),
        *("trackers=[]", *more),
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT), **more}


def two(forks: Runs, accident: str, arguments: list[str]) -> list[tuple[int, str]]:
    """Run two processes without a launcher and return the exit code and the words of each."""
    name = accident.replace(":", "-")
    codes = forks(name, {"accident": accident, "processes": 2, "settings": {"arguments": arguments}})
    return [(code, forks.log(name, rank)) for rank, code in enumerate(codes)]


def under_torchrun(accident: str, arguments: list[str]) -> str:
    """Run two processes under torchrun, which starts them again once, and return their words."""
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
        "--max_restarts",
        "1",
    ]
    result = subprocess.run(
        [sys.executable, *launcher, WORKER, accident, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stderr


def tensors(output: Path, step: int) -> dict[str, bytes]:
    """Return the bytes of every file of weights, averages and optimizer state of a step's checkpoint."""
    folder = output / "checkpoints" / f"step-{step:07d}"
    assert (folder / "COMMIT.json").is_file(), sorted(p.name for p in folder.parent.iterdir())
    return {path.name: path.read_bytes() for path in sorted(folder.rglob(TENSORS))}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_skipped(output: Path, said: list[str]) -> None:
    before, after, later = (tensors(output, step) for step in (2, 3, 4))
    assert before == after, "the bad step changed weights, average or optimizer"
    assert after != later, "and the next one was not taken"
    entries = lines(output / "bad_batches.jsonl")
    assert [(entry["step"], entry["rank"], entry["terms"]) for entry in entries] == [
        (3, 0, []),
        (3, 1, ["loss_video", "loss_action"]),
    ]
    indices = [sample["index"] for entry in entries for sample in entry["samples"]]
    assert sorted(indices) == [8, 9, 10, 11], "the four windows of step 3"
    assert "step 3 skipped" in said[0]
    assert "rank 1: loss_video, loss_action" in said[0]
    metrics = lines(output / "metrics.jsonl")
    assert [line["skipped_steps"] for line in metrics] == [0, 0, 1, 0, 0, 0]
    assert "NaN" not in (output / "metrics.jsonl").read_text()


def test_what_is_not_finite_on_one_process_is_skipped_by_both_and_written_down(
    forks: Runs, shards: Path, tmp_path: Path
) -> None:
    results = two(forks, "nan:1:2", arguments(shards, tmp_path, "engine=ddp"))
    assert [code for code, _ in results] == [0, 0], results
    check_skipped(tmp_path, [words for _, words in results])
    assert not any("skipped" in words for _, words in results[1:]), "one line, not one a process"


def test_a_resume_that_is_refused_is_told_by_the_main_process_alone(forks: Runs, shards: Path, tmp_path: Path) -> None:
    first = two(forks, "none", arguments(shards, tmp_path, "steps=3"))
    assert [code for code, _ in first] == [0, 0], first
    (code, words), other = two(forks, "none", arguments(shards, tmp_path, "steps=3", "seed=7"))
    assert code == 2 and words.count("error: seed is 7") == 1, words
    assert other[0] == 2 and "error" not in other[1], other


def test_a_killed_process_is_told_in_one_line_and_the_run_ends_as_if_nothing_had_happened(
    forks: Runs, shards: Path, tmp_path: Path
) -> None:
    calm = two(forks, "none", arguments(shards, tmp_path / "calm", "engine=ddp"))
    assert [code for code, _ in calm] == [0, 0], calm
    said = under_torchrun("kill:1:3", arguments(shards, tmp_path / "hit"))
    assert tensors(tmp_path / "hit", 6) == tensors(tmp_path / "calm", 6)
    assert said.count("error: rank 0, after step 3: another process of the run was lost") == 1, said
    assert "Traceback" not in said
    assert "resuming" in said


@pytest.mark.long
def test_a_hang_leaves_the_stacks_of_both_processes_and_a_code_of_its_own(
    forks: Runs, shards: Path, tmp_path: Path
) -> None:
    results = two(forks, "hang:1:2", arguments(shards, tmp_path, "health.hang_seconds=30"))
    assert [code for code, _ in results] == [70, 70], results
    stacks = [(tmp_path / f"hang-rank{rank}.txt").read_text() for rank in range(2)]
    assert "after step 2" in stacks[0]
    assert "trainer.py" in stacks[0]
    assert "health_worker.py" in stacks[1], "where rank 1 sleeps"
    assert all("hangs: nothing was finished" in words for _, words in results)


def test_one_process_that_is_asked_to_stop_saves_and_stops_both_and_the_run_goes_on(
    forks: Runs, shards: Path, tmp_path: Path
) -> None:
    more = ("save_every=100",)
    results = two(forks, "term:1:2", arguments(shards, tmp_path, *more))
    assert [code for code, _ in results] == [75, 75], results
    assert len(tensors(tmp_path, 2)) > 0
    assert not (tmp_path / "model").exists()
    assert "Traceback" not in "".join(words for _, words in results)


@pytest.mark.long
def test_a_process_that_does_not_answer_in_time_is_given_up_by_the_others(
    forks: Runs, shards: Path, tmp_path: Path
) -> None:
    results = two(forks, "late:1:2", arguments(shards, tmp_path, "health.collective_timeout_s=20"))
    assert [code for code, _ in results] == [1, 1], results
    for rank, (_, words) in enumerate(results):
        assert words.count(f"error: rank {rank}, after step 2: another process of the run was lost") == 1, words
        assert "Traceback" not in words


@pytest.mark.long
@pytest.mark.parametrize("name", ["deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3", "fsdp2"])
def test_other_engines_skip_what_is_not_finite_on_one_process(shards: Path, tmp_path: Path, name: str) -> None:
    config = ROOT / f"launch/accelerate/{name}.yaml"
    if name.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    launcher = ["accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            *launcher,
            "--main_process_port",
            str(free_port()),
            WORKER,
            "nan:1:2",
            *arguments(shards, tmp_path),
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    check_skipped(tmp_path, [result.stderr])
