"""Zarr replay buffers: format fixtures in the layout of UMI and of Diffusion Policy, also as zarr itself writes them."""

import gzip
import json
import zipfile
from pathlib import Path

import numcodecs
import numpy as np
import pytest

from data_pipelines.umi import UmiSource
from data_pipelines.umi.chunks import decode_chunk
from tests.unit.data_pipelines.lerobot_fixtures import write_mp4
from tests.unit.data_pipelines.recording_fixtures import cut, frames, numbers, shown
from wam_video.data.convert import convert
from wam_video.data.encode import WriterConfig
from wam_video.data.schema import Episode
from wam_video.data.sources import SkippedEpisode, detect
from wam_video.errors import ConfigError, DataError

LENGTHS = (5, 6, 4)
BLOSC = {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 1, "blocksize": 0}


def write_array(folder: Path, values: np.ndarray, rows: int, compressor: dict | None = BLOSC) -> None:
    """A zarr v2 array, chunked along its first axis, byte for byte as zarr 2 writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = (rows, *values.shape[1:])
    header = {"zarr_format": 2, "shape": list(values.shape), "chunks": list(chunks), "dtype": values.dtype.str}
    header |= {"compressor": compressor, "fill_value": 0, "order": "C", "filters": None}
    (folder / ".zarray").write_text(json.dumps(header))
    for number, start in enumerate(range(0, len(values), rows)):
        chunk = np.zeros(chunks, values.dtype)
        chunk[: len(values[start : start + rows])] = values[start : start + rows]
        data = numcodecs.get_codec(compressor).encode(chunk) if compressor else chunk.tobytes()
        (folder / ".".join([str(number)] + ["0"] * (values.ndim - 1))).write_bytes(bytes(data))


def stacked(make, *args) -> np.ndarray:
    return np.concatenate([make(e, length, *args) for e, length in enumerate(LENGTHS)])


def umi(root: Path, compressor: dict | None = BLOSC, image: dict | None = BLOSC) -> Path:
    write_array(root / "meta/episode_ends", np.cumsum(LENGTHS), 3, compressor)
    write_array(root / "data/camera0_rgb", stacked(frames), 1, image)
    write_array(root / "data/robot0_eef_pos", stacked(numbers, 3), 4, compressor)
    write_array(root / "data/robot0_eef_rot_axis_angle", stacked(numbers, 3) + 1, 4, compressor)
    write_array(root / "data/robot0_gripper_width", stacked(numbers, 1) + 2, 4, compressor)
    write_array(root / "data/robot0_demo_start_pose", stacked(numbers, 6, np.float64), 4, compressor)
    return root


def pusht(root: Path) -> Path:
    write_array(root / "meta/episode_ends", np.cumsum(LENGTHS), 3)
    write_array(root / "data/img", stacked(frames).astype(np.float32), 7)
    write_array(root / "data/action", stacked(numbers, 2), 7)
    write_array(root / "data/state", stacked(numbers, 5), 7)
    write_array(root / "data/n_contacts", stacked(numbers, 1), 7)
    return root


def zipped(root: Path) -> Path:
    path = root.with_name(root.name + ".zip")
    with zipfile.ZipFile(path, "w") as file:
        for part in sorted(p for p in root.rglob("*") if p.is_file()):
            file.write(part, part.relative_to(root).as_posix())
    return path


@pytest.mark.parametrize("pack", [False, True])
def test_the_next_pose_of_umi_is_the_action(tmp_path: Path, pack: bool) -> None:
    root = umi(tmp_path / "cup.zarr")
    root = zipped(root) if pack else root
    assert detect(root) is UmiSource
    source = UmiSource(root, prompt="serve the cup")
    episodes = list(source.episodes())

    for e, episode in enumerate(episodes):
        assert isinstance(episode, Episode)
        np.testing.assert_array_equal(shown(episode.views["camera0"]), frames(e, LENGTHS[e]))
        np.testing.assert_array_equal(episode.actions, episode.state[1:])
        np.testing.assert_array_equal(episode.state[:, 6:], numbers(e, LENGTHS[e], 1) + 2)
    assert episodes[1].embodiment.action_names[-1] == "robot0_gripper_width"
    assert episodes[1].embodiment.fps == pytest.approx(59.94, abs=1e-3)
    assert "actions_are_next_poses" in episodes[1].notes
    assert set(source.notes) == {"array_left_out:robot0_demo_start_pose", "rate_not_recorded:59.94_taken"}


def test_pushts_float_images_are_read(tmp_path: Path) -> None:
    source = UmiSource(pusht(tmp_path / "pusht.zarr"))
    episode = list(source.episodes())[2]
    np.testing.assert_array_equal(shown(episode.views["img"]), frames(2, 4))
    np.testing.assert_array_equal(episode.actions, numbers(2, 3, 2))
    assert (episode.embodiment.name, episode.embodiment.fps, episode.state.shape) == ("pusht", 10, (4, 5))
    assert "last_action_without_frame" in episode.notes


def test_recorded_times_give_the_rate_and_an_unknown_one_must_be_given(tmp_path: Path) -> None:
    root = pusht(tmp_path / "real.zarr")
    (root / "data/n_contacts").rename(root / "data/stage")
    with pytest.raises(ConfigError, match="the rate is not recorded; give it with --option fps=F"):
        UmiSource(root)
    write_array(root / "data/timestamp", 1000.0 + np.arange(sum(LENGTHS)) / 12.5, 7)
    assert next(iter(UmiSource(root).episodes())).embodiment.fps == 12.5


def test_videos_beside_a_buffer_keep_their_own_rate(tmp_path: Path) -> None:
    root = tmp_path / "replay_buffer.zarr"
    write_array(root / "meta/episode_ends", np.cumsum(LENGTHS), 3)
    write_array(root / "data/action", stacked(numbers, 6), 7)
    write_array(root / "data/robot_eef_pose", stacked(numbers, 6), 7)
    write_array(
        root / "data/timestamp", np.concatenate([100.0 * e + np.arange(n) / 10 for e, n in enumerate(LENGTHS)]), 7
    )
    for e, length in enumerate(LENGTHS):
        write_mp4(tmp_path / f"videos/{e}/0.mp4", list(frames(e, 3 * length)), fps=30)
    cut(tmp_path / "videos/2/0.mp4")
    assert detect(tmp_path) is UmiSource
    _, second, third = UmiSource(tmp_path).episodes()
    assert (second.embodiment.fps, second.embodiment.action_rate) == (30, 10)
    assert len(second.views["camera_0"].times) == 16 and second.views["camera_0"].times[-1] == pytest.approx(0.5)
    np.testing.assert_array_equal(second.actions, numbers(1, 5, 6))
    assert isinstance(third, SkippedEpisode) and "videos/2/0.mp4" in third.reason


@pytest.mark.parametrize("codec", [None, {"id": "zlib", "level": 1}, {"id": "gzip", "level": 1}, {"id": "zstd", "level": 3},
                                   {"id": "lz4", "acceleration": 1}, {"id": "bz2", "level": 1},
                                   {"id": "lzma", "format": 1, "check": -1, "preset": None, "filters": None}])  # fmt: skip
def test_every_usual_compressor_is_read(tmp_path: Path, codec: dict | None) -> None:
    episodes = list(UmiSource(umi(tmp_path / "a.zarr", codec, codec)).episodes())
    np.testing.assert_array_equal(shown(episodes[1].views["camera0"]), frames(1, 6))
    np.testing.assert_array_equal(episodes[2].state[:, :3], numbers(2, 4, 3))


def test_jpeg_xl_is_read(tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs.numcodecs").register_codecs(verbose=False)
    config = {"id": "imagecodecs_jpegxl", "level": 99, "lossless": True}
    root = umi(tmp_path / "a.zarr", image=config)
    header = json.loads((root / "data/camera0_rgb/.zarray").read_text())
    header["compressor"]["setting_of_another_version"] = None
    (root / "data/camera0_rgb/.zarray").write_text(json.dumps(header))
    episodes = list(UmiSource(root).episodes())
    np.testing.assert_array_equal(shown(episodes[1].views["camera0"]), frames(1, 6))
    with pytest.raises(DataError, match="imagecodecs_jpegxl"):
        decode_chunk(b"\xff\x0a broken", config, (1, 32, 32, 3), np.dtype("u1"))


def test_what_zarr_itself_writes_is_read(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    for name, values in {"meta/episode_ends": np.cumsum(LENGTHS), "data/img": stacked(frames)}.items():
        group.create_array(
            name, data=values, chunks=(4, *([16] * (values.ndim - 2)), *([3] if values.ndim > 1 else []))
        )
    group.create_array("data/action", data=stacked(numbers, 2), chunks=(4, 1), order="F")
    episodes = list(UmiSource(tmp_path / "a.zarr", fps=10).episodes())
    np.testing.assert_array_equal(shown(episodes[1].views["img"]), frames(1, 6))
    np.testing.assert_array_equal(episodes[1].actions, numbers(1, 5, 2))


def test_it_converts_and_a_damaged_chunk_skips_its_episode(tmp_path: Path) -> None:
    root = umi(tmp_path / "a.zarr")
    cut(root / "data/camera0_rgb/6.0.0.0")
    (root / "data/camera0_rgb/12.0.0.0").unlink()
    config = WriterConfig(dataset="x", height=32, width=32, val_fraction=0)
    manifest = convert(UmiSource(root), tmp_path / "out", config)
    (skipped,) = manifest.skipped
    assert skipped.episode_id == "episode_000001" and "camera0_rgb/6.0.0.0" in skipped.reason
    assert manifest.notes["chunks_missing:camera0_rgb:1"] == 1


def test_missing_rows_skip_the_last_episodes(tmp_path: Path) -> None:
    root = umi(tmp_path / "a.zarr")
    write_array(root / "data/robot0_gripper_width", stacked(numbers, 1)[:12], 4)
    first, second, third = UmiSource(root).episodes()
    assert isinstance(first, Episode) and isinstance(second, Episode)
    assert isinstance(third, SkippedEpisode) and "has 12 rows; this episode ends at row 15" in third.reason


def test_a_truncated_zip_is_refused_by_name(tmp_path: Path) -> None:
    path = cut(zipped(umi(tmp_path / "a.zarr")))
    assert detect(path) is UmiSource
    with pytest.raises(DataError, match=r"not a readable zip .* truncated"):
        UmiSource(path)


def test_bombs_and_pickles_are_refused_before_they_go_off(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    with pytest.raises(DataError, match="holds more than 3072 bytes"):
        decode_chunk(bomb, {"id": "gzip"}, (1, 32, 32, 3), np.dtype("u1"))
    blosc = bytes(numcodecs.get_codec(BLOSC).encode(np.zeros(8 << 20, np.uint8)))
    with pytest.raises(DataError, match="header promises 8388608 bytes, a chunk has 3072"):
        decode_chunk(blosc, BLOSC, (1, 32, 32, 3), np.dtype("u1"))
    for change, words in (
        ({"dtype": "|O", "filters": [{"id": "pickle"}]}, "only plain numbers are read"),
        ({"compressor": {"id": "pickle"}}, "compressor is 'pickle'"),
        ({"chunks": [10**9, 32, 32, 3], "shape": [10**9, 32, 32, 3]}, "rechunk it"),
        ({"dtype": "nonsense"}, r"\.zarray is broken"),
    ):
        root = umi(tmp_path / f"{len(words)}.zarr")
        path = root / "data/camera0_rgb/.zarray"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(DataError, match=words):
            UmiSource(root)


def test_a_billion_rows_are_refused_at_once(tmp_path: Path) -> None:
    root = umi(tmp_path / "a.zarr")
    write_array(root / "meta/episode_ends", np.array([5, 10**9]), 3)
    path = root / "data/camera0_rgb/.zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": [10**9, 32, 32, 3]}))
    _, huge = UmiSource(root).episodes()
    assert isinstance(huge, SkippedEpisode) and "999999995 rows" in huge.reason
