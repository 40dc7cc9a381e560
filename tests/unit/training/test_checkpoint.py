import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wam_video.errors import CheckpointError, ConfigError
from wam_video.training import state
from wam_video.training.checkpoint import (
    CheckpointStore,
    check_same_run,
    read_state,
    replace_folder,
    verify,
    write_json,
)


def fill(store: CheckpointStore, step: int) -> Path:
    folder = store.begin(step)
    (folder / "model.safetensors").write_bytes(bytes([step]) * 100)
    return store.commit(step)


def test_the_newest_committed_checkpoint_is_found(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=0)
    assert store.latest() is None
    fill(store, 1)
    fill(store, 12)
    store.begin(30)  # never committed
    assert store.latest() == store.path(12)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    store = CheckpointStore(tmp_path, keep_last=0)
    fill(store, 1)
    file = fill(store, 2) / "model.safetensors"
    content = file.read_bytes()
    changed = {"flip": content[:-1] + bytes([content[-1] ^ 1]), "cut": content[:50], "remove": None}[damage]
    file.write_bytes(changed) if changed is not None else file.unlink()
    logging.getLogger("wam_video").propagate = True
    with caplog.at_level(logging.WARNING, logger="wam_video"):
        assert store.latest() == store.path(1)
    assert "model.safetensors" in caplog.text


def test_only_the_last_so_many_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (1, 2, 3):
        fill(store, step)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-0000002", "step-0000003"]
    assert verify(store.path(2)) is None


def test_a_step_is_written_again_over_what_a_crash_left(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=0)
    (store.begin(3) / "left over").write_text("x")
    assert {p.name for p in fill(store, 3).iterdir()} == {"model.safetensors", "COMMIT.json"}


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
