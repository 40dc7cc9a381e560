"""`wam-video bench delays`: every delay with every way on the same starts; figures, page, and what is refused."""

import json
from pathlib import Path

import pytest

from wam_video.cli.bench import main
from wam_video.cli.bench_delays import parse_delays, parse_way
from wam_video.cli.command import run
from wam_video.data import simulation
from wam_video.errors import ConfigError
from wam_video.evaluation.delays import pace
from wam_video.testing import tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(size=32, seed=3).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(simulation.BUILT_IN, "line", "tests.unit.evaluation.line_world:LineWorld")


def _run(*arguments: object) -> int:
    return run(main, ["delays", *map(str, arguments)])


def test_delays_are_measured_with_intervals_and_drawn(model: Path, tmp_path: Path) -> None:
    common = ("--model", model, "--env", "line", "--episodes", 2, "--max-steps", 10, "--steps", 1, "--execute", 2)
    ways = ("--way", "naive", "--way", "continuation=guided", "--way", "ensemble=0.1")
    assert _run(*common, "--delays", "0-1,3", *ways, "--page", tmp_path / "page") == 0
    found = json.loads((tmp_path / "page" / "delays.json").read_text())
    assert found["command"].startswith("wam-video bench delays --model") and found["hardware"]["cpu"]
    assert len(found["model_hash"]) == 64
    cells = {(cell["delay"], cell["way"]): cell for cell in found["cells"]}
    assert len(cells) == 9 and all(cell["success"]["episodes"] == 2 for cell in cells.values())
    assert cells[1, "naive"]["execute"] == 2 and cells[3, "naive"]["execute"] is None, "a chunk of 4 leaves one"
    held = [cells[delay, "naive"]["figures"]["held_share"]["value"] for delay in (0, 1, 3)]
    assert held[0] == 0 and held[1] == pytest.approx(0.1) and held[2] > 0.3
    seam = cells[1, "continuation=guided"]["figures"]["seam_jump"]
    assert seam["low"] <= seam["value"] <= seam["high"]
    difference = cells[1, "continuation=guided"]["difference"]["seam_jump"]["value"]
    assert difference == pytest.approx(seam["value"] - cells[1, "naive"]["figures"]["seam_jump"]["value"], abs=1e-3)
    assert "Jump at a seam" in (tmp_path / "page" / "report.html").read_text()


def test_the_pace_is_the_one_asked_for_where_the_delay_leaves_it() -> None:
    assert [pace(8, delay, 4) for delay in (0, 4, 5, 7)] == [4, 4, None, None]
    assert pace(16, 8, 8) == 8 and pace(16, 9, 8) is None and pace(8, 2, None) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--delays", "0-4"), "allowed: up to 3"),
        (("--delays", "a"), "--delays is 'a'"),
        (("--delays", "3-1"), "at least one"),
        (("--execute", "0"), "execute is 0; allowed: 1 or more"),
        (("--way", "speed=2"), "--way key is 'speed'"),
        (("--way", "blend=x"), "no value for blend"),
        (("--way", "continuation=guide"), "continuation is 'guide'"),
        (("--way", "blend=1,ensemble=1"), "one of the two"),
        (("--way", "naive", "--way", "naive"), "each once"),
    ],
)
def test_what_can_not_be_is_one_line(
    model: Path, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("--model", model, "--env", "line", "--episodes", 1, *arguments) == 2
    assert words in capsys.readouterr().err


def test_delays_and_ways_are_read() -> None:
    assert parse_delays("0,2-4") == (0, 2, 3, 4)
    assert parse_way("naive").continuation is None and parse_way("blend=2").blend == 2
    with pytest.raises(ConfigError):
        parse_delays("")
