"""Shards to a LeRobot v3.0 dataset and back: the same content, to the bit; what the format can't say is reported."""

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from data_pipelines.lerobot import LeRobotSource
from tests.unit.data_pipelines.recording_fixtures import frames, numbers, shown
from wam_video.cli.main import main
from wam_video.data.convert import convert
from wam_video.data.encode import WriterConfig
from wam_video.data.export import ExportConfig, export_lerobot
from wam_video.data.manifest import load_manifest
from wam_video.data.reader import load_clip
from wam_video.data.schema import EmbodimentSpec, Episode
from wam_video.data.video import ArrayView
from wam_video.data.writer import ShardWriter
from wam_video.errors import ConfigError, DataError

FPS = 10.0
SPEC = EmbodimentSpec(
    name="arm",
    action_dim=3,
    state_dim=2,
    views=("top", "wrist"),
    fps=FPS,
    action_rate=FPS,
    action_names=("x", "y", "gripper"),
    state_names=("x", "y"),
)


def episode(e: int, rows: int = 9, **changes) -> Episode:
    times = np.arange(rows) / FPS
    base = Episode(
        episode_id=f"take{e}",
        embodiment=SPEC,
        views={"top": ArrayView(frames(e, rows), times), "wrist": ArrayView(frames(e + 1, rows)[:, :, ::-1], times)},
        actions=numbers(e, rows - 1, 3) * np.pi,
        state=numbers(e, rows, 2) / np.float32(3),
        prompts=("lift it", f"raise it {e}"),
        reward=numbers(e, rows - 1, 1)[:, 0],
        success=e % 2 == 0,
    )
    return replace(base, **changes)


def shards(folder: Path, episodes: list[Episode], **options) -> Path:
    settings = {"dataset": "mine", "height": 32, "width": 32, "clip_frames": 4, "val_fraction": 0.4, "licence": "CC0"}
    with ShardWriter(folder, WriterConfig(**settings | options)) as writer:
        for item in episodes:
            writer.write(item)
    return folder


def clips(folder: Path, episode_id: str) -> list:
    manifest = load_manifest(folder)
    found = [
        load_clip(folder, shard, s) for shard in manifest.shards for s in shard.samples if s.episode_id == episode_id
    ]
    return sorted(found, key=lambda clip: clip.info["clip_start_s"])


def exported(tmp_path: Path, episodes: list[Episode], config: ExportConfig | None = None, **options):
    source = shards(tmp_path / "shards", episodes, **options)
    return export_lerobot(source, tmp_path / "out", config or ExportConfig())


def test_what_left_comes_back_the_same(tmp_path: Path) -> None:
    takes = [episode(e, rows) for e, rows in enumerate((9, 6, 3, 12))]
    report = exported(tmp_path, takes)
    assert (report.episodes, report.frames, report.skipped, report.notes) == (4, 30, (), {})

    source = LeRobotSource(tmp_path / "out")
    facts = json.loads((tmp_path / "out/meta/wam_video.json").read_text())
    assert source.notes == ()
    for back, fact in zip(source.episodes(), facts["episodes"], strict=True):
        take = next(t for t in takes if t.episode_id == fact["episode_id"])
        np.testing.assert_array_equal(back.actions, take.actions)
        np.testing.assert_array_equal(back.state, take.state)
        np.testing.assert_array_equal(back.reward, take.reward)
        assert (back.prompts, back.success) == (take.prompts, take.success)
        assert back.notes == ("last_action_without_frame",)
        assert (back.embodiment.action_names, back.embodiment.views) == (SPEC.action_names, SPEC.views)
        for view in SPEC.views:  # copied, not encoded again
            stored = np.concatenate([clip.video[view] for clip in clips(tmp_path / "shards", take.episode_id)])
            np.testing.assert_array_equal(shown(back.views[view]), stored)
    assert source.licence == "CC0"


