"""`wam-video evaluate` from shards and a checkpoint folder to the page, and what it says of wrong requests."""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from wam_video.cli import evaluate as command
from wam_video.cli.command import run
from wam_video.data.encode import WriterConfig
from wam_video.data.normalize import compute_stats, save_stats
from wam_video.data.processor import WAMProcessor
from wam_video.data.schema import EmbodimentSpec, Episode
from wam_video.data.video import ArrayView
from wam_video.data.writer import ShardWriter
from wam_video.evaluation.windows import open_windows
from wam_video.testing import tiny_pipeline

ARM = EmbodimentSpec(name="arm", action_dim=2, state_dim=2, views=("front",), fps=5.0, action_rate=10.0)


def _episode(index: int, spec: EmbodimentSpec = ARM, frames: int = 12) -> Episode:
    rng = np.random.default_rng(index)
    actions = rng.normal(size=(2 * frames - 2, spec.action_dim)).astype(np.float32)
    return Episode(
        episode_id=f"ep{index}",
        embodiment=spec,
        views={"front": ArrayView(rng.integers(0, 255, (frames, 32, 32, 3), dtype=np.uint8), np.arange(frames) / 5)},
        actions=actions,
        state=np.concatenate([np.zeros((1, 2), np.float32), actions[:, :2].cumsum(0)]),
        prompts=("<b>push</b> the block & \"stop\"",),
    )  # fmt: skip


def _shards(folder: Path, spec: EmbodimentSpec = ARM) -> Path:
    config = WriterConfig(
        dataset="toy",
        height=32,
        width=32,
        fps=5.0,
        val_fraction=0.5,
        licence="CC0-1.0",
        source="made up",
        converter="test",
    )
    with ShardWriter(folder, config) as writer:
        for index in range(8):
            writer.write(_episode(index, spec))
    save_stats(compute_stats(folder), folder)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _shards(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


def _run(*arguments: object) -> int:
    return run(command.main, [str(a) for a in arguments])


def _die(group: int, number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_every_mode_is_scored_and_the_page_stands_alone(shards: Path, model: Path, tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"step": i, "loss": 1 / (i + 1)}) + "\n" for i in range(50)))
    out = tmp_path / "out"
    assert (
        _run("--model", f"my <model>={model}", "--data", shards, "--windows", 8, "--output", out, "--training-log", log)
        == 0
    )
    document = json.loads((out / "metrics.json").read_text())
    (found,) = document["models"]
    modes = {row["mode"] for row in found["rows"]}
    assert modes == {"policy", "forward", "inverse", "video", "joint", "control"}
    assert all(np.isfinite(row["value"]) for row in found["rows"])
    assert {row["num_windows"] for row in found["rows"]} == {8}
    assert {c["mode"] for c in found["checks"]} == {"policy", "forward", "inverse", "video", "joint"}
    assert any("arm" in flag for flag in found["flags"]), "a random network can't pass every check"
    assert [left["metric"] for left in document["left_out"]] == ["LPIPS and FVD", "FID"]
    page = (out / "report.html").read_text()
    assert len(page.encode()) < 3_000_000
    links = re.findall(r"(?:src|href|poster)=\"([^\"]*)\"", page)
    assert links
    assert all(link.startswith("data:") for link in links), "no external resource"
    assert "http" not in re.sub(r"\"data:[^\"]*\"", "", page)
    assert "<model>" not in page
    assert "<b>push" not in page
    assert "&lt;b&gt;push" in page
    assert sorted(p.name for p in out.iterdir()) == ["metrics.json", "report.html"]


def test_only_we_write_to_the_terminal(
    shards: Path, model: Path, tmp_path: Path, foreign_words: Callable[[], list[str]]
) -> None:
    options = ("--modes", "policy", "--windows", 2, "--steps", 1)
    assert _run("--model", model, "--data", shards, "--output", tmp_path / "out", *options) == 0
    assert foreign_words() == []


def test_two_runs_differ_in_their_times_alone(shards: Path, model: Path, tmp_path: Path) -> None:
    documents = []
    for _ in range(2):
        assert _run("--model", model, "--data", shards, "--windows", 6, "--output", tmp_path / "out") == 0
        document = json.loads((tmp_path / "out" / "metrics.json").read_text())
        document.pop("timing")
        for entry in document["models"]:
            entry.pop("timing")
        documents.append(document)
    assert documents[0] == documents[1]


def _timeless(out: Path) -> dict[str, object]:
    document = json.loads((out / "metrics.json").read_text())
    for entry in (document, *document["models"]):
        entry.pop("timing")
    return document


