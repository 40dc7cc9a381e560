"""Figures of a card come from metrics.json alone."""

import json
from pathlib import Path

import pytest

from wam_video.cli.card import main
from wam_video.cli.command import DONE, WRONG_REQUEST, run
from wam_video.evaluation.card import BEGIN, END, PART, PART_END, figures, fill

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
    check = {
        "name": "forward_uses_actions",
        "embodiment": "arm",
        "metric": "psnr_moving",
        "status": "yes",
        "flag": None,
    }
    study = {"name": "drift", "checks": [{"status": "no", "flag": "it drifts"}, {"status": "unknown", "flag": None}]}
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
        "studies": [study],
    }
    return {"settings": {"seed": 0}, "models": [model | changes]}


def test_each_mode_stands_beside_its_controls() -> None:
    made = figures(document(), "tiny").splitlines()
    assert "| policy | R2 0.500 (0.100 to 0.900) | last action again 0.250 |" in made
    assert "| forward | 14.00 dB (0.10 to 0.90) |  |" in made
    assert not [line for line in made if "0.77" in line or "0.66" in line or line.startswith("| inverse")]
    assert made[0].startswith("1,234,567 parameters; 9 windows of 3 episodes of `toy`")
    assert "arm: forward with the true actions is better than with another window's by 2.00 dB." in made
    assert made[-2:] == ["- modes: 1 of 1 checks hold", "- study drift: 0 of 1 checks hold; not: it drifts"]


def rollout(**changes: object) -> dict:
    rate = {"successes": 3, "episodes": 4, "wilson": [0.3, 0.95]}
    clocks = {"num_inference_steps": 1, "policy_path": "absent"}
    model = {"name": "tiny", "kind": "model", "model_hash": "0" * 64, "clocks": clocks, "replan_interval_s": 0.4}
    model |= {"tasks": {"lift": rate}, "success": rate}
    control = {"name": "hold", "kind": "control", "tasks": {"lift": rate | {"successes": 0}}, "success": rate}
    settings = {"env": "toy", "episodes_per_task": 4, "max_steps": 9, "action_rate": 10.0, "seed": 7, "tasks": ["lift"]}
    return {"settings": settings, "policies": [model, control]} | changes


def test_a_rollout_has_a_place_of_its_own(tmp_path: Path) -> None:
    begin, end = PART.format("rollout", "toy"), PART_END.format("rollout")
    (tmp_path / "README.md").write_text(f"above\n{begin}\n{end}\nbelow\n")
    (tmp_path / "rollout.json").write_text(json.dumps(rollout()))
    assert run(main, [str(tmp_path), "--rollout", f"toy={tmp_path / 'rollout.json'}"]) == DONE
    card = (tmp_path / "README.md").read_text()
    assert "| lift | 3/4 (30 to 95 %) | 0/4 (30 to 95 %) |" in card and card.endswith("below\n")
    assert json.loads((tmp_path / "rollout_toy.json").read_text()) == rollout()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--rollout", "rollout.json"], "must be NAME=FILE"),
        (["--rollout", "other=rollout.json"], "no place for figures"),
        (["--rollout", "toy=none.json"], "is no file"),
        (["--rollout", "toy=rollout.json", "--metrics", "metrics.json"], "one of them at a time"),
    ],
)
def test_a_wrong_record_is_one_line(
    given: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text(f"{PART.format('rollout', 'toy')}{PART_END.format('rollout')}")
    Path("rollout.json").write_text(json.dumps(rollout()))
    assert run(main, [".", *given]) != DONE
    assert message in capsys.readouterr().err


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


def ranking() -> dict:
    ends = {"low": 0.4, "high": 0.95, "num_windows": 8, "num_episodes": 8}
    rate = {"successes": 6, "episodes": 8}
    measures = [
        {"condition": "model", "of": "success", "measure": name, "value": value} | ends
        for name, value in (("pearson", 0.9), ("spearman", 0.8), ("mmrv", None))
    ]
    policies = [
        {"name": "one", "variant": "steps=1", "success": rate, "progress": 0.81, "model_hash": "1" * 64}
        | {"model": {"success": None, "progress": 0.73}}
    ]
    settings = {"env": "toy", "seed": 7}
    world = {"model_hash": "0" * 64}
    return {"policies": policies, "settings": settings, "starts": ["a"] * 8, "measures": measures, "world_model": world}


def test_a_ranking_has_a_place_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"{PART.format('rank', 'toy')}\n{PART_END.format('rank')}\n")
    (tmp_path / "rank.json").write_text(json.dumps(ranking()))
    assert run(main, [str(tmp_path), "--rank", f"toy={tmp_path / 'rank.json'}"]) == DONE
    card = (tmp_path / "README.md").read_text()
    assert (
        "| success: imagined by the world model | 0.9 (0.4 to 0.95) | 0.8 (0.4 to 0.95) | all policies look alike |"
        in card
    )
    assert "| one (steps=1) | 6 of 8 | - | 81 % | 73 % |" in card
    assert (tmp_path / "rank_toy.json").is_file()
    (tmp_path / "rank.json").write_text("{}")
    assert run(main, [str(tmp_path), "--rank", f"toy={tmp_path / 'rank.json'}"]) == WRONG_REQUEST