def test_its_tables_are_those_of_the_format(tmp_path: Path) -> None:
    exported(tmp_path, [episode(e) for e in range(3)], ExportConfig(video_file_mb=0, data_file_mb=0))
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == ("v3.0", 10, 27)
    assert info["features"]["action"] == {"dtype": "float32", "shape": [3], "names": ["x", "y", "gripper"]}
    assert info["features"]["observation.images.top"]["info"]["video.codec"] == "h264"
    spans = [[int(n) for n in span.split(":")] for span in info["splits"].values()]
    assert set(info["splits"]) == {"train", "val"} and spans[0][1] == spans[1][0] and spans[1][1] == 3

    rows = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["videos/observation.images.top/file_index"] for row in rows] == [0, 1, 2]
    assert [row["data/file_index"] for row in rows] == [0, 1, 2]
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [(0, 9), (9, 18), (18, 27)]
    assert rows[0]["videos/observation.images.top/to_timestamp"] == pytest.approx(0.9)
    table = pq.read_table(tmp_path / "out/data/chunk-000/file-001.parquet")
    assert table.column("index").to_pylist() == list(range(9, 18))
    assert table.column("episode_index").to_pylist() == [1] * 9
    assert str(table.schema.field("action").type) == "fixed_size_list<element: float>[3]"
    tasks = pq.read_table(tmp_path / "out/meta/tasks.parquet").to_pydict()
    assert tasks["task_index"] == list(range(4)) and tasks["__index_level_0__"][0] == "lift it"


def test_rows_frames_and_tasks_meet_as_lerobot_looks_them_up(tmp_path: Path) -> None:
    """With nothing of this package: tasks by position, frames by time within 1e-4 s, rows by episode."""
    takes = {e: episode(e, rows) for e, rows in enumerate((9, 6, 12))}
    exported(tmp_path, list(takes.values()), val_fraction=0)
    root = tmp_path / "out"
    tasks = pd.read_parquet(root / "meta/tasks.parquet")
    data = pd.read_parquet(root / "data")
    table = pd.read_parquet(root / "meta/episodes")
    key = "videos/observation.images.wrist"
    info = json.loads((root / "meta/info.json").read_text())
    for e, row in table.iterrows():
        name = info["video_path"].format(
            video_key=key.removeprefix("videos/"),
            chunk_index=row[f"{key}/chunk_index"],
            file_index=row[f"{key}/file_index"],
        )
        with av.open(str(root / name)) as container:
            shot = {float(f.pts * f.time_base): f.to_ndarray(format="rgb24") for f in container.decode(video=0)}
        rows = data[data.episode_index == e].sort_values("frame_index")
        assert rows["index"].tolist() == list(range(row["dataset_from_index"], row["dataset_to_index"]))
        stored = [frame for clip in clips(tmp_path / "shards", f"take{e}") for frame in clip.video["wrist"]]
        for frame, (_, values) in zip(stored, rows.iterrows(), strict=True):
            wanted = row[f"{key}/from_timestamp"] + values["timestamp"]
            nearest = min(shot, key=lambda time: abs(time - wanted))
            assert abs(nearest - wanted) < 1e-4
            np.testing.assert_array_equal(shot[nearest], frame)
            assert tasks.iloc[values["task_index"]].name == "lift it"
        actions = np.stack(rows["action"].to_list())
        np.testing.assert_array_equal(actions, np.concatenate([takes[e].actions, takes[e].actions[-1:]]))


def test_its_statistics_are_those_of_the_rows(tmp_path: Path) -> None:
    exported(tmp_path, [episode(e) for e in range(3)])
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    rows = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet").column("action").to_pylist()
    np.testing.assert_allclose(stats["action"]["mean"], np.mean(rows, axis=0))
    np.testing.assert_allclose(stats["action"]["q90"], np.quantile(rows, 0.9, axis=0))
    assert stats["action"]["count"] == [27]
    image = stats["observation.images.top"]
    assert np.shape(image["mean"]) == (3, 1, 1)
    everything = np.concatenate([frames(e, 9) for e in range(3)]) / 255
    np.testing.assert_allclose(np.ravel(image["mean"]), everything.mean((0, 1, 2)), atol=0.03)
    assert image["min"][0][0][0] <= image["q01"][0][0][0] <= image["q50"][0][0][0] <= image["max"][0][0][0] <= 1


