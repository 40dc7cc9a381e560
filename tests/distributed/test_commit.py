"""Runs that are killed for real in the middle of a save, whose disk is full, whose saves overlap: nothing is lost.

Every run trains on shards, in processes of its own (`runs`). What it must end with is what an undisturbed one ends with, to the bit.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.forked import Runs
from tests.unit.training.fakes import differing
from wam_video.training.checkpoint import POINTS, verify

ROOT = Path(__file__).resolve().parents[2]
KILLED = -signal.SIGKILL
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def runs(forks: Runs) -> Runs:
    """The forked runs, after one that nothing disturbs."""
    assert forks("whole") == [0], forks.log("whole")
    return forks


def kill(point: str, save: int = 2) -> dict[str, Any]:
    return {"point": point, "save": save, "act": "kill"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", [point for point in POINTS if point != "in replace"])
def test_a_run_killed_in_a_save_goes_on_from_the_newest_committed_checkpoint(runs: Runs, point: str) -> None:
    name, background = f"killed {point}", POINTS.index(point) % 2 == 0
    kept = 1 if point == "in prune" else 2  # or there is nothing to remove yet
    assert runs(name, {"faults": {"0": kill(point)}}, async_save=background, keep_last=kept) == [KILLED]
    newest = 4 if POINTS.index(point) >= POINTS.index("before latest") else 2
    assert max(runs.steps(name)) == newest
    assert runs(name, async_save=not background) == [0], runs.log(name)
    assert f"from step {newest}" in runs.log(name)
    assert not differing(runs.end(name), runs.end("whole"))
    assert sorted(p.name for p in (runs.folder / name / "checkpoints").iterdir()) == [
        *(".lock", "latest", "step-0000004", "step-0000006")
    ]


@pytest.mark.timeout(300)
def test_a_run_killed_while_it_replaces_a_damaged_checkpoint_falls_back_again(runs: Runs) -> None:
    assert runs("replaced", steps=4) == [0]
    file = sorted((runs.folder / "replaced" / "checkpoints" / "step-0000004").glob("*.safetensors"))[0]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert runs("replaced", {"faults": {"0": kill("in replace", save=1)}}) == [KILLED]
    assert runs("replaced") == [0], runs.log("replaced")
    assert runs.log("replaced").count(f"{file.name} does not have the sha256") == 2
    assert runs.log("replaced").count("from step 2") == 2
    assert runs.steps("replaced") == [4, 6]
    assert not differing(runs.end("replaced"), runs.end("whole"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("disk", ["limit", "tmpfs"])
def test_a_full_disk_is_an_alarm_and_training_goes_on(runs: Runs, disk: str, background: bool) -> None:
    name = f"full {disk} {background}"
    job = {"full": {"disk": disk, "from": 3, "to": 5}}
    codes = runs(name, job, async_save=background)
    if codes == [77]:
        pytest.skip("mounting a small disk needs root")
    assert codes == [0], runs.log(name)
    told = {"limit": "[Errno 27] File too large", "tmpfs": "[Errno 28] No space left on device"}[disk]
    assert f"ALARM: no checkpoint of step 4: {told}" in runs.log(name)
    assert json.loads((runs.folder / f"{name}.full").read_text()) == ["step-0000002"], "and no partial one"
    assert "step 6  saved" in runs.log(name)
    assert not differing(runs.end(name), runs.end("whole"))


@pytest.mark.timeout(300)
def test_a_disk_that_stays_full_ends_the_run_and_the_last_checkpoint_is_good(runs: Runs) -> None:
    job = {"full": {"disk": "limit", "from": 3, "to": 100}}
    assert runs("filled", job, async_save=True, save_every=1, max_failed_saves=2) == [1]
    assert "SavingFailedError: the last 2 saves failed" in runs.log("filled")
    assert runs.steps("filled") == [1, 2]
    assert runs("filled", save_every=1) == [0]
    assert not differing(runs.end("filled"), runs.end("whole"))


@pytest.mark.timeout(300)
def test_saves_slower_than_their_interval_are_all_made_and_an_end_waits_for_the_last(runs: Runs) -> None:
    slow = {"faults": {"0": {"point": "in a file", "save": 0, "act": "0.05"}}}
    assert runs("slow", slow | {"stop_at": 4}, async_save=True, save_every=1, keep_last=0) == [0]
    assert runs.steps("slow") == [1, 2, 3, 4]
    assert runs("slow", slow, async_save=True, save_every=1, keep_last=0) == [0]
    assert runs.steps("slow") == [1, 2, 3, 4, 5, 6]
    assert not differing(runs.end("slow"), runs.end("whole"))


@pytest.mark.long  # four workers import torch anew, twice
@pytest.mark.timeout(600)
def test_twenty_steps_are_ten_a_kill_and_ten_with_four_workers_and_saves_in_the_background(runs: Runs) -> None:
    assert runs("twenty", steps=20, save_every=100) == [0]
    long = {"steps": 20, "save_every": 10, "async_save": True}
    assert runs("ten", {"workers": 4, "kill_at": 17}, **long) == [KILLED]
    assert runs.steps("ten") == [10]
    assert runs("ten", {"workers": 4}, **long) == [0], runs.log("ten")
    assert "from step 10" in runs.log("ten")
    assert not differing(runs.end("ten"), runs.end("twenty"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("rank", "point"), [(0, "before rename"), (1, "in a file")])
def test_one_of_two_processes_killed_in_a_save_behind_the_run_loses_nothing(runs: Runs, rank: int, point: str) -> None:
    name, two = f"two {rank}", {"processes": 2}
    if not (runs.folder / "two.end0").exists():
        assert runs("two", two, batch_size=2) == [0, 0], runs.log("two")
    codes = runs(name, two | {"faults": {str(rank): kill(point)}}, batch_size=2, async_save=True, save_timeout_s=20)
    assert codes[rank] == KILLED and codes[1 - rank] != 0
    assert runs.steps(name) == [2]
    assert runs(name, two, batch_size=2, async_save=True) == [0, 0], runs.log(name)
    for each in range(2):
        assert not differing(runs.end(name, each), runs.end("two", each))
    assert runs.steps(name) == [4, 6]


@pytest.mark.timeout(300)
def test_odd_environments_change_nothing(runs: Runs, tmp_path: Path) -> None:
    """Another working directory, the C locale, letters beyond ASCII in paths, shards that can't be written."""
    output, data = tmp_path / "l\u00e4ufe \u043e\u0434\u0438\u043d", runs.folder / "toy"
    modes = {path: path.stat().st_mode for path in [data, *data.iterdir()]}
    for path in modes:
        path.chmod(0o555 if path.is_dir() else 0o444)
    model = "num_layers=1 num_attention_heads=2 attention_head_dim=8 ffn_dim=32 patch_size=[1,1,1] freq_dim=16"
    short = "steps=2 batch_size=2 optim.warmup_steps=1 eval_every=0 trackers=[] text.d_model=16 text.num_layers=1"
    more = [
        *(f"model.{key}" for key in model.split()),
        *short.split(),
        "text.num_heads=2",
        "data.window.action_horizon=4",
    ]
    command = [sys.executable, "-m", "wam_video.cli.train", f"data.datasets.toy.path={data}", f"output_dir={output}"]
    locale = {"LC_ALL": "C", "LANG": "C", "TZ": "Asia/Kolkata"}
    try:
        ended = subprocess.run(
            [*command, *more, "async_save=true"],
            cwd="/",
            env=os.environ | locale | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert ended.returncode == 0, ended.stderr
    assert verify(output / "checkpoints" / "step-0000002") is None
    assert (output / "model" / "model_index.json").is_file()


def test_two_processes_save_where_they_are_when_one_of_them_has_no_more_data(runs: Runs) -> None:
    job = {"processes": 2, "dry_after": {"1": 3}}
    assert runs("dry", job, batch_size=2, save_every=100) == [1, 1]
    assert runs.steps("dry") == [3]
    assert "TrainingFailedError: another process can't read its data" in runs.log("dry")
    assert "DataWorkerError: a process that decodes data is gone" in runs.log("dry", 1)
