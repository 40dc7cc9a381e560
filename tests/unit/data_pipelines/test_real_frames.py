"""Real Bridge frames, written in each documented layout of which no real file is at hand: format fixtures, named as such.

Each must be recognised by its content, give back the pixels and the numbers, and become shards.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_pipelines.rlds import RldsSource
from tests.unit.data_pipelines.recording_fixtures import encoded, shown
from tests.unit.data_pipelines.rlds_fixtures import group, image, marks, structure, tensor, text, write_rlds
from tests.unit.data_pipelines.test_umi import write_array
from wam_video.data.convert import convert
from wam_video.data.encode import WriterConfig
from wam_video.data.manifest import load_manifest
from wam_video.data.reader import load_clip
from wam_video.data.sources import detect, open_source
from wam_video.errors import DataError

Recording = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Frames, one action a frame, states."""


def robomimic(root: Path, frames: np.ndarray, actions: np.ndarray, state: np.ndarray) -> None:
    with h5py.File(root / "stack.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["obs/agentview_image"] = frames
        demo["obs/robot0_eef_pos"], demo["obs/robot0_eef_quat"] = state[:, :3], state[:, 2:6]
        demo["obs/robot0_gripper_qpos"] = state[:, 6:]
        demo["actions"] = actions


def libero(root: Path, frames: np.ndarray, actions: np.ndarray, state: np.ndarray) -> None:
    with h5py.File(root / "stack_demo.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "stack the cups"})
        file["data"].attrs["macros_image_convention"] = "opengl"
        demo["obs/agentview_rgb"] = frames[:, ::-1]
        demo["obs/ee_states"], demo["obs/gripper_states"] = state[:, :6], state[:, 6:]
        demo["actions"] = actions.astype(np.float64)


def aloha(root: Path, frames: np.ndarray, actions: np.ndarray, state: np.ndarray) -> None:
    with h5py.File(root / "episode_0.hdf5", "w") as file:
        file["action"], file["observations/qpos"] = actions, state
        file["observations/images/cam_high"] = frames


def replay_buffer(root: Path, frames: np.ndarray, actions: np.ndarray, state: np.ndarray) -> None:
    write_array(root / "meta/episode_ends", np.array([len(frames)]), 1)
    write_array(root / "data/camera0_rgb", frames, 1)
    write_array(root / "data/action", actions, 4)
    write_array(root / "data/state", state, 4)
    write_array(root / "data/timestamp", np.arange(len(frames)) / 5, 4)


def calvin(root: Path, frames: np.ndarray, actions: np.ndarray, state: np.ndarray) -> None:
    np.save(root / "ep_start_end_ids.npy", np.array([[0, len(frames) - 1]]))
    for row in range(len(frames)):
        columns = {"rel_actions": actions[row], "robot_obs": state[row]}
        np.savez(root / f"episode_{row:07d}.npz", rgb_static=frames[row], **columns)


def rlds(root: Path, frames: np.ndarray, actions: np.ndarray, state: np.ndarray) -> None:
    observation = group(image_0=image(), state=tensor(7))
    features = structure(action=tensor(7), observation=observation, language_instruction=text())
    steps = marks(len(frames)) | {
        "steps/action": actions,
        "steps/observation/state": state,
        "steps/observation/image_0": [encoded(frame) for frame in frames],
        "steps/language_instruction": [b"stack the cups"] * len(frames),
    }
    write_rlds(root / "1.0.0", features, [[steps]])


WRITERS: dict[str, tuple[str, Callable[..., None]]] = {
    "robomimic": ("robomimic", robomimic),
    "libero": ("robomimic", libero),
    "aloha": ("aloha", aloha),
    "zarr": ("umi", replay_buffer),
    "calvin": ("calvin", calvin),
    "rlds": ("rlds", rlds),
}


@pytest.fixture(scope="module")
def recording(real_data: Path) -> Recording:
    """The first real Bridge episode."""
    episode = next(iter(RldsSource(real_data / "bridge_rlds", views="image_0").episodes()))
    frames = shown(episode.views["image_0"])
    return frames, np.concatenate([episode.actions, np.ones((1, 7), np.float32)]), episode.state


@pytest.mark.parametrize("layout", WRITERS)
def test_real_frames_in_this_layout_come_back_and_become_shards(
    layout: str, recording: Recording, tmp_path: Path
) -> None:
    name, write = WRITERS[layout]
    root = tmp_path / "dataset"
    root.mkdir()
    write(root, *recording)
    frames, actions, state = recording

    assert detect(root).name == name
    source = open_source(root)
    (episode,) = source.episodes()
    (view,) = episode.views
    again = pickle.loads(pickle.dumps(episode))  # as it travels to the processes that encode
    np.testing.assert_array_equal(shown(again.views[view]), frames)
    np.testing.assert_array_equal(episode.actions, actions[:-1])
    assert episode.state.shape[0] == len(state)

    convert(source, tmp_path / "shards", WriterConfig(dataset="x", height=64, width=64, crf=1))
    manifest = load_manifest(tmp_path / "shards")
    ((shard, entry),) = [(shard, entry) for shard in manifest.shards for entry in shard.samples]
    clip = load_clip(tmp_path / "shards", shard, entry)
    np.testing.assert_array_equal(clip.actions, actions[:-1])
    np.testing.assert_array_equal(clip.state, episode.state)
    error = (clip.video[view].astype(float) - frames) ** 2
    # each stored frame is nearest to its own recorded one: none is shifted by a step
    distances = [[((a.astype(float) - b) ** 2).mean() for b in frames] for a in clip.video[view]]
    assert np.argmin(distances, axis=1).tolist() == list(range(len(frames)))
    assert 10 * np.log10(255**2 / error.mean()) > 34


def test_every_real_folder_is_recognised_or_refused(real_data: Path) -> None:
    expected = {
        "bridge_lerobot_v3": "lerobot",
        "bridge_rlds": "rlds",
        "droid_clips": "video",
        "droid_multiview": "video",
        "gr1_lerobot_v2": "lerobot",
        "language_table": "irasim",
        "vla_foundry_wds": "webdataset",
    }
    for folder, name in expected.items():
        source = open_source(real_data / folder)
        assert source.name == name
        next(iter(source.episodes()))
    with pytest.raises(DataError, match="render them first"):
        open_source(real_data / "robosuite_states_only")