def test_what_the_format_can_not_hold_is_reported(tmp_path: Path) -> None:
    takes = [
        episode(0, success=None),
        episode(1, actions=numbers(1, 4, 3), state=numbers(1, 5, 2), reward=None),
        episode(2, views={"top": episode(2).views["top"]}),
        episode(3, actions=None, state=None, reward=None),
    ]
    report = exported(tmp_path, takes, val_fraction=0)
    assert [name for name, _ in report.skipped] == ["take2", "take3"]
    assert "no camera 'wrist'" in report.skipped[0][1] and "no actions" in report.skipped[1][1]
    assert report.notes["frames_without_action_left_out"] == 1
    assert report.notes["success_not_in_every_episode_left_out"] == 2
    assert report.notes["reward_not_in_every_episode_left_out"] == 2
    _, short = LeRobotSource(tmp_path / "out").episodes()
    np.testing.assert_array_equal(short.actions, numbers(1, 4, 3))
    assert len(shown(short.views["top"])) == 5


def test_video_without_actions_leaves_too(tmp_path: Path) -> None:
    spec = replace(SPEC, action_dim=0, state_dim=0, action_rate=0.0, action_names=(), state_names=())
    exported(
        tmp_path, [episode(e, embodiment=spec, actions=None, state=None, reward=None, prompts=()) for e in range(2)]
    )
    back = list(LeRobotSource(tmp_path / "out").episodes())
    assert back[0].actions is None and len(shown(back[1].views["wrist"])) == 9
    assert "no_prompt" in back[0].notes


def test_other_rates_and_several_bodies_are_refused(tmp_path: Path) -> None:
    fast = replace(SPEC, name="fast", action_rate=20.0)
    takes = [episode(0), episode(1, embodiment=fast, actions=numbers(0, 17, 3), state=numbers(0, 18, 2), reward=None)]
    folder = shards(tmp_path / "shards", takes, val_fraction=0)
    with pytest.raises(ConfigError, match="a LeRobot dataset has one body: give --embodiment NAME"):
        export_lerobot(folder, tmp_path / "out", ExportConfig())
    with pytest.raises(DataError, match="LeRobot has one rate: convert the recordings with --fps 20"):
        export_lerobot(folder, tmp_path / "out", ExportConfig(embodiment="fast"))
    with pytest.raises(ConfigError, match="--embodiment is 'armm'"):
        export_lerobot(folder, tmp_path / "out", ExportConfig(embodiment="armm"))
    assert export_lerobot(folder, tmp_path / "out", ExportConfig(embodiment="arm")).episodes == 1
    with pytest.raises(DataError, match="exists already"):
        export_lerobot(folder, tmp_path / "out", ExportConfig(embodiment="arm"))


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards", [episode(0)])
    (tar,) = folder.glob("*.tar")
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(DataError, match="no episode can leave"):
        export_lerobot(folder, tmp_path / "out", ExportConfig())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards"]


def test_the_command_tells_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = shards(tmp_path / "shards", [episode(0), episode(1, success=None)])
    assert main(["data", "export", str(folder), "--format", "lerobot", "--output", str(tmp_path / "out")]) == 0
    assert "2 episode(s), 18 frames" in (out := capsys.readouterr().out)
    assert "success_not_in_every_episode_left_out: 2" in out


def test_real_bridge_goes_round(real_data: Path, tmp_path: Path) -> None:
    first = LeRobotSource(real_data / "bridge_lerobot_v3")
    config = WriterConfig(dataset="bridge", height=256, width=256, val_fraction=0)
    convert(first, tmp_path / "shards", config, limit=3)
    export_lerobot(tmp_path / "shards", tmp_path / "out", ExportConfig())
    for before, after in zip(first.episodes(), LeRobotSource(tmp_path / "out").episodes(), strict=False):
        np.testing.assert_array_equal(after.actions, before.actions)
        view = before.embodiment.views[0]
        error = shown(after.views[view]).astype(np.float32) - shown(before.views[view])
        assert 10 * np.log10(255**2 / (error**2).mean()) >= 38
