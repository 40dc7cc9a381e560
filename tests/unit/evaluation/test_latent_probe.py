import json
from pathlib import Path

import numpy as np
import pytest

from tests.unit.latent_actions.square import SPEC, write
from wam_video.data.manifest import load_manifest
from wam_video.errors import ConfigError, DataError
from wam_video.evaluation import latent_probe as probing
from wam_video.evaluation.latent_probe import CONDITIONS, ProbeConfig, probe
from wam_video.evaluation.latent_probe_page import write_probe
from wam_video.latent_actions import label as module
from wam_video.latent_actions.label import label
from wam_video.latent_actions.networks import LatentActionModel, LatentModelConfig
from wam_video.latent_actions.pairs import Body


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("probe") / "squares", episodes=24, frames=16)


def labelled(source: Path, output: Path, monkeypatch: pytest.MonkeyPatch, latents) -> Path:
    """Shards whose latents are made by a function of the clip's video."""
    monkeypatch.setattr(module, "label_frames", lambda model, video, step: latents(video))
    model = LatentActionModel(LatentModelConfig(method="vae", dim=4, side=16, width=8))
    label(source, output, model, "0" * 64, Body.of(load_manifest(source)))
    return output


def moved(video: np.ndarray) -> np.ndarray:
    """What truly happens, turned and stretched, and noise beside it."""
    lit = (video.astype(int).max(-1) > 120).astype(float)
    axis = np.arange(video.shape[1])
    places = np.stack([(lit.sum(1) * axis).sum(1), (lit.sum(2) * axis).sum(1)], 1) / lit.sum((1, 2))[:, None]
    steps = np.diff(places, axis=0)
    noise = np.random.default_rng(0).normal(size=(len(steps), 2))
    return np.concatenate([steps @ [[0.3, -2], [1.5, 0.4]], noise], axis=1).astype(np.float32)


def r2(document: dict, condition: str, target: str = "recorded") -> float:
    (row,) = (r for r in document["rows"] if (r["condition"], r["target"], r["dimension"]) == (condition, target, None))
    return row["r2"]["value"]


def test_true_motion_is_read_and_the_controls_are_not(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = labelled(source, tmp_path / "l", monkeypatch, moved)
    document = probe(folder, ProbeConfig(relative=True))
    assert r2(document, "latent") > 0.9
    assert r2(document, "latent", "relative") < 0.5, "places are not in them"
    assert r2(document, "latent_and_frame") > 0.8
    assert abs(r2(document, "shuffled")) < 0.1
    assert r2(document, "frame") < 0.5
    assert {row["condition"] for row in document["rows"]} == set(CONDITIONS)
    assert not [flag for flag in document["flags"] if flag.startswith("recorded")]
    (gain,) = (d["r2_more"] for d in document["differences"] if (d["control"], d["target"]) == ("shuffled", "recorded"))
    assert gain["low"] > 0.7
    dimensions = [r["dimension"] for r in document["rows"] if r["target"] == "recorded" and r["condition"] == "latent"]
    assert dimensions == [None, *SPEC.action_names]
    record, page = write_probe(document, tmp_path / "out")
    assert json.loads(record.read_text()) == json.loads(json.dumps(document))
    assert "whiskers" in page.read_text()
    assert probe(folder, ProbeConfig(relative=True)) == document, "twice the same"


def test_latents_that_say_nothing_are_flagged(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    folder = labelled(
        source, tmp_path / "l", monkeypatch, lambda video: rng.normal(size=(len(video) - 1, 4)).astype(np.float32)
    )
    document = probe(folder, ProbeConfig(folds=4))
    assert r2(document, "latent") < 0.1
    assert any("other pairs" in flag for flag in document["flags"])


def test_latents_one_frame_late_are_read_with_the_delay_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = labelled(source, tmp_path / "l", monkeypatch, lambda v: np.roll(moved(v), 1, axis=0))
    late = r2(probe(folder, ProbeConfig(folds=4, delay_s=1 / SPEC.fps)), "latent")
    assert late > 0.9 > r2(probe(folder, ProbeConfig(folds=4)), "latent")


def test_what_can_not_be_probed_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no latent actions"):
        probe(source, ProbeConfig())
    few = labelled(write(tmp_path / "few", episodes=3), tmp_path / "l", monkeypatch, moved)
    with pytest.raises(DataError, match="4 are needed"):
        probe(few, ProbeConfig())
    with pytest.raises(DataError, match="lower --delay"):
        probe(few, ProbeConfig(folds=3, delay_s=5))
    for wrong in ({"folds": 1}, {"max_pairs": 1}, {"delay_s": -1.0}, {"seed": 2**70}):
        with pytest.raises(ConfigError, match="allowed"):
            ProbeConfig(**wrong)


def test_actions_that_never_change_are_nothing_to_probe_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = labelled(source, tmp_path / "l", monkeypatch, moved)
    monkeypatch.setattr(
        probing, "mean_actions", lambda actions, rate, starts, interval: np.ones((len(starts), 2), np.float32)
    )
    with pytest.raises(DataError, match="never change"):
        probe(folder, ProbeConfig(folds=4))
