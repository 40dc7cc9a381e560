"""The command `train` as a user meets it: killed and started again, asked to stop, asked what it would do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.integration.terminal import strangers
from wam_video.cli import train as command
from wam_video.cli.command import run
from wam_video.data.schema import EmbodimentSpec
from wam_video.inference.pipeline import WAMPipeline
from wam_video.testing import fake_shards
from wam_video.training import trainer, watchdog
from wam_video.training.engines import Engine

ROOT = Path(__file__).resolve().parents[2]
STATE_FILES = ("model-00000.safetensors", "ema-00000.safetensors", "optimizer-00000.safetensors")
LAST = "step-0000012"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    body = EmbodimentSpec(name="arm", action_dim=2, state_dim=2, views=("front",), fps=5.0, action_rate=10.0)
    return fake_shards(tmp_path_factory.mktemp("data") / "toy", [body])


def arguments(shards: Path, output: Path, *more: str) -> list[str]:
    model = "num_layers=1 num_attention_heads=2 attention_head_dim=8 ffn_dim=32 patch_size=[1,1,1] freq_dim=16"
    return [
        *(f"data.datasets.toy.path={shards}", f"output_dir={output}", "data.window.action_horizon=4"),
        *(f"model.{setting}" for setting in model.split()),
        *("text.d_model=16", "text.num_layers=1", "text.num_heads=2", "text.max_length=16"),
        *(
            "steps=12",
            "batch_size=4",
            "optim.warmup_steps=2",
            "save_every=3",
            "eval_every=0",
            "log_every=4",
            "trackers=[]",
        ),
        *more,
    ]


def start(shards: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "wam_video.cli.train", *arguments(shards, output, *more)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 280.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, f"ended with {process.returncode} before {path.name}: {process.stderr.read()}"
        assert time.monotonic() < end, f"{path.name} did not come in {seconds} s"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    assert run(command.main, arguments(shards, output, "eval_every=6", "trackers=[tensorboard]")) == 0
    return output


def state_bytes(output: Path) -> dict[str, bytes]:
    return {name: (output / "checkpoints" / LAST / name).read_bytes() for name in STATE_FILES}


def test_a_run_leaves_what_its_user_needs(whole: Path) -> None:
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "model", "checkpoints"} == {p.name for p in whole.iterdir()}
    steps = [json.loads(line)["step"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert {4, 6, 8, 12} == set(steps)
    assert len(list((whole / "checkpoints").glob("step-*"))) == 2


def test_the_exported_folder_loads_as_a_pipeline(whole: Path) -> None:
    pipeline = WAMPipeline.from_pretrained(whole / "model")
    assert pipeline.processor.index("arm") == 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_started_again_ends_with_the_same_bits(
    shards: Path, whole: Path, tmp_path: Path, workers: int
) -> None:
    more = (f"data.num_workers={workers}",)
    first = start(shards, tmp_path, *more)
    wait_for(tmp_path / "checkpoints" / "step-0000003", first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "model").exists(), "the run was over before it was killed"
    second = start(shards, tmp_path, *more)
    _, said = second.communicate(timeout=280)
    assert second.returncode == 0, said
    assert "resuming" in said
    assert state_bytes(tmp_path) == state_bytes(whole)


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_saves_and_goes(shards: Path, tmp_path: Path) -> None:
    process = start(shards, tmp_path, "steps=100000", "save_every=100000", "log_every=1")
    wait_for(tmp_path / "metrics.jsonl", process)
    while not (tmp_path / "metrics.jsonl").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=280)
    assert process.returncode == 75, said
    assert "SIGTERM" in said
    (folder,) = (tmp_path / "checkpoints").glob("step-*")
    assert (folder / "COMMIT.json").is_file()


def test_a_finished_run_started_again_has_nothing_to_do_and_only_we_tell_of_it(shards: Path, whole: Path) -> None:
    before, lines = state_bytes(whole), (whole / "metrics.jsonl").read_text()
    process = start(shards, whole, "eval_every=6", "trackers=[]")
    said = process.communicate(timeout=280)[1]
    assert process.returncode == 0, said
    assert "exported" in said
    assert strangers(said) == [], "bars and warnings of the libraries beneath"
    assert state_bytes(whole) == before
    assert (whole / "metrics.jsonl").read_text() == lines


def test_a_changed_setting_is_refused_in_one_line(
    shards: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command.main, arguments(shards, whole, "batch_size=8")) == 2
    said = capsys.readouterr().err
    assert "error: batch_size is 8" in said
    assert "Traceback" not in said


def test_a_dry_run_shows_the_configuration_and_the_size_and_writes_nothing(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command.main, [*arguments(shards, tmp_path / "out"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "num_layers: 1" in said
    assert "parameters in the network (with the embodiments of the data)" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("optim.lrr=1", "Did you mean 'lr'?"),
        ("data.datasets.toy.path=/no/such/folder", "/no/such/folder"),
        ("model.patch_size=[1,3,3]", "allowed: multiples of 24"),
        ("init_from=/no/such/folder", "transformer/config.json"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, told: str
) -> None:
    output = tmp_path / "out"
    assert run(command.main, arguments(shards, output, more)) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said
    assert not output.exists()


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"WORLD_SIZE": "two"}, "the environment's WORLD_SIZE is 'two'; allowed: 1 or more"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2, but MASTER_ADDR is not set"),
    ],
)
def test_an_odd_environment_is_told_in_one_line(
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    told: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run(command.main, arguments(shards, tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert told in said
    assert len(said.strip().splitlines()) == 1, said


def test_memory_that_is_not_there_is_told_in_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")

    monkeypatch.setattr(Engine, "sum", full)
    assert run(command.main, arguments(shards, tmp_path / "out")) == 1
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "out of memory; lower batch_size" in told
    assert told.endswith("(CUDA out of memory. Tried to allocate 2.00 GiB.)")


def test_a_model_that_takes_long_to_build_is_not_called_a_hang(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    barks, build, work = [], trainer.Trainer.__init__, trainer.Trainer.run

    def slowly(*arguments: object, **options: object) -> None:
        time.sleep(1.0)  # as a download would
        build(*arguments, **options)

    def at_last(*arguments: object) -> None:
        assert barks == []
        time.sleep(1.0)
        work(*arguments)

    monkeypatch.setattr(watchdog.Watchdog, "_end", lambda *_: barks.append("hangs"))
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback_later", lambda *_, **__: None)
    monkeypatch.setattr(trainer.Trainer, "__init__", slowly)
    monkeypatch.setattr(trainer.Trainer, "run", at_last)
    more = ("health.hang_seconds=0.5", "steps=3")
    assert run(command.main, arguments(shards, tmp_path / "out", *more)) == 0
    assert barks, "training itself is watched"


@pytest.mark.slow
def test_a_decoding_process_that_is_killed_is_told_in_one_line_and_a_checkpoint_is_written(
    shards: Path, tmp_path: Path
) -> None:
    more = ("data.num_workers=1", "save_every=100000", "log_every=1", "steps=100000")
    process = start(shards, tmp_path / "cut", *more)
    wait_for(tmp_path / "cut" / "metrics.jsonl", process)
    while not (tmp_path / "cut" / "metrics.jsonl").read_text():
        time.sleep(0.01)
    for child in psutil.Process(process.pid).children(recursive=True):
        if "multiprocessing.forkserver" in " ".join(child.cmdline()):
            for worker in child.children():
                worker.kill()
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 1, said
    assert "Traceback" not in said
    (told,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert "a process that decodes data is gone" in told
    assert "lower data.num_workers" in told
    done = json.loads((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert (tmp_path / "cut" / "checkpoints" / f"step-{done:07d}" / "COMMIT.json").is_file()
