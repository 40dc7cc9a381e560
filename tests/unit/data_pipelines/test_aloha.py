"""ALOHA episodes: format fixtures as ACT's recorder writes them, raw and compressed."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from data_pipelines.aloha import AlohaSource
from tests.unit.data_pipelines.recording_fixtures import cut, encoded, frames, numbers, shown
from wam_video.data.convert import convert
from wam_video.data.encode import WriterConfig
from wam_video.data.schema import Episode
from wam_video.data.sources import SkippedEpisode, detect
from wam_video.errors import ConfigError


def aloha(folder: Path, episode: int, rows: int = 5, *, compress: bool = False, mobile: bool = False) -> Path:
    path = folder / f"episode_{episode}.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = False
        file["action"] = numbers(episode, rows, 14)
        file["observations/qpos"] = numbers(episode, rows, 14) + 1
        file["observations/qvel"] = numbers(episode, rows, 14)
        if mobile:
            file["base_action"] = numbers(episode, rows, 2)
        for camera in ("cam_high", "cam_left_wrist"):
            images = frames(episode, rows)
            if compress:
                file.attrs["compress"] = True
                parts = [np.frombuffer(encoded(image, "JPEG"), np.uint8) for image in images]
                longest = max(len(part) for part in parts)
                images = np.stack([np.pad(part, (0, longest - len(part))) for part in parts])
                file.require_dataset("compress_len", (2, rows), "i8", data=np.full((2, rows), longest))
            file[f"observations/images/{camera}"] = images
    return path


def test_episodes_come_by_number_with_names_and_units(tmp_path: Path) -> None:
    for episode in (10, 9):
        aloha(tmp_path, episode)
    source = AlohaSource(tmp_path, prompt="lift the cube")
    nine, ten = source.episodes()

    assert (nine.episode_id, ten.episode_id) == ("episode_9", "episode_10")
    np.testing.assert_array_equal(ten.actions, numbers(10, 4, 14))
    np.testing.assert_array_equal(ten.state, numbers(10, 5, 14) + 1)
    assert ten.embodiment.action_names[6] == "left_gripper"
    assert ten.embodiment.action_units[6:8] == ("normalised", "rad")
    assert ten.prompts == ("lift the cube",)
    assert "observation_left_out:qvel" in ten.notes
    assert source.notes == ("rate_not_recorded:50_taken",)
    assert detect(tmp_path) is AlohaSource


def test_padded_jpegs_are_decoded_and_their_colours_can_be_swapped(tmp_path: Path) -> None:
    aloha(tmp_path, 0, compress=True)
    (episode,) = AlohaSource(tmp_path).episodes()
    (swapped,) = AlohaSource(tmp_path, colours="bgr").episodes()
    images = shown(episode.views["cam_high"])
    assert np.abs(images.astype(int) - frames(0, 5)).mean() < 6
    np.testing.assert_array_equal(shown(swapped.views["cam_high"]), images[..., ::-1])
    assert "jpeg_colour_order_not_recorded" in episode.notes


def test_jpegs_of_any_length_are_decoded(tmp_path: Path) -> None:
    path = aloha(tmp_path, 0)
    with h5py.File(path, "a") as file:
        del file["observations/images/cam_high"]
        kind = h5py.vlen_dtype(np.uint8)
        node = file["observations/images"].create_dataset("cam_high", (5,), kind)
        for row, image in enumerate(frames(0, 5)):
            node[row] = np.frombuffer(encoded(image), np.uint8)
    (episode,) = AlohaSource(tmp_path, views="cam_high").episodes()
    np.testing.assert_array_equal(shown(episode.views["cam_high"]), frames(0, 5))


def test_a_mobile_base_and_a_delay_are_options(tmp_path: Path) -> None:
    aloha(tmp_path, 0, mobile=True)
    (plain,) = AlohaSource(tmp_path).episodes()
    (mobile,) = AlohaSource(tmp_path, base="yes", state_keys="qpos,qvel", action_delay=1).episodes()
    assert "base_action_left_out" in plain.notes
    assert mobile.embodiment.action_names[-1] == "base_angular"
    assert mobile.state.shape == (5, 28)
    np.testing.assert_array_equal(mobile.actions[:, :14], numbers(0, 4, 14)[[0, 0, 1, 2]])


def test_a_truncated_file_and_a_missing_camera_are_skipped_by_name(tmp_path: Path) -> None:
    aloha(tmp_path, 0)
    cut(aloha(tmp_path, 1))
    with h5py.File(aloha(tmp_path, 2), "a") as file:
        del file["observations/images"]
    good, truncated, blind = AlohaSource(tmp_path).episodes()
    assert isinstance(good, Episode)
    assert isinstance(truncated, SkippedEpisode) and "truncated" in truncated.reason
    assert isinstance(blind, SkippedEpisode) and "no observations/images" in blind.reason


def test_a_damaged_jpeg_skips_its_episode_while_encoding(tmp_path: Path) -> None:
    for episode in (0, 1):
        path = aloha(tmp_path, episode, compress=True)
    with h5py.File(path, "a") as file:
        file["observations/images/cam_high"][3] = 0
    manifest = convert(AlohaSource(tmp_path), tmp_path / "out", WriterConfig(dataset="x", height=32, width=32))
    (skipped,) = manifest.skipped
    assert skipped.episode_id == "episode_1"
    assert "frame 3: not a readable image" in skipped.reason


def test_wrong_options_are_named(tmp_path: Path) -> None:
    aloha(tmp_path, 0)
    with pytest.raises(ConfigError, match="colours is 'gbr'"):
        AlohaSource(tmp_path, colours="gbr")
    with pytest.raises(ConfigError, match="view is 'cam_hihg'"):
        list(AlohaSource(tmp_path, views="cam_hihg").episodes())
