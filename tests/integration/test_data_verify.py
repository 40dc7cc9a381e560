"""`wam-video data verify`: what it says of sound and of faulty shards, its exit codes, and its page."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.unit.data.checks.faults import Episodes, late_actions, made_up, one_view, recorded, repeated_episode
from wam_video.cli.command import run
from wam_video.cli.data import main
from wam_video.data.encode import WriterConfig
from wam_video.data.manifest import load_manifest
from wam_video.data.writer import ShardWriter


def call(*arguments: object) -> int:
    return run(main, ["verify", *(str(argument) for argument in arguments)])


def write(folder: Path, episodes: Episodes, size: int = 32) -> Path:
    with ShardWriter(folder, WriterConfig(dataset="blocks", height=size, width=size, clip_frames=64)) as writer:
        for episode in episodes:
            writer.write(episode)
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sound") / "shards", made_up(count=8))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Actions three steps late, a view upside down, a dead camera, an episode twice."""
    episodes = one_view(lambda f: f[:, ::-1], 3)(made_up(count=8))
    episodes = repeated_episode(one_view(lambda f: np.full_like(f, 9), 5)(episodes))
    return write(tmp_path_factory.mktemp("faulty") / "shards", late_actions(3)(episodes))


def test_sound_shards_pass_with_notes(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(sound, "--strict") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("NOTE ") for line in lines[:-1])
    assert "nothing is wrong" in lines[-1]


def test_faults_are_lines_a_page_and_an_exit_code(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "out" / "verify.html"
    assert call(faulty, "--report", page) == 3
    said = capsys.readouterr().out
    for line in (
        "WARNING lag-actions-state block: ",
        "WARNING view-flipped block episode ep03 view top: upside down",
        "WARNING dead-camera block episode ep05 view top: ",
        "WARNING duplicate-episodes block episode again: the same recording as ep02",
    ):
        assert line in said, line
    content = page.read_text()
    assert "http" not in content
    assert content.count("data:image/jpeg;base64,") >= 4 + 3 + 2
    assert content.count("data:image/png;base64,") >= 3  # correlation over lags, speeds as they are, speeds moved
    data = json.loads((page.parent / "findings.json").read_text())
    assert data["counts"]["warning"] == said.count("WARNING ")
    lag = next(f for f in data["findings"] if f["check"] == "lag-actions-state")
    assert lag["facts"]["steps"] == pytest.approx(-3, abs=0.6)


def test_strict_fails_on_warnings_and_no_checks_looks_at_bytes_alone(
    faulty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(faulty, "--strict", "--no-hashes") == 1
    capsys.readouterr()
    assert call(faulty, "--no-checks") == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_a_truncated_shard_is_an_error(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "shards"
    copy.mkdir()
    for path in sound.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    name = load_manifest(copy).shards[0].name
    (copy / name).write_bytes((copy / name).read_bytes()[:9000])
    assert call(copy) == 1
    assert f"ERROR integrity {name}: " in capsys.readouterr().out


def test_a_delay_without_sense_and_a_page_that_can_not_be_written_are_refused(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(sound, "--delay", -1) == 2
    assert "--delay is -1.0; allowed: 0 to 5" in capsys.readouterr().err
    (tmp_path / "file").write_text("words")
    for page in (tmp_path / "file" / "page.html", tmp_path):
        assert call(sound, "--no-checks", "--report", page) == 2
        said = capsys.readouterr()
        assert "can't write" in said.err
        assert not said.out  # told before the work, not after it


def test_faults_in_real_recordings_are_found_in_their_shards(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    episodes = recorded(real_data / "bridge_lerobot_v3")
    assert call(write(tmp_path / "sound", episodes, 64)) == 0
    capsys.readouterr()
    planted = repeated_episode(one_view(lambda f: f[:, ::-1])(late_actions(3)(episodes)))
    assert call(write(tmp_path / "faulty", planted, 64)) == 3
    said = capsys.readouterr().out
    for check in ("lag-actions-video", "view-flipped", "duplicate-episodes"):
        assert f"WARNING {check} " in said, said
