"""`wam-video ablate`: trained, scored, compared; gone on with; refused where it was made with other settings."""

import json
from pathlib import Path

import pytest
import yaml

from wam_video.cli import ablate as command
from wam_video.cli.card import main as card
from wam_video.cli.command import DONE, FAILED, WRONG_REQUEST, run
from wam_video.data.schema import EmbodimentSpec
from wam_video.testing import fake_shards

ARM = EmbodimentSpec(name="arm", action_dim=2, state_dim=2, views=("front",), fps=5.0, action_rate=10.0)
MODEL = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "ffn_dim": 32, "patch_size": [1, 1, 1]}
PLACE = "# Card\n\n<!-- ablation tiny: made by `wam-video card` -->\n<!-- end of ablation -->\n"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    shards = fake_shards(folder / "toy", [ARM], episodes=8)
    settings = {
        "data": {"datasets": {"toy": {"path": str(shards)}}, "window": {"action_horizon": 4}},
        "model": MODEL | {"freq_dim": 16},
        "text": {"d_model": 16, "num_layers": 1, "num_heads": 2, "max_length": 16},
        "optim": {"warmup_steps": 1},
        **{"steps": 4, "batch_size": 4, "save_every": 2, "eval_every": 0, "trackers": []},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    ablation = {
        "configs": [str(folder / "run.yaml")],
        "variants": {"plain": [], "shared": ["density.name=shared"]},
        "seeds": [0, 1],
        "evaluate": {"windows": 6, "steps": 1},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(ablation))
    return path


@pytest.fixture(scope="module")
def done(spec: Path) -> Path:
    output = spec.parent / "out"
    assert ablate(spec, "--output", output, "--jobs", 2) == DONE
    return output


def ablate(*arguments: object) -> int:
    return run(command.main, [str(a) for a in arguments])


def test_every_cell_is_trained_scored_and_compared(done: Path, tmp_path: Path) -> None:
    document = json.loads((done / "ablation.json").read_text())
    assert [(c["variant"], c["seed"]) for c in document["cells"]] == [
        ("plain", 0),
        ("shared", 0),
        ("plain", 1),
        ("shared", 1),
    ]
    assert document["name"] == "tiny" and document["reference"] == "plain" and not document["missing"]
    assert len({c["model_hash"] for c in document["cells"]}) == 4
    for cell in document["cells"]:
        metrics = json.loads((done / cell["variant"] / f"seed{cell['seed']}" / "evaluation/metrics.json").read_text())
        rows = {
            f"{r['mode']}.{r['metric']}": r["value"]
            for r in metrics["models"][0]["rows"]
            if r["condition"] == "model" and r["dimension"] is None and r["time_s"] is None and r.get("view") is None
        }
        figures = {f["metric"]: f["value"] for f in cell["figures"]}
        assert len(figures) == 8
        advantage = next(c for c in metrics["models"][0]["checks"] if c["name"] == "forward_uses_actions")["advantage"]
        assert figures.pop("forward.psnr_moving-shuffled_actions") == pytest.approx(advantage["value"], rel=1e-9)
        for name, value in figures.items():
            # actions are divided by one scale for all cells; the shards' statistics are the same here
            assert value == pytest.approx(rows[name], rel=1e-9), name
    assert {d["variant"] for d in document["differences"]} == {"shared"} and len(document["differences"]) == 8
    page = (done / "report.html").read_text()
    assert page.count("<svg") >= 8 and "http://" not in page and "https://" not in page
    (tmp_path / "README.md").write_text(PLACE)
    assert run(card, [str(tmp_path), "--ablation", str(done / "ablation.json")]) == DONE
    assert "| policy, NRMSE, arm |" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "ablation_tiny.json").read_bytes() == (done / "ablation.json").read_bytes()


def test_what_is_finished_is_kept_and_what_is_not_goes_on(
    done: Path, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = done / "plain" / "seed0"
    before = json.loads((done / "ablation.json").read_text())
    weights = (cell / "train/model/model_index.json").stat().st_mtime_ns
    (cell / "evaluation" / "episodes.json").unlink()
    capsys.readouterr()
    assert ablate(spec, "--output", done, "--dry-run") == DONE
    shown = capsys.readouterr().out
    assert "# plain/seed0: to do" in shown and shown.count(": finished") == 3
    assert ablate(spec, "--output", done) == DONE
    assert (cell / "train/model/model_index.json").stat().st_mtime_ns == weights
    assert (cell / "train.log").read_text().count("$ ") == 1 and (cell / "evaluate.log").read_text().count("$ ") == 2
    assert (done / "shared/seed0/evaluate.log").read_text().count("$ ") == 1
    after = json.loads((done / "ablation.json").read_text())
    assert (after["cells"], after["differences"]) == (before["cells"], before["differences"])


def test_other_settings_for_a_finished_cell_are_refused(
    done: Path, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablate(spec, "overrides=[optim.lr=0.5]", "--output", done) == WRONG_REQUEST
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "train.optim.lr was 0.0003, is 0.5" in told[0] and "plain/seed0" in told[0]


def test_a_failing_cell_is_named_and_does_not_stop_the_others(
    done: Path, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = f"variants.lost=[data.datasets.toy.path={spec.parent / 'nowhere'}]"
    assert ablate(spec, lost, f"data={spec.parent / 'toy'}", "seeds=[0]", "--only", "lost", "--output", done) == FAILED
    told = capsys.readouterr().err
    assert "failed: lost/seed0: train failed with exit code 2" in told and "manifest.json" in told
    document = json.loads((done / "ablation.json").read_text())
    assert [m["variant"] for m in document["missing"]] == ["lost"] and len(document["cells"]) == 2
    assert "train failed" in (done / "report.html").read_text()
