"""Cells of an ablation: kept when finished, gone on with when not, refused when their settings changed, named when they fail."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from wam_video.cli.ablate_cells import Runner, is_finished, read_marker
from wam_video.cli.ablate_spec import AblationConfig, Plan
from wam_video.config import load
from wam_video.errors import ConfigError

STEP = """
import os, sys
from pathlib import Path
print("threads", os.environ["OMP_NUM_THREADS"])
product, how = Path(sys.argv[1]), sys.argv[2]
if how == "fail":
    sys.exit("it broke")
if how != "stop":
    product.parent.mkdir(parents=True, exist_ok=True)
    product.write_text("made")
"""


@pytest.fixture(autouse=True)
def _step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake_step.py").write_text(STEP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def make(output: Path, name: str = "a", evaluate: str = "work", resolved: Mapping[str, Any] | None = None) -> Plan:
    folder = output / name / "seed0"
    commands = {
        "train": ("fake_step", str(folder / "train/model/model_index.json"), "work"),
        "evaluate": ("fake_step", str(folder / "evaluation/episodes.json"), evaluate),
    }
    return Plan(variant=name, seed=0, folder=folder, resolved=resolved or {"train": {"lr": 0.1}}, commands=commands)


def runs(plan: Plan, step: str) -> int:
    return (plan.folder / f"{step}.log").read_text().count("$ ")


def test_a_finished_cell_is_not_run_again(tmp_path: Path) -> None:
    plans = [make(tmp_path, name) for name in "abc"]
    assert Runner(2, 3).run(plans) == [] == Runner(2, 3).run(plans)
    assert all(is_finished(p) and runs(p, "train") == runs(p, "evaluate") == 1 for p in plans)
    assert "threads 3" in (plans[0].folder / "train.log").read_text()
    assert set(read_marker(plans[0])["seconds"]) == {"train", "evaluate"}


@pytest.mark.parametrize(("how", "words"), [("fail", "exit code 1: it broke"), ("stop", "stopped before it was done")])
def test_a_half_done_cell_is_named_and_goes_on(tmp_path: Path, how: str, words: str) -> None:
    plans = [make(tmp_path, "a", how), make(tmp_path, "b")]
    (failure,) = Runner(1, 1).run(plans)
    assert failure.plan.name == "a/seed0" and words in failure.reason
    assert not is_finished(plans[0]) and is_finished(plans[1])
    again = make(tmp_path, "a")
    assert Runner(1, 1).run([again]) == []
    assert (runs(again, "train"), runs(again, "evaluate")) == (1, 2)


def test_a_lost_file_is_made_again(tmp_path: Path) -> None:
    plan = make(tmp_path)
    Runner(1, 1).run([plan])
    (plan.folder / "evaluation/episodes.json").unlink()
    assert not is_finished(plan)
    assert Runner(1, 1).run([plan]) == [] and (runs(plan, "train"), runs(plan, "evaluate")) == (1, 2)


def test_changed_settings_are_told_by_name(tmp_path: Path) -> None:
    Runner(1, 1).run([make(tmp_path)])
    with pytest.raises(ConfigError, match=r"a/seed0.*train\.lr was 0\.1, is 0\.2; set them back"):
        is_finished(make(tmp_path, resolved={"train": {"lr": 0.2}}))


def test_after_a_request_to_stop_nothing_is_started(tmp_path: Path) -> None:
    runner = Runner(1, 1)
    runner.stop()
    (failure,) = runner.run([make(tmp_path)])
    assert "not started" in failure.reason and not is_finished(make(tmp_path))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("variants={}", "variants or seeds are empty"),
        ("reference=c", "reference is 'c'; allowed: a, b"),
        ("seeds=[0,0]", "different numbers"),
        ("overrides=[seed=3]", "an ablation sets it for each run"),
        ("metrics=[rollout.success]", "needs a simulator"),
        ("evaluate.modes=[polcy]", "Did you mean 'policy'"),
        ("statistics.family=some", "allowed: all, metric"),
    ],
)
def test_a_wrong_request_is_refused(setting: str, words: str, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("variants: {}\n" if setting == "variants={}" else "variants: {a: [], b: []}\n")
    with pytest.raises(ConfigError, match=words):
        load(AblationConfig, [spec, setting])
