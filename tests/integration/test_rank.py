"""`wam-video rank` from checkpoint folders to the page, in a world of the tests."""

import json
import re
from pathlib import Path

import pytest

from wam_video.cli import rank as command
from wam_video.cli.command import run
from wam_video.data import simulation
from wam_video.testing import tiny_pipeline

VARIANTS = ("", ":steps=1", ":path=absent", ":noise=0.5", ":noise=2", ":steps=1,noise=9")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(size=32, seed=3).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(simulation.BUILT_IN, "line", "tests.unit.evaluation.line_world:LineWorld")


def _rank(model: Path, out: Path, variants: tuple[str, ...] = VARIANTS, **options: object) -> int:
    arguments = ["--world-model", model, "--env", "line:near,far", "--output", out, "--device", "cpu"]
    for i, variant in enumerate(variants):
        arguments += ["--policy", f"p{i}={model}{variant}"]
    settings = {"episodes": 2, "judge_episodes": 1, "max_steps": 8, "rows": 4, "films": 2, "steps": 1} | options
    for name, value in settings.items():
        arguments += [f"--{name.replace('_', '-')}", value]
    return run(command.main, [str(a) for a in arguments])


def _without_times(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in ("timing", "command", "commit")}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def test_a_ranking_leaves_a_record_a_page_and_films_the_same_every_time(model: Path, tmp_path: Path) -> None:
    records = []
    for name in "ab":
        assert _rank(model, tmp_path / name) == 0
        records.append(json.loads((tmp_path / name / "rank.json").read_text()))
    first, again = (_without_times(record) for record in records)
    assert first == again
    assert [p["name"] for p in first["policies"]] == [f"p{i}" for i in range(6)]
    assert first["policies"][5]["variant"] == "steps=1, noise=9"
    assert first["policies"][5]["clocks"]["num_inference_steps"] == 1
    assert len(first["starts"]) == 4
    figures = {(m["condition"], m["of"], m["measure"]): m["value"] for m in first["measures"]}
    assert figures["frozen", "progress", "pearson"] is None
    assert figures["frozen", "progress", "mmrv"] >= 0
    assert {condition for condition, _, _ in figures} == {"model", "judge", "shuffled", "frozen"}
    # no policy succeeds: nothing is said of an order by success
    assert {kind for _, kind, _ in figures} == {"progress"}
    assert "the order by success" in [x["metric"] for x in first["left_out"]]
    # this model knows nothing of the world: it must not be said to rank better than a broken one
    assert all(c["status"] != "yes" for c in first["checks"] if c["metric"].endswith("progress"))
    page = (tmp_path / "a" / "report.html").read_text()
    assert "come &lt;home&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert len(list((tmp_path / "a" / "films").iterdir())) == 6


def test_wrong_requests_are_told_in_one_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _rank(model, tmp_path / "out", VARIANTS[:5]) == 2
    assert "there are 5 policies" in capsys.readouterr().err
    assert _rank(model, tmp_path / "out", execute=3) == 2
    assert "execute is 3; the world model has pictures after" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
