"""Figures of a card come from metrics.json alone."""

import json
from pathlib import Path

import pytest

from wam_video.cli.card import main
from wam_video.cli.command import DONE, WRONG_REQUEST, run
from wam_video.evaluation.card import BEGIN, END, figures, fill

ROW = {"embodiment": "arm", "dimension": None, "time_s": None, "low": 0.1, "high": 0.9}


def document(**changes: object) -> dict:
    row = dict(ROW, mode="policy", condition="model", metric="r2", value=0.5)
    rows = [
        row,
        dict(row, time_s=0.2, value=0.77),
        dict(row, dimension="x", value=0.66),
        dict(row, mode="control", condition="hold_last", value=0.25, low=None, high=None),
        dict(row, mode="forward", metric="psnr_moving", value=14.0),
    ]
    check = {"name": "forward_uses_actions", "embodiment": "arm", "metric": "psnr_moving"}
    model = {
        **{
            "name": "tiny",
            "model_hash": "0" * 64,
            "num_parameters": 1234567,
            "num_inference_steps": 8,
            "solver": "euler",
        },
        "data": {
            "dataset": "toy",
            "split": "val",
            "num_windows": 9,
            "num_episodes": 3,
            "windows_per_embodiment": {"arm": 9},
        },
        "rows": rows,
        "checks": [check | {"advantage": {"value": 2.0, "low": None, "high": None}}],
    }
    return {"settings": {"seed": 0}, "models": [model | changes]}


def test_each_mode_stands_beside_its_controls() -> None:
    made = figures(document(), "tiny").splitlines()
    assert "| policy | R2 0.500 (0.100 to 0.900) | last action again 0.250 |" in made
    assert "| forward | 14.00 dB (0.10 to 0.90) |  |" in made
    assert not [line for line in made if "0.77" in line or "0.66" in line or line.startswith("| inverse")]
    assert made[0].startswith("1,234,567 parameters; 9 windows of 3 episodes of `toy`")
    assert made[-1] == "arm: forward with the true actions is better than with another window's by 2.00 dB."


def test_only_what_stands_between_the_markers_changes() -> None:
    text = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    assert fill(text, "new") == f"above\n{BEGIN}\n\nnew\n\n{END}\nbelow\n"
    assert fill(fill(text, "old"), "new") == fill(text, "new")


def test_a_card_is_filled_and_its_figures_laid_beside_it(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "README.md").write_text(f"{BEGIN}\n{END}\n")
    (tmp_path / "new.json").write_text(json.dumps(document()))
    assert run(main, [str(tmp_path / "tiny"), "--metrics", str(tmp_path / "new.json")]) == DONE
    filled = (tmp_path / "tiny" / "README.md").read_text()
    assert "R2 0.500" in filled
    assert run(main, [str(tmp_path / "tiny")]) == DONE
    assert (tmp_path / "tiny" / "README.md").read_text() == filled


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "README.md' is no file"),
        ({"README.md": f"{BEGIN}{END}"}, "metrics.json' is no file"),
        ({"README.md": "words", "metrics.json": json.dumps(document())}, "no place for figures"),
        ({"README.md": f"{BEGIN}{END}", "metrics.json": "{"}, "not valid JSON"),
        ({"README.md": f"{BEGIN}{END}", "metrics.json": "{}"}, "lack 'models'"),
        ({"README.md": f"{BEGIN}{END}", "metrics.json": "[]"}, "lack"),
        ({"README.md": f"{BEGIN}{END}", "metrics.json": json.dumps({"models": [{"name": "a"}, {"name": "b"}]})}, "are of a, b"),
        ({"README.md": f"{BEGIN}{END}", "metrics.json": json.dumps(document()), "model_index.json": "{}"}, "with hash"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_and_changes_nothing(
    files: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert run(main, [str(tmp_path)]) == WRONG_REQUEST
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == files
