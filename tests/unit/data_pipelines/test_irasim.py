"""Annotated videos in the layout of IRASim and Cosmos: format fixtures, and a real Language-Table recording."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.irasim import IRASimSource
from tests.unit.data_pipelines.lerobot_fixtures import FPS, write_mp4
from tests.unit.data_pipelines.recording_fixtures import cut, frame, frames, numbers, shown
from wam_video.data.schema import Episode
from wam_video.data.sources import SkippedEpisode, detect
from wam_video.errors import DataError


def recording(root: Path, number: int, length: int = 5, split: str = "train", **changes) -> Path:
    """One annotation with its video, as the Bridge layout of Cosmos has them."""
    video = f"videos/{split}/{number}/rgb.mp4"
    write_mp4(root / video, [frame(number, i) for i in range(length)])
    content = {
        "task": "robot_trajectory_prediction",
        "texts": [f"task {number}"],
        "videos": [{"video_path": video}],
        "action": numbers(number, length - 1, 7).tolist(),
        "state": numbers(number, length, 6).tolist(),
        "continuous_gripper_state": numbers(number, length, 1).reshape(-1).tolist(),
        "episode_id": str(number),
    }
    path = root / "annotation" / split / f"{number}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not None}))
    return path


def test_actions_state_and_video_belong_together(tmp_path: Path) -> None:
    recording(tmp_path, 0)
    recording(tmp_path, 1, split="val")
    assert detect(tmp_path) is IRASimSource
    first, second = IRASimSource(tmp_path).episodes()
    assert (first.episode_id, second.episode_id) == ("train-0", "val-1")
    np.testing.assert_array_equal(second.actions, numbers(1, 4, 7))
    np.testing.assert_array_equal(second.state[:, 6:], numbers(1, 5, 1))
    assert np.abs(shown(second.views["camera"]).astype(int) - frames(1, 5)).mean() < 12
    assert (second.prompts, second.embodiment.fps) == (("task 1",), FPS)
    assert [e.episode_id for e in IRASimSource(tmp_path, split="val").episodes()] == ["val-1"]


def test_an_action_for_each_frame_loses_the_last_and_longer_videos_are_told(tmp_path: Path) -> None:
    recording(tmp_path, 0, action=numbers(0, 5, 7).tolist())
    recording(tmp_path, 1, action=numbers(1, 3, 7).tolist())
    same, longer = IRASimSource(tmp_path).episodes()
    np.testing.assert_array_equal(same.actions, numbers(0, 4, 7))
    assert "last_action_without_frame" in same.notes
    assert len(longer.views["camera"].times) == 4 and len(longer.state) == 4
    assert {"more_frames_than_actions:1", "more_states_than_frames:1"} <= set(longer.notes)


def test_what_can_not_be_used_is_skipped_by_name(tmp_path: Path) -> None:
    recording(tmp_path, 0)
    recording(tmp_path, 1, action=numbers(1, 9, 7).tolist())
    recording(tmp_path, 2, action=[[1.0], [2.0, 3.0]])
    recording(tmp_path, 3, videos=[{"video_path": "../../etc/passwd"}])
    recording(tmp_path, 4, videos=None)
    cut(recording(tmp_path, 5))
    recording(tmp_path, 6)
    cut(tmp_path / "videos/train/6/rgb.mp4")
    good, *bad = IRASimSource(tmp_path).episodes()
    assert isinstance(good, Episode)
    assert all(isinstance(item, SkippedEpisode) for item in bad)
    words = (
        "9 rows for 5 frames",
        "differ in length",
        "is missing",
        "names no video",
        "not readable as JSON",
        "not a readable video",
    )
    assert [word for word, item in zip(words, bad, strict=True) if word not in item.reason] == []


def test_several_videos_are_cameras_of_one_moment(tmp_path: Path) -> None:
    for name in ("left", "right"):
        write_mp4(tmp_path / f"videos/{name}.mp4", [frame(0, i) for i in range(5)])
    recording(tmp_path, 0, videos=[{"video_path": f"videos/{name}.mp4"} for name in ("left", "right")])
    (episode,) = IRASimSource(tmp_path).episodes()
    assert tuple(episode.views) == ("left", "right")


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no annotation there"):
        IRASimSource(tmp_path)


def test_a_real_recording_whose_video_was_moved(real_data: Path) -> None:
    folder = real_data / "language_table"
    assert detect(folder) is IRASimSource
    (episode,) = IRASimSource(folder).episodes()
    assert isinstance(episode, Episode)
    assert (episode.actions.shape, len(episode.views["camera"].times)) == ((17, 2), 18)
    assert {"video_moved", "no_prompt"} <= set(episode.notes)
