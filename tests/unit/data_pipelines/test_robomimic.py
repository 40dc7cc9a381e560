"""Robomimic, LIBERO and robosuite HDF5 files: format fixtures in their real layout, with the oddities of files in the wild."""

import json
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_pipelines.robomimic import RobomimicSource
from tests.unit.data_pipelines.recording_fixtures import cut, frame, frames, numbers, shown
from wam_video.data.convert import convert
from wam_video.data.encode import WriterConfig
from wam_video.data.reader import load_clip
from wam_video.data.schema import Episode
from wam_video.data.sources import SkippedEpisode, detect
from wam_video.errors import ConfigError, DataError

LONG = "LIVING_ROOM_SCENE5_put_the_white_mug_on_the_left_plate_and_put_the_yellow_and_white_mug_on_the_right_plate_demo"


def robomimic(path: Path, lengths=(5, 6, 7)) -> Path:
    """Demonstrations 0, 2, 10 as robomimic writes them, upright, at 10 Hz."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        keywords = {"control_freq": 10, "robots": ["Panda"]}
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_type": 1, "env_kwargs": keywords})
        for e, (number, length) in enumerate(zip((0, 2, 10), lengths, strict=True)):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = length
            demo["actions"] = numbers(e, length, 7, np.float64)
            demo["rewards"] = np.eye(length)[-1] * (e > 0)
            demo["states"] = numbers(e, length, 30)
            demo["obs/agentview_image"] = frames(e, length)
            demo["obs/agentview_depth"] = np.zeros((length, 32, 32, 1), np.float32)
            demo["obs/robot0_eef_pos"] = numbers(e, length, 3)
            demo["obs/robot0_eef_quat"] = numbers(e, length, 4)
            demo["obs/robot0_gripper_qpos"] = numbers(e, length, 2)
        file["mask/train"] = np.array([b"demo_10", b"demo_0"])
    return path


def libero(path: Path, length: int = 5, convention: str | None = "opengl", instruction='"open the drawer"') -> Path:
    """One demonstration as LIBERO writes it: upside down."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"problem_name": "x", "language_instruction": instruction})
        data.attrs["bddl_file_name"] = "x.bddl"
        data.attrs["env_args"] = json.dumps({"env_kwargs": {"robots": ["Panda"], "control_freq": 20}})
        if convention:
            data.attrs["macros_image_convention"] = convention
        demo = data.create_group("demo_0")
        demo["actions"] = numbers(0, length, 7, np.float64)
        demo["obs/agentview_rgb"] = frames(0, length)[:, ::-1]
        demo["obs/eye_in_hand_rgb"] = frames(1, length)[:, ::-1]
        demo["obs/ee_states"], demo["obs/gripper_states"] = numbers(0, length, 6), numbers(0, length, 2)
        demo["obs/joint_states"] = numbers(0, length, 7)
        demo["rewards"], demo["dones"] = np.eye(length)[-1].astype(np.uint8), np.eye(length)[-1].astype(np.uint8)
    return path


def test_demonstrations_come_by_number_with_their_rows(tmp_path: Path) -> None:
    source = RobomimicSource(robomimic(tmp_path / "lift.hdf5"))
    episodes = list(source.episodes())

    assert [e.episode_id for e in episodes] == ["lift-demo_0", "lift-demo_2", "lift-demo_10"]
    last = episodes[2]
    np.testing.assert_array_equal(last.actions, numbers(2, 6, 7))
    assert last.state.shape == (7, 9)
    np.testing.assert_array_equal(shown(last.views["agentview"]), frames(2, 7))
    assert (last.embodiment.name, last.embodiment.fps) == ("robomimic_panda", 10)
    assert [e.success for e in episodes] == [None, True, True]
    assert {"last_action_without_frame", "no_prompt", "array_left_out:agentview_depth"} <= set(last.notes)


def test_a_filter_key_chooses_demonstrations(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "lift.hdf5")
    chosen = RobomimicSource(path, filter_key="train").episodes()
    assert [e.episode_id for e in chosen] == ["lift-demo_0", "lift-demo_10"]
    with pytest.raises(ConfigError, match="filter_key is 'trian'; allowed: train"):
        RobomimicSource(path, filter_key="trian")


@pytest.mark.parametrize("convention", ["opengl", None])
def test_liberos_images_are_turned_upright_and_not_mirrored(tmp_path: Path, convention: str | None) -> None:
    (episode,) = RobomimicSource(
        libero(tmp_path / "KITCHEN_SCENE1_open_it_demo.hdf5", convention=convention)
    ).episodes()
    np.testing.assert_array_equal(shown(episode.views["agentview"]), frames(0, 5))
    assert "images_turned:flip" in episode.notes
    assert ("image_convention_not_recorded" in episode.notes) is (convention is None)
    assert episode.prompts == ("open the drawer",)
    assert episode.state.shape == (5, 8)
    assert episode.embodiment.state_names[-1] == "finger_right"


