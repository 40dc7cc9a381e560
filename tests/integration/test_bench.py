"""The benchmarks of the loader and of the step run, and their figures have the shape that the cards show."""

import json

import numpy as np
import pytest

from wam_video.cli import bench
from wam_video.cli import bench_formats as formats
from wam_video.cli.bench import main
from wam_video.data.video import open_video
from wam_video.errors import ConfigError, DataError


@pytest.mark.slow
def test_the_loader_is_measured_beside_video_files(tmp_path):
    small = ["--frames", "60", "--runs", "1", "--windows", "1", "--steps", "2", "--samples", "320", "--workers", "0"]
    assert main(["data", *small, "--output", str(tmp_path / "data.json")]) == 0
    figures = json.loads((tmp_path / "data.json").read_text())
    assert set(figures["ratio"]) == {"shards_1", "shards_8", "shards_32", "latents"}
    assert len(figures["ratio"]["latents"]) == 2 * len(formats.CODECS)
    assert all(entry["median"] > 0 for entry in figures["frames_per_cpu_second"].values())
    assert figures["ratio"]["latents"]["lerobot_h264"]["median"] > 10
    assert figures["memory"]["latents"]["samples"] == 320


def test_the_readers_of_video_files_give_the_frames_that_were_asked(tmp_path):
    views = {view: np.stack(list(formats._scene(40, i))) for i, view in enumerate(formats.VIEWS)}
    formats.write_shards(tmp_path / "shards", views)
    formats.write_lerobot(tmp_path / "shards", tmp_path / "h264", views, "h264")
    for keep_open in (False, True):
        reader = formats.LeRobotVideos(tmp_path / "h264", keep_open)
        for first in (7, 0, 20):
            got = reader.window(first, 5)
            assert got.shape == (3, 5, 3, formats.HEIGHT, formats.WIDTH)
            for path, frames in zip(reader.paths, got, strict=True):
                wanted = open_video(path, decoder="pyav").get(range(first, first + 5))
                assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), wanted)


def test_the_trainers_step_is_measured_beside_a_plain_loop(tmp_path):
    assert main(["overhead", "--runs", "2", "--engines", "--output", str(tmp_path / "step.json")]) == 0
    figures = json.loads((tmp_path / "step.json").read_text())
    assert 0.3 < figures["ratio"]["of_medians"] < 3
    assert figures["engines"] == {}


def test_a_conversion_is_measured_beside_a_transcode_of_the_same_files(tmp_path):
    small = ["--limit", "1", "--runs", "1", "--size", "64x64", "--output", str(tmp_path / "convert.json")]
    assert main(["convert", *small]) == 0
    figures = json.loads((tmp_path / "convert.json").read_text())
    assert figures["about"]["frames"] == 120
    assert figures["about"]["encoder"]["crf"] == "18"
    assert {"convert", "pyav"} <= set(figures["frames_per_cpu_second"])
    assert figures["seconds_over_transcode"]["pyav"]["median"] > 0
    with pytest.raises(ConfigError, match="--ffmpeg"):
        main(["convert", "--ffmpeg", str(tmp_path / "nothing")])
    with pytest.raises(DataError, match="no mp4"):
        main(["convert", "--videos", str(tmp_path)])


def test_a_place_for_the_figures_is_found_before_they_are_measured(tmp_path, monkeypatch, capsys):
    measured = []
    monkeypatch.setattr(bench, "bench_train", lambda args: measured.append(args) or {"seconds": 1})
    assert main(["train", "--output", str(tmp_path / "new" / "folder" / "x.json")]) == 0
    assert json.loads((tmp_path / "new" / "folder" / "x.json").read_text()) == {"seconds": 1}
    assert json.loads(capsys.readouterr().out) == {"seconds": 1}
    with pytest.raises(ConfigError, match="a folder; give a file"):
        main(["train", "--output", str(tmp_path / "new")])
    with pytest.raises(ConfigError, match="whose folder can't be made"):
        main(["train", "--output", str(tmp_path / "new" / "folder" / "x.json" / "y.json")])
    assert len(measured) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("train", "--runs", "0"), "--runs is 0; allowed: 1 or more"),
        (("train", "--grid", "8", "0", "8"), r"--grid is \[8, 0, 8\]"),
        (("train", "--device", "abacus"), "device is 'abacus'"),
        (("data", "--runs", "0"), "--runs is 0"),
        (("data", "--frames", "10"), "--frames is 10; allowed: 34 or more"),
        (("data", "--windows", "0"), "--windows is 0"),
        (("overhead", "--steps", "3"), "--steps is 3; allowed: 4 or more"),
        (("policy", "--seed", "-5"), "--seed is -5; allowed: 0 or more"),
        (("convert", "--limit", "0"), "--limit is 0"),
        (("convert", "--size", "3x3"), "even height"),
        (("convert", "--ffmpeg", __file__), "--ffmpeg is"),
    ],
)
def test_what_nothing_can_be_measured_of_is_told_before_the_work(monkeypatch, arguments, told):
    for name in ("_our_step", "_timed"):
        monkeypatch.setattr(bench, name, None)
    for name in ("recordings", "write_shards"):
        monkeypatch.setattr(formats, name, None)
    with pytest.raises(ConfigError, match=told):
        main(list(arguments))


def test_every_benchmark_says_what_it_measures(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    words = capsys.readouterr().out.split("positional arguments:")[1].split("options:")[0].splitlines()[2:]
    assert {line.split()[0] for line in words if line.startswith("    ") and line[4] != " "} >= {"train", "step"}
    assert all(len(line.split()) > 2 for line in words if line.startswith("    ") and line[4] != " "), words
