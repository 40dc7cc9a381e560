"""Saving: whatever happens to a process or its disk, a good checkpoint is there, and it is known which."""

import errno
import json
import logging
import os
import shutil
import threading
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.unit.training import disk
from tests.unit.training.disk import Killed, Together, at, files, kill, save, saved_steps, saver, together
from wam_video.errors import CheckpointError
from wam_video.training import checkpoint, durable
from wam_video.training.checkpoint import POINTS, CheckpointStore, verify
from wam_video.training.saving import Saver, SaverConfig, SavingFailedError

BACKGROUND = pytest.mark.parametrize("background", [False, True])


@pytest.fixture(autouse=True)
def _messages_reach_the_test() -> None:
    logging.getLogger("wam_video").propagate = True


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@BACKGROUND
@pytest.mark.parametrize("point", POINTS)
def test_a_process_may_die_anywhere_in_a_save(tmp_path: Path, point: str, background: bool) -> None:
    before = saver(tmp_path)
    save(before, 1, 2, 3)
    if point == "in replace":  # step 3 is damaged, so it is made and saved anew
        damage(tmp_path / "step-0000003" / "part-0.safetensors")
    dying = saver(tmp_path, at(point, kill), background=background)
    step = 3 if point == "in replace" else 4
    assert dying.newest() == tmp_path / f"step-000000{step - 1}"
    with pytest.raises(Killed):
        save(dying, step) or dying.finish()
    again = saver(tmp_path)
    newest = 4 if POINTS.index(point) >= POINTS.index("before latest") else step - 1
    assert again.newest() == tmp_path / f"step-000000{newest}"
    assert (tmp_path / "latest").read_text() == f"step-000000{max(newest, 3)}\n"
    save(again, newest + 1, 5)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".lock",
        "latest",
        *(f"step-000000{s}" for s in {newest + 1, 5} | ({4} if newest == 4 else set())),
    ]
    assert saver(tmp_path).newest() == tmp_path / "step-0000005"


@BACKGROUND
@pytest.mark.parametrize("name", ["part-0.safetensors", "rng-0.json", "COMMIT.json", "latest"])
def test_a_full_disk_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, background: bool, name: str
) -> None:
    run = saver(tmp_path, background=background)
    save(run, 1)
    run.finish()
    full, write = [True], durable._write

    def write_until_full(path: Path, *rest: object) -> object:
        if full[0] and path.name.startswith(name):
            path.write_bytes(b"half of")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, *rest)

    monkeypatch.setattr(durable, "_write", write_until_full)
    save(run, 2)
    if background:
        run._writing.exception()  # it is over
    run.poll()
    assert "no checkpoint of step 2: " in caplog.text and "No space left on device" in caplog.text
    lasting = [1, 2] if name == "latest" else [1]  # there, but `latest` does not say so
    assert saved_steps(tmp_path) == lasting
    assert verify(tmp_path / "step-0000001") is None
    assert not list(tmp_path.glob("*.tmp")) or name == "latest"
    full[0] = False
    save(run, 3)
    run.finish()
    assert saved_steps(tmp_path)[-1] == 3
    assert (tmp_path / "latest").read_text() == "step-0000003\n"


@BACKGROUND
def test_too_many_failed_saves_in_a_row_end_the_run_and_so_does_the_last_one(tmp_path: Path, background: bool) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    failing = [True]
    run = saver(tmp_path, lambda point: full() if failing[0] else None, background=background, max_failed=2)
    save(run, 1)
    failing[0] = False
    save(run, 2)
    run.finish()
    failing[0] = True
    with pytest.raises(SavingFailedError, match="the last 2 saves failed"):
        save(run, 3, 4, 5)
    assert saved_steps(tmp_path) == [2]
    other = saver(tmp_path / "other", lambda point: full(), background=background)
    save(other, 1)
    with pytest.raises(SavingFailedError, match="the last 1 saves failed"):
        other.finish()
    other.close()


def test_training_goes_on_while_a_checkpoint_is_written_and_the_next_one_waits(tmp_path: Path) -> None:
    gate, taken = threading.Event(), []
    run = saver(tmp_path, at("in a file", lambda: gate.wait(20) and None), background=True, keep_last=0)
    run.save(1, lambda: taken.append(1) or files(1))
    run.poll()
    assert taken == [1] and saved_steps(tmp_path) == []
    threading.Timer(0.2, gate.set).start()
    run.save(2, lambda: taken.append(saved_steps(tmp_path)) or files(2))
    assert taken == [1, [1]], "the second was copied before the first was on the disk"
    run.close()
    assert saved_steps(tmp_path) == [1, 2]


def test_latest_and_pruning_come_after_the_checkpoint_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saver(tmp_path, keep_last=1)
    save(run, 1)
    events, fsync, replace, rmtree = [], os.fsync, os.replace, shutil.rmtree
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(("sync", Path(os.readlink(f"/proc/self/fd/{fd}")).name)), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(("rename", Path(b).name)), replace(a, b)))
    monkeypatch.setattr(shutil, "rmtree", lambda p: (events.append(("remove", Path(p).name)), rmtree(p)))
    save(run, 2)
    order = [
        *(("sync", "part-0.safetensors"), ("sync", "rng-0.json.tmp"), ("rename", "rng-0.json")),
        *(("sync", "process-00000.done.tmp"), ("rename", "process-00000.done")),
        *(("sync", "COMMIT.json.tmp"), ("rename", "COMMIT.json"), ("sync", "step-0000002.tmp")),
        *(("rename", "step-0000002"), ("sync", tmp_path.name)),
        *(("sync", "latest.tmp"), ("rename", "latest"), ("sync", tmp_path.name)),
        *(("rename", "step-0000001.gone"), ("remove", "step-0000001.gone")),
    ]
    assert events == order