def test_the_turn_can_be_chosen(tmp_path: Path) -> None:
    path = libero(tmp_path / "a.hdf5", convention="opencv")
    (episode,) = RobomimicSource(path).episodes()
    np.testing.assert_array_equal(next(episode.views["agentview"].frames()), frame(0, 0)[::-1])
    (episode,) = RobomimicSource(path, turn="rotate").episodes()
    np.testing.assert_array_equal(next(episode.views["agentview"].frames()), frame(0, 0)[:, ::-1])
    with pytest.raises(ConfigError, match="turn is 'fip'"):
        RobomimicSource(path, turn="fip")


def test_the_file_name_is_the_instruction_where_the_file_has_none_and_may_be_long(tmp_path: Path) -> None:
    source = RobomimicSource(libero(tmp_path / f"{LONG}.hdf5", instruction=[]))
    (episode,) = source.episodes()
    assert episode.prompts[0].startswith("put the white mug on the left plate")
    assert "prompt_from_file_name" in episode.notes
    manifest = convert(source, tmp_path / "out", WriterConfig(dataset="x", height=32, width=32))
    (clip,) = [load_clip(tmp_path / "out", shard, entry) for shard in manifest.shards for entry in shard.samples]
    np.testing.assert_array_equal(clip.actions, numbers(0, 4, 7))
    np.testing.assert_allclose(clip.video["agentview"].mean((1, 2, 3)), frames(0, 5).mean((1, 2, 3)), atol=2)


def test_steps_without_operation_are_reported(tmp_path: Path) -> None:
    path = libero(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_0/actions"][2:4] = [0, 0, 0, 0, 0, 0, -1]
    (episode,) = RobomimicSource(path).episodes()
    assert "no_operation_actions" in episode.notes
    assert len(episode.actions) == 4


def test_a_truncated_file_is_skipped_among_others_and_refused_alone(tmp_path: Path) -> None:
    libero(tmp_path / "a.hdf5")
    bad = cut(libero(tmp_path / "b.hdf5"))
    first, second = RobomimicSource(tmp_path).episodes()
    assert isinstance(first, Episode)
    assert isinstance(second, SkippedEpisode) and second.episode_id == "b" and "truncated" in second.reason
    with pytest.raises(DataError, match=r"b\.hdf5: can't be read as HDF5"):
        RobomimicSource(bad)


def test_damaged_demonstrations_are_skipped_by_name(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "lift.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_0/actions"]
        file["data/demo_0"]["actions"] = numbers(0, 3, 7)
        file["data/demo_2/actions"][1, 0] = np.nan
    items = list(RobomimicSource(path).episodes())
    assert "actions have 3 rows for 5 frames" in items[0].reason
    assert "actions: row 1 is not finite" in items[1].reason
    assert isinstance(items[2], Episode)


def test_nothing_outside_the_file_is_followed(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "lift.hdf5")
    secret = robomimic(tmp_path / "secret.h5")
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/agentview_image"], file["data/demo_2/actions"]
        file["data/demo_0/obs/agentview_image"] = h5py.ExternalLink(secret.name, "/data/demo_0/obs/agentview_image")
        file["data/demo_2"].create_dataset("actions", (6, 7), "<f8", external=[(str(secret), 0, 336)])
    items = list(RobomimicSource(path).episodes())
    assert "link to another file" in items[0].reason
    assert "values in other files" in items[1].reason


def test_a_header_of_a_billion_frames_is_refused_at_once(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "lift.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/agentview_image"], file["data/demo_2/actions"]
        file["data/demo_0/obs"].create_dataset("agentview_image", (10**9, 32, 32, 3), "u1", chunks=(1, 32, 32, 3))
        file["data/demo_2"].create_dataset("actions", (10**9, 7), "<f4", chunks=(1, 7))
    items = list(RobomimicSource(path).episodes())
    assert "1000000000 rows" in items[0].reason
    assert "no recording is so long" in items[1].reason


def test_a_chunk_that_inflates_to_more_than_it_should_is_refused(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "lift.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/agentview_image"]
        shape = {"chunks": (1, 32, 32, 3), "compression": "gzip", "data": frames(0, 5)}
        images = file["data/demo_0/obs"].create_dataset("agentview_image", **shape)
        images.id.write_direct_chunk((3, 0, 0, 0), zlib.compress(bytes(64 << 20)))
    episode = next(iter(RobomimicSource(path).episodes()))
    with pytest.raises(DataError, match=r"chunk at \(3, 0, 0, 0\) is stored in \d+ bytes and should hold 3072"):
        shown(episode.views["agentview"])
    with h5py.File(path, "a") as file:
        file["data/demo_0/obs/agentview_image"][3] = frames(0, 5)[3]
    np.testing.assert_array_equal(shown(episode.views["agentview"]), frames(0, 5))


def test_it_is_found_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    libero(tmp_path / "suite" / "a_demo.hdf5")
    assert detect(tmp_path / "suite") is RobomimicSource
    assert detect(tmp_path / "suite" / "a_demo.hdf5") is RobomimicSource


def test_states_without_images_are_refused(real_data: Path) -> None:
    folder = real_data / "robosuite_states_only"
    assert detect(folder) is RobomimicSource
    with pytest.raises(DataError, match="no observations, so there is no video; render them first"):
        RobomimicSource(folder)
