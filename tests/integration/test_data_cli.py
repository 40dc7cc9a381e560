"""`wam-video data` from a foreign dataset to verified shards, and what it says to bad input."""

import errno
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.unit.data_pipelines.lerobot_fixtures import quirky_v21, shared_v3
from wam_video.cli.command import run
from wam_video.cli.data import main
from wam_video.data.manifest import load_manifest

SMALL = ["--size", "32x32"]


def call(*arguments: object) -> int:
    return run(main, [str(argument) for argument in arguments])


def convert(source: Path, output: Path, *more: object) -> int:
    return call("convert", source, "--output", output, *SMALL, *more)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return quirky_v21(tmp_path / "cloth")


@pytest.fixture
def shards(dataset: Path, tmp_path: Path) -> Path:
    assert convert(dataset, tmp_path / "shards") == 0
    return tmp_path / "shards"


@pytest.mark.parametrize("make", [quirky_v21, shared_v3])
def test_a_dataset_converts_and_verifies(make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(make(tmp_path / "in"), tmp_path / "out") == 0
    manifest = load_manifest(tmp_path / "out")
    assert manifest.counts["total"]["episodes"] == 3
    assert manifest.counts["total"]["frames"] == 20
    assert manifest.counts["total"]["actions"] == 17
    assert manifest.splits == ("train", "val")
    assert call("verify", tmp_path / "out") == 0
    assert "nothing is wrong" in capsys.readouterr().out


def test_every_oddity_is_in_the_manifest(shards: Path) -> None:
    notes = load_manifest(shards).notes
    for note in (
        "declared_view_without_files:observation_images_never_written",
        "declared_codec_differs:wrist_left:mpeg4!=h264",
        "declared_shape_channels_first:wrist_left",
        "blank_view_dead",
        "no_task_index",
    ):
        assert notes[note] == 3, note


@pytest.mark.distributed
def test_the_bytes_do_not_depend_on_the_number_of_processes(dataset: Path, shards: Path, tmp_path: Path) -> None:
    for workers in (2, 4):
        output = tmp_path / str(workers) / "shards"
        assert convert(dataset, output, "--workers", workers) == 0
        assert tree(output) == tree(shards)


def test_limit_and_name_and_licence_are_kept(dataset: Path, tmp_path: Path) -> None:
    more = ["--limit", 2, "--name", "mine", "--licence", "CC0", "--embodiment", "arm"]
    assert convert(dataset, tmp_path / "out", *more) == 0
    manifest = load_manifest(tmp_path / "out")
    assert (manifest.dataset, manifest.options["licence"], list(manifest.embodiments)) == ("mine", "CC0", ["arm"])
    assert manifest.counts["total"]["episodes"] == 2


def test_a_dry_run_counts_and_writes_nothing(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(dataset, tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "3 episode(s), 20 recorded frames, 2.0 s, 17 actions" in said
    assert "declared_view_without_files" in said
    assert not (tmp_path / "out").exists()


def test_inspect_writes_one_page_with_pictures_and_prints_a_summary(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert call("inspect", shards, "--output", page) == 0
    content = page.read_text()
    assert content.count("data:image/jpeg;base64,") == 6  # three clips of two views
    assert content.count("data:image/png;base64,") == 5  # actions and state, over time and how often; lengths
    assert "http" not in content
    assert "blank_view_dead" in content
    assert "3 episodes" in capsys.readouterr().out


def test_stats_are_made_again_to_the_same_bytes(shards: Path) -> None:
    stats = shards / "stats.json"
    before = stats.read_bytes()
    stats.unlink()
    assert call("verify", shards) == 1
    assert call("stats", shards) == 0
    assert stats.read_bytes() == before


def test_verify_finds_a_flipped_byte_and_names_the_sample(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = load_manifest(shards).shards[0]
    path = shards / shard.name
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        member = next(m for m in tar if m.name.endswith(".actions.npy"))
    content[member.offset_data + 2] ^= 0xFF  # within the magic of the .npy header
    path.write_bytes(bytes(content))

    assert call("verify", shards) == 1
    said = capsys.readouterr().out
    assert "sha256" in said
    assert shard.samples[0].key in said
    assert call("verify", shards, "--no-hashes") == 1


def test_verify_finds_a_truncated_shard_and_a_stranger(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shards / load_manifest(shards).shards[0].name
    path.write_bytes(path.read_bytes()[:2000])
    (shards / "other-train-000000.tar").write_bytes(b"")

    assert call("verify", shards) == 1
    said = capsys.readouterr().out
    assert f"{path.name}: " in said
    assert "other-train-000000.tar: is not in the manifest" in said


def test_altered_statistics_are_found(shards: Path) -> None:
    path = shards / "stats.json"
    content = json.loads(path.read_text())
    content["stats"]["so101"]["actions"]["mean"][0] += 1
    path.write_text(json.dumps(content))
    assert call("verify", shards) == 1


def test_an_existing_folder_is_refused_unless_it_holds_shards_and_may_go(
    dataset: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(shards)
    assert convert(dataset, shards) == 2
    assert "exists already" in error_line(capsys)
    assert convert(dataset, shards, "--overwrite", "--limit", 2) == 0
    assert load_manifest(shards).counts["total"]["episodes"] == 2
    assert tree(shards) != before

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("x")
    assert convert(dataset, precious, "--overwrite") == 2
    assert "no folder of shards" in error_line(capsys)
    assert (precious / "thesis.txt").exists()


def test_a_truncated_video_is_skipped_and_the_rest_written(dataset: Path, tmp_path: Path) -> None:
    video = dataset / "videos/chunk-000/observation.images.wrist.left/episode_000001.mp4"
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    assert convert(dataset, tmp_path / "out") == 0
    (skipped,) = load_manifest(tmp_path / "out").skipped
    assert skipped.episode_id == "episode_000001"
    assert "episode_000001.mp4" in skipped.reason


def test_when_every_episode_is_bad_nothing_is_left(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in dataset.glob("data/**/*.parquet"):
        path.unlink()
    assert convert(dataset, tmp_path / "out") == 2
    assert "missing file" in error_line(capsys)
    assert not list(tmp_path.glob("out*"))


def test_an_empty_dataset_is_refused(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "meta/episodes.jsonl").write_text("")
    assert convert(dataset, tmp_path / "out") == 2
    assert "no episode" in error_line(capsys)
    assert convert(dataset, tmp_path / "out", "--dry-run") == 2
    assert not list(tmp_path.glob("out*"))


def test_a_full_disk_is_one_line_and_leaves_nothing(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("webdataset.writer.TarWriter.write", full)
    assert convert(dataset, tmp_path / "out") == 2
    line = error_line(capsys)
    assert "No space left on device" in line
    assert "free some space" in line
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", "32"], "--size is '32'"),
        (["--size", "31x32"], "even height and width"),
        (["--fit", "padd"], "Did you mean 'pad'"),
        (["--format", "lerobt"], "Did you mean 'lerobot'"),
        (["--views", "wrist"], "Did you mean 'wrist_left'"),
        (["--option", "action_key"], "must be KEY=VALUE"),
        (["--option", "actoin_key=a"], "Did you mean 'action_key'"),
        (["--workers", "0"], "workers is 0"),
        (["--fps", "20"], "less than the 20 asked"),
        (["--name", "a.b"], "no dots"),
    ],
)
def test_a_wrong_request_is_one_line_that_says_what_is_allowed(
    more: list[str], message: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(dataset, tmp_path / "out", *more) == 2
    assert message in error_line(capsys)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("command", ["inspect", "stats", "verify"])
def test_a_folder_without_a_manifest_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(command, tmp_path) == 2
    assert "holds no manifest.json" in error_line(capsys)


def test_inspect_names_what_it_can_not_read_or_write(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("words")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("[]")
    for arguments, message in (
        ((tmp_path / "file",), "holds no manifest.json"),
        ((tmp_path / "broken",), "not a manifest (no mapping"),
        ((shards, "--output", tmp_path / "broken"), "can't write"),
        ((shards, "--output", tmp_path / "file" / "page.html"), "can't write"),
        ((shards, "--clips", 0), "--clips is 0"),
    ):
        assert call("inspect", *arguments) == 2
        assert message in error_line(capsys)


@pytest.mark.parametrize("command", ["convert", "inspect", "stats", "verify"])
def test_help_gives_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"wam-video data {command} " in capsys.readouterr().out.split("example")[1]


def test_the_module_runs_as_a_command_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wam_video.cli.data", "verify", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "episodes", "more"),
    [
        ("gr1_lerobot_v2", 2, ["--limit", "2", "--fps", "10"]),
        ("bridge_lerobot_v3", 10, []),
        ("droid_clips", 12, ["--limit", "12", "--fps", "5"]),
        ("droid_multiview", 1, ["--fps", "5"]),
    ],
)
def test_real_recordings_convert_and_verify(
    name: str, episodes: int, more: list[str], real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(real_data / name, tmp_path / "out", *more) == 0
    manifest = load_manifest(tmp_path / "out")
    assert manifest.counts["total"]["episodes"] == episodes
    assert not manifest.skipped
    assert call("verify", tmp_path / "out") == 0
    assert "nothing is wrong" in capsys.readouterr().out


def test_a_robots_file_decides_what_the_shards_hold(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    robot = tmp_path / "robot.yaml"
    robot.write_text(
        "{name: cloth_arm, views: {wrist: wrist_left}, actions: [{name: lift, take: ['1'], kind: absolute, unit: m, "
        "recorded_unit: mm}]}"
    )
    assert convert(dataset, tmp_path / "out", "--embodiment", robot) == 0
    spec = load_manifest(tmp_path / "out").embodiments["cloth_arm"]
    assert (spec.action_names, spec.action_units, spec.action_kinds) == (("lift",), ("m",), ("absolute",))
    assert spec.views == ("wrist",)
    assert load_manifest(tmp_path / "out").options["options"]["body"]["name"] == "cloth_arm"
    assert call("verify", tmp_path / "out", "--no-checks") == 0
    assert convert(dataset, tmp_path / "dry", "--embodiment", robot, "--dry-run") == 0
    assert "cloth_arm: actions 1" in capsys.readouterr().out
    robot.write_text("{name: cloth_arm, views: {wrist: wrist_lift}}")
    assert convert(dataset, tmp_path / "not", "--embodiment", robot) == 2
    assert "allowed" in error_line(capsys)
    assert convert(dataset, tmp_path / "not", "--embodiment", tmp_path / "none.yaml") == 2
    assert "does not exist" in error_line(capsys)
    assert convert(dataset, tmp_path / "not", "--drop-idle", -1) == 2
    assert "drop_idle is -1" in error_line(capsys)
    assert not (tmp_path / "not").exists()
