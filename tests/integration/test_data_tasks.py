"""`wam-video data convert --executor`: the same shards by tasks, whatever their number and whatever stops them."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.test_data_cli import call, convert, error_line, tree
from tests.unit.data_pipelines.lerobot_fixtures import quirky_v21
from wam_video.data.manifest import load_manifest
from wam_video.data.spool import Spool
from wam_video.data.tasks import EncodeUnit

pytest.importorskip("datatrove")

SBATCH = """#!{python}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
last, = re.findall(r"--array=0-(\\d+)", script) or ["0"]
for index in range(int(last) + 1):
    tasks = {{**os.environ, "SLURM_ARRAY_TASK_ID": str(index), "SLURM_NODELIST": "here", "RUN_OFFSET": "0"}}
    subprocess.run(["bash", sys.argv[-1]], env=tasks, check=True, stdout=sys.stderr)
open({log!r}, "a").write(" ".join(re.findall(r"--(?:partition|array|job-name)=\\S+", script)) + "\\n")
print("Submitted batch job 7")
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three recordings, of which one is cut short."""
    folder = quirky_v21(tmp_path / "cloth")
    video = sorted(folder.rglob("*.mp4"))[1]
    video.write_bytes(video.read_bytes()[:200])
    return folder


@pytest.fixture
def plain(dataset: Path, tmp_path: Path) -> dict[str, bytes]:
    assert convert(dataset, tmp_path / "plain", "--name", "cloth") == 0
    assert len(load_manifest(tmp_path / "plain").skipped) == 1
    return tree(tmp_path / "plain")


def by_tasks(dataset: Path, output: Path, *more: object, executor: str = "local") -> int:
    return convert(dataset, output, "--name", "cloth", "--executor", executor, *more)


@pytest.mark.parametrize(("unit", "workers"), [(1, 2), (2, 1)])
def test_units_and_workers_do_not_change_a_byte(
    unit: int, workers: int, dataset: Path, plain: dict[str, bytes], tmp_path: Path
) -> None:
    assert by_tasks(dataset, tmp_path / "out", "--unit", unit, "--workers", workers) == 0
    assert tree(tmp_path / "out") == plain
    assert not (tmp_path / "out.spool").exists()


def test_what_is_finished_is_not_done_again(
    dataset: Path, plain: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "wam_video.cli.main", "data", "convert", dataset, "--output", output]
    command += ["--size", "32x32", "--name", "cloth", "--executor", "local", "--unit", "1"]
    running = subprocess.Popen([str(x) for x in command], stderr=subprocess.DEVNULL)
    spool = Spool(output)
    wait(lambda: 0 in spool.finished())
    running.send_signal(signal.SIGKILL)
    running.wait()
    time.sleep(1.5)  # its tasks end by themselves
    kept = {path.name: path.stat().st_ino for path in spool.folder.glob("unit-*.tar")}
    (spool.folder / ".unit-000001.elsewhere-1").write_bytes(b"half")
    assert call("status", output) == 0
    assert f"{len(kept)} of 3 units" in capsys.readouterr().out
    for unit in range(3):
        EncodeUnit(str(output))(None, unit)
    assert {path.name: path.stat().st_ino for path in spool.folder.glob("unit-*.tar")}.items() >= kept.items()
    assert by_tasks(dataset, output, "--unit", "1") == 0
    assert tree(output) == plain


def wait(done: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_another_request_does_not_go_on_with_the_units_of_the_first(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert by_tasks(dataset, output, "--unit", "0") == 2
    assert "--unit is 0" in error_line(capsys)
    assert by_tasks(dataset, output, "--executor-option", "partition=cpu") == 2
    assert "there are none for local" in error_line(capsys)
    assert call("status", output) == 2
    assert "no conversion by tasks is under way" in error_line(capsys)
    assert by_tasks(dataset, output, executor="slurm") == 2
    assert "needs --executor-option time=" in error_line(capsys)
    assert by_tasks(dataset, output, "--executor-option", "colour=red", executor="slurm") == 2
    assert "colour" in error_line(capsys)
    assert not output.exists()
    assert not Spool(output).folder.exists()


def test_slurm_encodes_the_units_and_then_assembles_them(
    dataset: Path, plain: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools, log = tmp_path / "tools", tmp_path / "submitted"
    tools.mkdir()
    scripts = {
        "sbatch": SBATCH.format(python=sys.executable, log=str(log)),
        "srun": '#!/bin/bash\nwhile [[ $1 == -* || $1 =~ ^[0-9]+$ ]]; do shift; done\nexec "$@"\n',
        "scontrol": "#!/bin/bash\necho here\n",
    }
    for name, text in scripts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    options = ["--executor-option", "partition=cpu", "--executor-option", "time=1:00:00", "--unit", "2"]
    assert by_tasks(dataset, tmp_path / "out", *options, executor="slurm") == 0
    assert tree(tmp_path / "out") == plain
    assert "--partition=cpu" in log.read_text()
    assert "_assemble" in log.read_text()
    assert call("status", tmp_path / "out") == 0


@pytest.mark.long
def test_latents_are_the_same_by_tasks_and_what_fails_is_told(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(dataset, tmp_path / "shards", "--name", "cloth") == 0
    window = ["data.window.context_stride_s=0.1", "data.window.future_stride_s=0.1"]
    encode = ["encode", tmp_path / "shards", "--codec", "pixel", "--config", *window]
    assert call(*encode, "--output", tmp_path / "plain") == 0
    assert call(*encode, "--output", tmp_path / "out", "--executor", "local", "--workers", "2") == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "plain")
    assert not (tmp_path / "out.logs").exists()
    capsys.readouterr()
    assert call(*encode, "--output", tmp_path / "out", "--executor", "local") == 2
    assert "exists already" in error_line(capsys)
    assert call(*encode, "--output", tmp_path / "new", "--executor", "local", "--part", "0/2") == 2
    assert "give no --part" in error_line(capsys)
    assert call(*encode, "data.window.num_future_frames=-1", "--output", tmp_path / "new", "--executor", "local") == 2
    assert "num_future_frames is -1" in error_line(capsys)
