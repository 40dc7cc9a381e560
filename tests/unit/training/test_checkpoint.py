import json
import logging
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.training.disk import save, saver
from wam_video.errors import CheckpointError, ConfigError
from wam_video.training import state
from wam_video.training.checkpoint import check_same_run, read_state, replace_folder, verify
from wam_video.training.durable import write_json
from wam_video.training.provenance import code_versions, git_commit, tell_changes


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_what_is_damaged_is_named(tmp_path: Path, damage: str) -> None:
    save(saver(tmp_path), 2)
    file = tmp_path / "step-0000002" / "part-0.safetensors"
    assert verify(file.parent) is None
    content = file.read_bytes()
    changed = {"flip": content[:-1] + bytes([content[-1] ^ 1]), "cut": content[:50], "remove": None}[damage]
    file.write_bytes(changed) if changed is not None else file.unlink()
    told = {"flip": "does not have the sha256", "cut": "has 50 bytes instead of", "remove": "is missing"}[damage]
    assert f"part-0.safetensors {told}" in str(verify(file.parent))


@pytest.mark.parametrize("name", ["weights.pkl", "../../secret.json", "/etc/passwd", "a/b.json", "model.pt"])
def test_only_safetensors_and_json_of_the_folder_itself_are_ever_read(tmp_path: Path, name: str) -> None:
    save(saver(tmp_path), 1)
    commit = tmp_path / "step-0000001" / "COMMIT.json"
    content = json.loads(commit.read_text())
    content["files"][name] = {"bytes": 0, "sha256": "0"}
    commit.write_text(json.dumps(content))
    assert "neither safetensors nor JSON" in str(verify(commit.parent))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', '{"files": {"a.json": 1}}', "[" * 100_000, "\xff"])
def test_a_commit_that_is_none_is_damage_and_no_crash(tmp_path: Path, text: str) -> None:
    save(saver(tmp_path), 1)
    (tmp_path / "step-0000001" / "COMMIT.json").write_text(text, encoding="latin-1")
    assert "COMMIT.json" in str(verify(tmp_path / "step-0000001"))


def test_a_commit_of_a_later_protocol_is_refused_in_one_line(tmp_path: Path) -> None:
    save(saver(tmp_path), 1)
    commit = tmp_path / "step-0000001" / "COMMIT.json"
    commit.write_text(json.dumps(json.loads(commit.read_text()) | {"protocol": 99}))
    with pytest.raises(CheckpointError, match=r"protocol 99; this library reads up to 1; update wam-video$"):
        saver(tmp_path).newest()


def test_a_second_run_on_a_folder_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    held = f"import fcntl, time; f = open({str(tmp_path / '.lock')!r}, 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    (tmp_path / ".lock").write_text("process 123 on here\n")
    with subprocess.Popen([sys.executable, "-c", held], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with pytest.raises(
            CheckpointError, match="in use by process 123 on here; stop that run, or give another output_dir"
        ):
            saver(tmp_path)
        first.kill()
    save(saver(tmp_path), 1)


@pytest.mark.parametrize("obstacle", ["a file in the way", "no permission"])
def test_an_output_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path, obstacle: str) -> None:
    folder = tmp_path / "run" / "checkpoints"
    if obstacle == "a file in the way":
        folder.parent.write_text("x")
    elif os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    else:
        folder.parent.mkdir(mode=0o555)
    with pytest.raises(CheckpointError, match=r"checkpoints can't be written to .* or give another output_dir$"):
        saver(folder)


def test_neither_the_clock_nor_the_working_directory_decides_what_is_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = saver(Path("l\u00e4ufe/\u043e\u0434\u0438\u043d"), keep_last=2)
    save(run, 1)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.chdir("/")
    save(run, 2, 3)
    for age, step in enumerate((3, 2)):
        os.utime(run.newest().parent / f"step-000000{step}", (age, age))
    assert run.newest() == tmp_path / "l\u00e4ufe/\u043e\u0434\u0438\u043d/step-0000003"


def test_the_code_that_made_a_checkpoint_is_told_and_a_change_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert {"python", "wam_video", "torch", "diffusers"} < code_versions().keys()
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert git_commit(tmp_path) is None
    (git / "packed-refs").write_text(f"# pack-refs\n{'b' * 40} refs/heads/main\n")
    assert git_commit(tmp_path) == "b" * 40
    (git / "refs" / "heads" / "main").write_text("a" * 40 + "\n")
    assert git_commit(tmp_path) == "a" * 40
    logging.getLogger("wam_video").propagate = True
    tell_changes(code_versions(), code_versions())
    tell_changes({}, code_versions())
    assert not caplog.text
    tell_changes({"torch": "1.0"}, {"torch": "2.0", "av": "1"})
    assert "av none -> 1, torch 1.0 -> 2.0" in caplog.text


def test_a_changed_key_that_matters_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-0000001"
    old = {"optim": {"lr": 1e-3}, "steps": 10, "data": {"num_workers": 0}}
    free = {"optim": {"lr": 1e-3}, "steps": 20, "data": {"num_workers": 2}}
    check_same_run(old, free, {}, folder)
    with pytest.raises(ConfigError, match=r"optim\.lr is 0\.002, but .* started with 0\.001"):
        check_same_run(old, {**free, "optim": {"lr": 2e-3}}, {}, folder)


def test_a_key_that_a_later_version_added_must_stand_at_its_default(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-0000001"
    check_same_run({"seed": 0}, {"seed": 0, "new": {"key": 1}}, {"new": {"key": 1}}, folder)
    with pytest.raises(ConfigError, match=r"new\.key"):
        check_same_run({"seed": 0}, {"seed": 0, "new": {"key": 2}}, {"new": {"key": 1}}, folder)


def test_a_key_that_a_later_version_gave_datasets_must_stand_at_its_default(tmp_path: Path) -> None:
    def run(**datasets: Any) -> dict[str, Any]:
        return {"data": {"datasets": datasets}}

    folder, old = tmp_path / "checkpoints" / "step-0000001", run(arm={"path": "a"})
    check_same_run(old, run(arm={"path": "a", "episodes": 1.0, "drop_actions": 0.0}), {}, folder)
    with pytest.raises(ConfigError, match=r"arm\.episodes is 0\.5, but .* started with 1\.0"):
        check_same_run(old, run(arm={"path": "a", "episodes": 0.5}), {}, folder)
    with pytest.raises(ConfigError, match=r"hand\.episodes is 1\.0, but .* started with None"):
        check_same_run(old, run(arm={"path": "a"}, hand={"path": "b", "episodes": 1.0}), {}, folder)


def test_a_newer_checkpoint_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "state.json", {"version": 99})
    with pytest.raises(CheckpointError, match="update wam-video"):
        read_state(tmp_path)


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name, files in (("model", "ab"), ("model.tmp", "bc")):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text(name)
    replace_folder(tmp_path / "model.tmp", tmp_path / "model")
    assert {p.name: p.read_text() for p in (tmp_path / "model").iterdir()} == {"b": "model.tmp", "c": "model.tmp"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_random_states_come_back() -> None:
    saved = state._random_state()
    drawn = (random.random(), np.random.rand(), torch.rand(()).item())
    state._set_random_state(saved)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == drawn
