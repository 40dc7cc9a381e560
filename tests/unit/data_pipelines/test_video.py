"""Plain videos: one an episode, or several cameras of one moment."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.video import VideoSource
from tests.unit.data_pipelines.lerobot_fixtures import FPS, frame, write_mp4
from wam_video.data.schema import Episode
from wam_video.data.sources import SkippedEpisode
from wam_video.errors import ConfigError, DataError


def clip(path: Path, episode: int = 0, length: int = 5, fps: int = FPS) -> Path:
    write_mp4(path, [frame(episode, i) for i in range(length)], fps=fps)
    return path


def test_videos_of_different_length_are_episodes_of_their_own(tmp_path: Path) -> None:
    clip(tmp_path / "a.one.mp4", length=5)
    clip(tmp_path / "b.mp4", length=7)
    first, second = VideoSource(tmp_path).episodes()

    assert (first.episode_id, second.episode_id) == ("a_one", "b")
    assert first.actions is None
    assert first.embodiment.action_dim == 0
    np.testing.assert_allclose(second.views["camera"].times, np.arange(7) / FPS)
    assert len(list(second.views["camera"].frames())) == 7
    assert "no_prompt" in first.notes


def test_videos_of_one_length_are_cameras_of_one_episode(tmp_path: Path) -> None:
    clip(tmp_path / "left.mp4", 0)
    clip(tmp_path / "right.mp4", 1)

    source = VideoSource(tmp_path)
    (episode,) = source.episodes()
    assert tuple(episode.views) == ("left", "right")
    assert "taken_as_cameras_of_one_episode" in source.notes
    assert len(list(VideoSource(tmp_path, multiview="no").episodes())) == 2
    (chosen,) = VideoSource(tmp_path, views="right").episodes()
    assert chosen.embodiment.views == ("right",)


def test_captions_make_videos_of_one_length_episodes_and_carry_facts(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    clip(tmp_path / "b.mp4")
    rows = [{"file": "a.mp4", "instruction": " open it ", "scene": "lab"}, {"file": "b.mp4", "instruction": ["x", "y"]}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    first, second = VideoSource(tmp_path).episodes()
    assert (first.prompts, first.extra) == (("open it",), {"scene": "lab"})
    assert second.prompts == ("x", "y")


def test_text_files_and_the_option_give_instructions_too(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", length=4)
    clip(tmp_path / "b.mp4", length=6)
    (tmp_path / "a.txt").write_text("push\nshove\n")

    first, second = VideoSource(tmp_path, prompt="anything").episodes()
    assert (first.prompts, second.prompts) == (("push", "shove"), ("anything",))


def test_a_folder_of_folders_is_an_episode_each(tmp_path: Path) -> None:
    for e in range(2):
        clip(tmp_path / f"take{e}" / "left.mp4", e)
        clip(tmp_path / f"take{e}" / "right.mp4", e)

    episodes = list(VideoSource(tmp_path).episodes())
    assert [(e.episode_id, tuple(e.views)) for e in episodes] == [(f"take{e}", ("left", "right")) for e in range(2)]


def test_a_damaged_video_is_skipped_by_name(tmp_path: Path) -> None:
    clip(tmp_path / "good.mp4", length=5)
    bad = clip(tmp_path / "bad.mp4", length=25)
    bad.write_bytes(bad.read_bytes()[:300])

    bad_item, good = VideoSource(tmp_path).episodes()
    assert isinstance(bad_item, SkippedEpisode)
    assert bad_item.episode_id == "bad"
    assert "truncated" in bad_item.reason
    assert isinstance(good, Episode)


def test_cameras_of_different_rates_are_not_synchronised(tmp_path: Path) -> None:
    clip(tmp_path / "left.mp4", fps=10)
    clip(tmp_path / "right.mp4", fps=20)

    (item,) = VideoSource(tmp_path, multiview="yes").episodes()
    assert isinstance(item, SkippedEpisode)
    assert "must be synchronised" in item.reason


def test_names_that_collide_without_their_dots_are_refused(tmp_path: Path) -> None:
    clip(tmp_path / "a.b.mp4", length=4)
    clip(tmp_path / "a_b.mp4", length=6)
    with pytest.raises(DataError, match="would both be episode 'a_b'"):
        VideoSource(tmp_path)


def test_wrong_options_are_named(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    with pytest.raises(ConfigError, match=r"multiview is 'maybe'; allowed: auto, no, yes"):
        VideoSource(tmp_path, multiview="maybe")
    with pytest.raises(DataError, match=r"captions file 'none.jsonl' does not exist"):
        VideoSource(tmp_path, captions="none.jsonl")


def test_real_clips_carry_their_instructions(real_data: Path) -> None:
    source = VideoSource(real_data / "droid_clips")
    assert source.len_hint == 100
    assert next(iter(source.episodes())).prompts == ("Put the pot upright",)


def test_real_cameras_of_one_moment_are_one_episode(real_data: Path) -> None:
    (episode,) = VideoSource(real_data / "droid_multiview").episodes()
    assert tuple(episode.views) == ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
    assert len(episode.views["wrist_image_left"].times) == 419
