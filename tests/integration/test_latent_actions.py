"""`wam-video latent-actions`: train, label and probe, and what it refuses in one line."""

from pathlib import Path

import pytest

from tests.unit.latent_actions.square import write
from wam_video.cli.main import main
from wam_video.data.manifest import load_manifest

SMALL = ("--steps", "3", "--batch-size", "8", "--width", "8", "--side", "16", "--max-pairs", "60")


def command(*arguments: object) -> int:
    return main(["latent-actions", *map(str, arguments)])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("cli") / "squares", episodes=16, frames=12)


def test_from_video_to_labelled_shards_to_a_page(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, labelled, out = tmp_path / "model", tmp_path / "labelled", tmp_path / "probe"
    assert command("train", "--data", shards, "--method", "nsvq", *SMALL, "--output", model) == 0
    assert command("label", "--model", model, "--data", shards, "--output", labelled) == 0
    assert command("probe", "--data", labelled, "--output", out, "--folds", 4, "--relative") == 0
    told = capsys.readouterr().out
    assert "codes:" in told and "latent_nsvq16" in told and "R2" in told
    assert sorted(p.name for p in model.iterdir()) == ["config.json", "metrics.json", "model.safetensors"]
    assert load_manifest(labelled).embodiments["latent_nsvq16"].action_dim == 16
    assert sorted(p.name for p in out.iterdir()) == ["latent_probe.json", "report.html"]


def test_a_wrong_request_is_one_line_and_two(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    assert command("train", "--data", shards, "--method", "vae", *SMALL, "--output", model) == 0
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    new = tmp_path / "new"
    capsys.readouterr()
    for arguments, word in (
        (("train", "--data", shards, "--method", "flaw", "--output", new), "Did you mean 'flow'?"),
        (("train", "--data", shards, "--interval", 0.15, "--output", new), "multiples of 0.1 s"),
        (("train", "--data", shards, "--steps", 0, "--output", new), "steps is 0"),
        (("train", "--data", shards, "--view", "wrist", "--output", new), "--view is 'wrist'"),
        (("train", "--data", shards, *SMALL, "--output", model), "exists already"),
        (("train", "--data", tmp_path, "--output", new), "manifest.json"),
        (("label", "--model", model, "--data", shards, "--output", new), "cut short"),
        (("label", "--model", shards, "--data", shards, "--output", new), "latent-actions train"),
        (("probe", "--data", shards, "--output", new), "no latent actions"),
        (("probe", "--data", shards, "--folds", 1, "--output", new), "folds is 1"),
    ):
        assert command(*arguments) == 2, arguments
        said = capsys.readouterr().err.splitlines()
        errors = [line for line in said if line.startswith("error:")]
        assert len(errors) == 1 and word in errors[0], said
        assert not any("Traceback" in line for line in said)
        assert not new.exists()