def test_what_cannot_be_removed_is_told_stays_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, rmtree = saver(tmp_path, keep_last=1), shutil.rmtree

    def stuck(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    save(run, 1)
    monkeypatch.setattr(shutil, "rmtree", stuck)
    save(run, 2)
    assert "step-0000001.gone can't be removed" in caplog.text
    assert (tmp_path / "step-0000001.gone").is_dir()
    assert saved_steps(tmp_path) == [2]
    assert run.newest() == tmp_path / "step-0000002"
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    save(run, 3)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-0000003"]


def test_a_damaged_checkpoint_is_never_kept_in_place_of_a_good_one(tmp_path: Path) -> None:
    save(saver(tmp_path), 10, 20)
    damage(tmp_path / "step-0000020" / "part-0.safetensors")
    run = saver(tmp_path, keep_last=2)
    assert run.newest() == tmp_path / "step-0000010"
    save(run, 15)
    assert {10, 15} <= set(saved_steps(tmp_path))
    save(run, 25)
    assert saved_steps(tmp_path) == [15, 25]


def test_several_processes_write_their_own_files_and_share_the_hashing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def work(group: Together) -> None:
        run = Saver(SaverConfig(background=True), CheckpointStore(tmp_path, keep_last=0), group)
        run.open()
        for step in (1, 2):
            run.save(step, lambda step=step: files(step, group.rank))
        run.finish()
        assert run.newest() == tmp_path / "step-0000002"
        run.close()

    file_hash = durable.file_hash
    monkeypatch.setattr(checkpoint, "file_hash", lambda p: (hashed.append(p.name), file_hash(p))[1])
    assert together(3, work) == [None] * 3
    names = sorted(f"{kind}" for rank in range(3) for kind in files(1, rank))
    assert sorted(json.loads((tmp_path / "step-0000002" / "COMMIT.json").read_text())["files"]) == names
    assert sorted(p.name for p in (tmp_path / "step-0000002").iterdir()) == sorted([*names, "COMMIT.json"])
    assert sorted(hashed) == names, "each file once, by one of them"
    assert verify(tmp_path / "step-0000002") is None


@pytest.mark.parametrize("case", ["full", "late", "dead folder"])
def test_a_process_that_cannot_write_takes_the_save_with_it_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    released = threading.Event()

    def trouble(point: str) -> None:
        if case == "full" and point == "in a file":
            raise OSError(errno.ENOSPC, "No space left on device")
        if case == "late" and point == "before marker":
            released.wait(20)

    def work(group: Together) -> None:
        fault = trouble if group.rank == 1 else checkpoint.no_fault
        if case == "dead folder" and group.rank == 0:
            fault = at("begun", lambda: shutil.rmtree(tmp_path / "step-0000001.tmp"))
        store = CheckpointStore(tmp_path, keep_last=0, fault=fault)
        run = Saver(SaverConfig(background=True, timeout_s=0.3), store, group)
        run.open()
        run.save(1, lambda: files(1, group.rank))
        if group.rank == 0:
            run._writing.exception()
            released.set()
        with pytest.raises(SavingFailedError):
            run.finish()
        run.close()

    assert together(2, work) == [None] * 2
    told = {
        "full": "process 1: [Errno 28] No space left",
        "late": "process 1: its files have not come in time",
        "dead folder": "is not there on process",
    }
    assert told[case] in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock"]


def test_the_newest_good_one_is_taken_and_what_is_damaged_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert saver(tmp_path).newest() is None
    run = saver(tmp_path, keep_last=0)
    save(run, 1, 2, 10)
    assert run.newest() == tmp_path / "step-0000010"
    damage(tmp_path / "step-0000010" / "part-0.safetensors")
    (tmp_path / "step-0000002" / "COMMIT.json").write_text('{"files": [')
    assert run.newest() == tmp_path / "step-0000001"
    assert "part-0.safetensors does not have the sha256" in caplog.text
    (tmp_path / "step-0000001" / "rng-0.json").unlink()
    with pytest.raises(CheckpointError, match=r"all 3 checkpoints in .* are damaged"):
        run.newest()
    assert "rng-0.json is missing" in caplog.text


def test_what_is_saved_is_read_back_by_the_library_of_the_format(tmp_path: Path) -> None:
    save(saver(tmp_path), 3)
    loaded = load_file(tmp_path / "step-0000003" / "part-0.safetensors")
    written = files(3)["part-0.safetensors"]
    assert loaded.keys() == written.keys()
    assert all(loaded[k].dtype == written[k].dtype and bool((loaded[k] == written[k]).all()) for k in loaded)


def test_faults_of_our_own_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def ours() -> None:
        raise KeyError("a mistake")

    run = saver(tmp_path, at("before marker", ours), background=True)
    save(run, 1)
    with pytest.raises(KeyError, match="a mistake"):
        run.finish()
    assert disk.saved_steps(tmp_path) == []
