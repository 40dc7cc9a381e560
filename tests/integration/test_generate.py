"""`wam-video generate` from a saved checkpoint and shards: every mode writes what it promises, every mistake writes nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wam_video.cli.command import DONE, WRONG_REQUEST, run
from wam_video.cli.generate import main
from wam_video.data.processor import WAMProcessor
from wam_video.data.video import encode_mp4, open_video
from wam_video.inference.pipeline import WAMPipeline
from wam_video.inference.recording import Place, open_recording
from wam_video.testing import fake_shards, tiny_pipeline


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generate")
    pipeline = tiny_pipeline(action_free=True)
    pipeline.save_pretrained(root / "model")
    specs = [pipeline.processor.spec(name) for name in ("arm", "hand")]
    fake_shards(root / "shards", specs)
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(10, axis=0).repeat(3, axis=3)
    (root / "clip.mp4").write_bytes(encode_mp4(ramp, fps=5))
    return root


def generate(world: Path, output: Path, mode: str, *more: str, source: str = "shards", model: str = "model") -> int:
    arguments = ["--model", str(world / model), "--mode", mode, "--input", str(world / source), "--output", str(output)]
    return run(main, [*arguments, *more])


def test_only_we_write_to_the_terminal(world: Path, tmp_path: Path, foreign_words: Callable[[], list[str]]) -> None:
    WAMPipeline.from_pretrained(world / "model")
    assert "Loading" in str(foreign_words()), "loading by itself shows the libraries' bars"
    assert generate(world, tmp_path / "out", "policy", "--steps", "1") == DONE
    assert foreign_words() == []


@pytest.mark.parametrize("mode", ["policy", "forward", "inverse", "video", "joint"])
def test_every_mode_writes_what_it_gives(world: Path, tmp_path: Path, mode: str) -> None:
    assert generate(world, tmp_path / "out", mode, "--steps", "3", "--seed", "5", "--episode", "arm-001") == DONE
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["mode"], summary["seed"], summary["steps"]) == (mode, 5, 3)
    assert summary["episode"] == "arm-001"
    assert len(summary["model_hash"]) == 64
    written = {"summary.json"}
    if mode in ("policy", "inverse", "joint"):
        actions = np.load(out / "actions.npy")
        assert (actions.shape, actions.dtype) == ((4, 2), np.float32)
        assert set(summary["errors"]["actions"]) == {"steps", "mae", "mae_mean_action", "mae_hold_last"}
        written.add("actions.npy")
    if mode in ("forward", "video", "joint"):
        assert len(open_video(out / "video.mp4")) == 2
        assert len(open_video(out / "comparison.mp4")) == 4
        assert set(summary["errors"]["video"]) == {"frames", "psnr", "psnr_copied_last_frame"}
        written |= {"video.mp4", "comparison.mp4"}
    assert {file.name for file in out.iterdir()} == written
    assert not list(tmp_path.glob("*.partial"))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(world: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert generate(world, tmp_path / name, "policy", "--seed", seed) == DONE
    a, b, c = ((tmp_path / name / "actions.npy").read_bytes() for name in "abc")
    assert a == b != c


def test_actions_from_a_file_replace_the_recorded_ones(world: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", np.full((4, 2), 3, np.float32))
    assert generate(world, tmp_path / "a", "forward", "--episode", "arm-000") == DONE
    assert (
        generate(world, tmp_path / "b", "forward", "--episode", "arm-000", "--actions", str(tmp_path / "mine.npy"))
        == DONE
    )
    assert (tmp_path / "a" / "video.mp4").read_bytes() != (tmp_path / "b" / "video.mp4").read_bytes()
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["actions_from"].endswith("mine.npy")


def test_start_moves_the_window_and_the_controls_with_it(world: Path, tmp_path: Path) -> None:
    for start in ("0.2", "1.2"):
        assert generate(world, tmp_path / start, "joint", "--episode", "hand-002", "--start", start) == DONE
    early, late = (json.loads((tmp_path / start / "summary.json").read_text()) for start in ("0.2", "1.2"))
    assert (early["start_s"], late["start_s"]) == (0.2, 1.2)
    control = "psnr_copied_last_frame"
    assert early["errors"]["video"][control] != late["errors"]["video"][control]


def test_a_plain_video_can_be_continued_as_a_body_without_actions(world: Path, tmp_path: Path) -> None:
    assert generate(world, tmp_path / "out", "video", "--embodiment", "clips", source="clip.mp4") == DONE
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["errors"]["video"]["psnr_copied_last_frame"] > 40, "the clip stands still"


def test_a_raw_recording_is_resized_as_the_training_data_were(world: Path, tmp_path: Path) -> None:
    processor = WAMPipeline.from_pretrained(world / "model").processor
    wide = np.full((10, 16, 32, 3), 200, np.uint8)
    (tmp_path / "wide.mp4").write_bytes(encode_mp4(wide, fps=5))
    darkest = {}
    for fit in ("pad", "crop"):
        config = dict(processor.config) | {"fit": {"clips": fit}}
        place = Place(embodiment="clips")
        window = open_recording(tmp_path / "wide.mp4", place, WAMProcessor.from_config(config)).window
        darkest[fit] = int(window.video.min())
    assert darkest["pad"] < 30 < 150 < darkest["crop"], "bars above and below, or none"


@pytest.mark.parametrize(
    ("mode", "more", "message"),
    [
        ("polcy", (), "Did you mean 'policy'"),
        ("policy", ("--episode", "99"), "--episode is '99'"),
        ("policy", ("--start", "77"), "--start is 77"),
        ("policy", ("--embodiment", "leg"), "allowed: arm, clips, hand"),
        ("policy", ("--steps", "0"), "num_inference_steps is 0"),
        ("policy", ("--actions", "none.npy"), "none.npy"),
        ("policy", ("--episode", "arm-000", "--embodiment", "hand"), "2 wide; embodiment 'hand' of the model has 5"),
        ("inverse", ("--episode", "arm-000", "--start", "2.1"), "ends before"),
        ("forward", ("--episode", "arm-000", "--start", "2.1"), "exactly 4"),
        ("policy", ("--device", "abacus"), "abacus"),
        ("policy", ("--steps", "-3"), "num_inference_steps is -3"),
        ("policy", ("--start", "nan"), "--start is nan"),
        ("policy", ("--seed", str(2**70)), "allowed: -2**63 to 2**64 - 1"),
        ("forward", ("--actions", __file__), "test_generate.py' is no array of numbers"),
        ("forward", ("--actions", str(Path(__file__).parent)), "can't be read (Is a directory)"),
        ("joint", ("--guidance-scale", "nan"), "guidance_scale is nan"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, more: tuple[str, ...], message: str
) -> None:
    assert generate(world, tmp_path / "out", mode, *more) == WRONG_REQUEST
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_missing_inputs_are_named(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(world, tmp_path / "out", "policy", source="nowhere") == WRONG_REQUEST
    assert "nowhere" in capsys.readouterr().err
    assert generate(world, tmp_path / "out", "policy", model="no/such/model") == WRONG_REQUEST
    assert "no/such/model" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_folders_that_are_no_checkpoint_or_no_recording_are_named(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("empty", "unready", "listed"):
        (tmp_path / name).mkdir()
    shutil.copytree(world / "model", tmp_path / "unprocessed")
    shutil.rmtree(tmp_path / "unprocessed" / "processor")
    (tmp_path / "file").write_text("words")
    (tmp_path / "unready" / "model_index.json").write_text("[1")
    (tmp_path / "listed" / "manifest.json").write_text("[]")
    out = tmp_path / "out"
    for options, message in (
        ({"model": "file"}, "file' is no folder"),
        ({"model": "empty"}, "model_index.json is missing"),
        ({"model": "unready"}, "model_index.json can't be read"),
        ({"model": "unprocessed"}, "processor/processor_config.json is missing"),
        ({"source": "empty"}, "empty' is of no known format"),
        ({"source": "file"}, "file' is of no known format"),
        ({"source": "listed"}, "not a manifest (no mapping with a schema_version)"),
    ):
        chosen = {what: str(tmp_path / name) for what, name in options.items()}
        assert generate(world, out, "policy", **chosen) == WRONG_REQUEST
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
    assert not out.exists()


def test_an_output_that_could_not_be_made_is_refused_before_the_work(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("words")
    for output in ("file", "file/out"):
        assert generate(world, tmp_path / output, "policy", model="no/such/model") == WRONG_REQUEST
        assert f"{str(tmp_path / 'file')!r} is a file; give a folder to make" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "words"


def test_forward_without_actions_and_wrong_width_are_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(world, tmp_path / "out", "forward", "--embodiment", "clips", source="clip.mp4") == WRONG_REQUEST
    assert "no actions" in capsys.readouterr().err
    assert generate(world, tmp_path / "out", "forward", "--embodiment", "arm", source="clip.mp4") == WRONG_REQUEST
    assert "actions are missing" in capsys.readouterr().err
    np.save(tmp_path / "wide.npy", np.zeros((4, 7), np.float32))
    assert (
        generate(world, tmp_path / "out", "forward", "--episode", "arm-000", "--actions", str(tmp_path / "wide.npy"))
        == 2
    )
    assert "7 wide; embodiment 'arm' has 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_not_overwritten_unasked(world: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    assert generate(world, tmp_path / "out", "policy") == WRONG_REQUEST
    assert (tmp_path / "out" / "precious").exists()
    assert generate(world, tmp_path / "out", "policy", "--overwrite") == DONE
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"actions.npy", "summary.json"}