def test_the_number_of_processes_changes_times_alone(
    shards: Path,
    model: Path,
    tmp_path: Path,
    foreign_words: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Other processes begin as those of the command do, with its module first.
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", find_spec("wam_video.cli.evaluate"))
    options = ("--model", model, "--data", shards, "--windows", 5, "--steps", 1, "--batch-size", 2)
    found, pages = [], []
    for count in (1, 2):
        out = tmp_path / "out"
        assert _run(*options, "--output", out, "--processes", count) == 0
        assert json.loads((out / "metrics.json").read_text())["timing"]["processes"] == count
        found.append(_timeless(out))
        pages.append(re.findall(r"base64,([^\"]+)", (out / "report.html").read_text()))
    assert found[0] == found[1]
    assert pages[0] == pages[1], "the windows shown are the same, to the pixel"
    assert foreign_words() == []


def test_a_dead_process_is_one_line_and_the_work_has_failed(
    shards: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wam_video.evaluation import processes

    monkeypatch.setattr(processes, "_measure", _die)
    out = tmp_path / "out"
    code = _run(
        "--model", model, "--data", shards, "--output", out, "--windows", 4, "--batch-size", 2, "--processes", 2
    )
    assert code == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "INFO" not in x]
    assert line.startswith("error: one of 2 evaluating processes died")
    assert not out.exists()


def test_batch_size_changes_no_figure(shards: Path, model: Path, tmp_path: Path) -> None:
    rows = []
    for size in (1, 5):
        out = tmp_path / str(size)
        assert _run("--model", model, "--data", shards, "--windows", 7, "--output", out, "--batch-size", size) == 0
        (entry,) = json.loads((out / "metrics.json").read_text())["models"]
        rows.append(entry["rows"])
    assert [r["metric"] for r in rows[0]] == [r["metric"] for r in rows[1]]
    assert [r["value"] for r in rows[0]] == pytest.approx([r["value"] for r in rows[1]], rel=1e-4, abs=1e-5)


def test_hold_last_repeats_the_action_before_time_zero(shards: Path) -> None:
    data = open_windows(tiny_pipeline().processor, shards, "val", 10_000)
    (group,) = data.groups
    batch = data.dataset.batch(group.indices)
    for key, episode, previous in zip(batch.keys, group.episodes, group.previous_actions, strict=True):
        frame = int(key.rsplit("@", 1)[1])
        actions = _episode(int(episode.rsplit("ep", 1)[1])).actions
        expected = group.action_mean.numpy() if frame == 0 else actions[2 * frame - 1]
        assert previous.numpy() == pytest.approx(expected, abs=1e-6), key


def test_the_mean_action_is_that_of_training(shards: Path) -> None:
    processor: WAMProcessor = tiny_pipeline().processor
    (group,) = open_windows(processor, shards, "val", 3).groups
    assert group.action_mean.tolist() == pytest.approx(processor.config["stats"]["arm"]["actions"]["mean"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "polcy"], "Did you mean 'policy'"),
        (["--windows", "0"], "windows is 0"),
        (["--split", "test"], "split is 'test'"),
        (["--steps", "0"], "num_inference_steps is 0"),
        (["--device", "tpu9"], "device is 'tpu9'"),
        (["--training-log", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--batch-size", "0"], "batch size is 0"),
        (["--processes", "0"], "--processes is 0"),
        (["--windows", "-4"], "windows is -4"),
        (["--steps", "-1"], "num_inference_steps is -1"),
        (["--modes", ","], "--modes is ',', which names no mode"),
    ],
)
def test_a_wrong_request_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, shards: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _run("--model", model, "--data", shards, "--output", out, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not out.exists()


def test_files_and_folders_that_are_no_shards_are_named_and_the_output_is_tried_first(
    shards: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("words")
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    bare = tmp_path / "bare"
    shutil.copytree(shards, bare)
    (bare / "stats.json").unlink()
    for data, output, message in (
        (tmp_path / "file", "out", "holds no manifest.json"),
        (tmp_path / "empty", "out", "holds no manifest.json"),
        (tmp_path / "broken", "out", "not a manifest"),
        (bare, "out", "stats.json' does not exist"),
        (shards, "file", "is a file; give a folder to make"),
        (tmp_path / "empty", "file/out", "is a file; give a folder to make"),
    ):
        assert _run("--model", model, "--data", data, "--output", tmp_path / output) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
    assert not (tmp_path / "out").exists()


def test_unknown_bodies_widths_data_and_models_are_refused(
    shards: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = _shards(tmp_path / "strange", EmbodimentSpec(**{**vars(ARM), "name": "drone"}))
    wide = _shards(tmp_path / "wide", EmbodimentSpec(**{**vars(ARM), "action_dim": 3}))
    for data, which, message in (
        (strange, model, "drone"),
        (wide, model, "action_dim 3"),
        (tmp_path / "nothing", model, "manifest.json"),
        (shards, tmp_path / "nothing", "nothing"),
    ):
        assert _run("--model", which, "--data", data, "--output", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
