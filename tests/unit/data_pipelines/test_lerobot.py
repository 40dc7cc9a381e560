"""LeRobot datasets in the shapes in which they occur, small enough to write here."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.lerobot import LeRobotSource
from tests.unit.data_pipelines.lerobot_fixtures import FPS, action, frame, images_v2, quirky_v21, shared_v3
from wam_video.data.schema import Episode
from wam_video.data.sources import SkippedEpisode
from wam_video.errors import ConfigError, DataError


def read(source: LeRobotSource) -> list[Episode]:
    items = list(source.episodes())
    assert all(isinstance(item, Episode) for item in items), items
    return items


def has_note(notes, prefix: str) -> bool:
    return any(note.startswith(prefix) for note in notes)


def brightness(image: np.ndarray) -> float:
    return float(image[20:, 20:].mean())


def test_a_hand_rolled_v21_is_read_and_its_oddities_are_named(tmp_path: Path) -> None:
    source = LeRobotSource(quirky_v21(tmp_path))
    episodes = read(source)

    assert [e.episode_id for e in episodes] == ["episode_000000", "episode_000001", "episode_000002"]
    assert tuple(episodes[0].views) == ("wrist_left", "dead")
    assert episodes[1].prompts == ("fold cloth 1",)
    assert "declared_view_without_files:observation_images_never_written" in source.notes
    assert "data_path_template_uses_chunk_index" in source.notes
    notes = episodes[0].notes
    assert {"no_index", "no_task_index", "last_action_without_frame"} <= set(notes)
    assert "declared_codec_differs:wrist_left:mpeg4!=h264" in notes
    assert "declared_shape_channels_first:wrist_left" in notes


def test_t_rows_give_t_frames_t_states_and_one_action_less(tmp_path: Path) -> None:
    episode = read(LeRobotSource(quirky_v21(tmp_path)))[1]

    frames = list(episode.views["wrist_left"].frames())
    assert (len(frames), episode.actions.shape, episode.state.shape) == (9, (8, 3), (9, 3))
    assert episode.actions.dtype == episode.state.dtype == np.float32
    np.testing.assert_allclose(episode.actions, [action(1, i) for i in range(8)], rtol=1e-6)
    np.testing.assert_allclose(episode.views["wrist_left"].times, np.arange(9) / FPS)


@pytest.mark.parametrize("drift", [0.0, 0.04, 0.1])
def test_frames_of_a_shared_video_belong_to_their_rows_even_when_offsets_drift(tmp_path: Path, drift: float) -> None:
    for e, episode in enumerate(read(LeRobotSource(shared_v3(tmp_path, drift=drift)))):
        for i, image in enumerate(episode.views["image"].frames()):
            assert abs(brightness(image) - brightness(frame(e, i))) < 3, (e, i)
        assert has_note(episode.notes, "from_timestamp_off:image") == (drift * e > 0.05)


def test_rows_of_a_shared_table_are_those_of_the_episode(tmp_path: Path) -> None:
    episodes = read(LeRobotSource(shared_v3(tmp_path)))

    assert [len(e.actions) for e in episodes] == [5, 8, 4]
    np.testing.assert_allclose(episodes[2].actions, [action(2, i) for i in range(4)], rtol=1e-6)
    assert [e.prompts for e in episodes] == [("press the button",), ("open the door",), ("press the button",)]


def test_keys_without_the_observation_prefix_are_found(tmp_path: Path) -> None:
    source = LeRobotSource(shared_v3(tmp_path))

    assert (source.columns.action, source.columns.state) == ("actions", "state")
    assert read(source)[0].embodiment.action_names == ("a", "b", "c")


def test_the_layout_follows_the_templates_and_not_the_version(tmp_path: Path) -> None:
    root = quirky_v21(tmp_path)
    info = json.loads((root / "meta/info.json").read_text()) | {"codebase_version": "v3.0"}
    (root / "meta/info.json").write_text(json.dumps(info))

    source = LeRobotSource(root)
    assert len(read(source)) == 3
    assert "data_path_not_of_declared_version:v3.0" in source.notes


def test_a_renamed_video_folder_is_found(tmp_path: Path) -> None:
    source = LeRobotSource(shared_v3(tmp_path, folder="video"))

    assert len(read(source)) == 3
    assert "folder_differs_from_template:videos!=video" in source.notes


def test_images_inside_parquet_are_a_view_like_any_other(tmp_path: Path) -> None:
    episode = read(LeRobotSource(images_v2(tmp_path)))[0]

    frames = list(episode.views["image"].frames())
    assert len(frames) == 4
    np.testing.assert_array_equal(frames[3], frame(0, 3))


def test_views_are_chosen_by_name_or_key_in_the_given_order(tmp_path: Path) -> None:
    source = LeRobotSource(quirky_v21(tmp_path), views="dead,observation.images.wrist.left")

    assert read(source)[0].embodiment.views == ("dead", "wrist_left")
    with pytest.raises(ConfigError, match=r"'wirst_left'.*Did you mean 'wrist_left'"):
        LeRobotSource(tmp_path, views="wirst_left")


def test_modality_json_names_the_dimensions_and_views(tmp_path: Path) -> None:
    root = shared_v3(tmp_path)
    modality = {
        "action": {"arm": {"start": 0, "end": 2, "original_key": "actions"}, "hand": {"start": 2, "end": 3}},
        "video": {"ego": {"original_key": "image"}},
    }
    (root / "meta/modality.json").write_text(json.dumps(modality))

    spec = read(LeRobotSource(root))[0].embodiment
    assert spec.action_names == ("arm_0", "arm_1", "hand")
    assert spec.views == ("ego",)


def test_a_missing_parquet_and_a_truncated_mp4_are_skipped_by_name(tmp_path: Path) -> None:
    root = quirky_v21(tmp_path)
    (root / "data/chunk-000/episode_000000.parquet").unlink()
    video = root / "videos/chunk-000/observation.images.wrist.left/episode_000002.mp4"
    video.write_bytes(video.read_bytes()[:200])

    first, second, third = LeRobotSource(root).episodes()
    assert isinstance(first, SkippedEpisode)
    assert "missing file" in first.reason
    assert "episode_000000.parquet" in first.reason
    assert isinstance(second, Episode)
    assert isinstance(third, SkippedEpisode)
    assert "episode_000002.mp4" in third.reason


def test_a_video_of_another_length_is_no_match_for_its_rows(tmp_path: Path) -> None:
    root = quirky_v21(tmp_path)
    folder = root / "videos/chunk-000/observation.images.wrist.left"
    (folder / "episode_000001.mp4").write_bytes((folder / "episode_000002.mp4").read_bytes())  # 5 frames for 9 rows

    second = list(LeRobotSource(root).episodes())[1]
    assert isinstance(second, SkippedEpisode)
    assert "has 5 frames; 9 rows" in second.reason


def _rewrite(path: Path, change) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def test_rows_that_are_missing_are_refused_and_shuffled_ones_sorted(tmp_path: Path) -> None:
    root = quirky_v21(tmp_path)
    tables = [root / f"data/chunk-000/episode_{e:06d}.parquet" for e in range(2)]
    _rewrite(tables[0], lambda t: t.take([0, 1, 3, 4, 5]))
    _rewrite(tables[1], lambda t: t.take([1, 0, *range(2, 9)]))

    first, second, _ = LeRobotSource(root).episodes()
    assert "frame_index does not run from 0 to 4" in first.reason
    assert "rows_not_in_order" in second.notes
    np.testing.assert_allclose(second.actions[0], action(1, 0), rtol=1e-6)


def test_numbers_that_are_not_finite_skip_the_episode(tmp_path: Path) -> None:
    root = quirky_v21(tmp_path)
    bad = pa.array([[float("nan"), 0.0, 0.0]] * 6, pa.list_(pa.float64()))
    path = root / "data/chunk-000/episode_000000.parquet"
    _rewrite(path, lambda t: t.set_column(t.schema.get_field_index("action"), "action", bad))

    assert "row 0 is not finite" in next(LeRobotSource(root).episodes()).reason


def test_late_timestamps_and_placeholder_prompts_are_named(tmp_path: Path) -> None:
    root = quirky_v21(tmp_path)
    late = pa.array((np.arange(6) + 1) / FPS, pa.float32())
    path = root / "data/chunk-000/episode_000000.parquet"
    _rewrite(path, lambda t: t.set_column(t.schema.get_field_index("timestamp"), "timestamp", late))
    lines = (root / "meta/episodes.jsonl").read_text().replace("fold cloth 0", "unlabelled episode")
    (root / "meta/episodes.jsonl").write_text(lines)

    first, second, _ = read(LeRobotSource(root))
    assert {"first_timestamp_not_zero", "placeholder_prompt"} <= set(first.notes)
    assert not {"first_timestamp_not_zero", "placeholder_prompt"} & set(second.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action_key": "actoin"}, "action_key is 'actoin'"),
        ({"state_key": "pose"}, "state_key is 'pose'"),
        ({"prompt_key": "text"}, "prompt_key is 'text'"),
        ({"view": "a"}, "Did you mean 'views'"),
    ],
)
def test_a_wrong_option_names_what_is_allowed(tmp_path: Path, options: dict[str, str], message: str) -> None:
    quirky_v21(tmp_path)
    with pytest.raises(ConfigError, match=message):
        LeRobotSource(tmp_path, **options)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data_path", "../{episode_index}.parquet", "must stay inside the dataset"),
        ("data_path", "{oops}.parquet", "'oops'"),
        ("fps", 0, "'fps' is 0"),
        ("features", {}, "'features' is missing or empty"),
    ],
)
def test_an_unusable_info_json_is_refused(tmp_path: Path, key: str, value, message: str) -> None:
    root = quirky_v21(tmp_path)
    info = json.loads((root / "meta/info.json").read_text()) | {key: value}
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=message):
        LeRobotSource(root)


def test_the_actions_can_be_left_out(tmp_path: Path) -> None:
    episode = read(LeRobotSource(quirky_v21(tmp_path), action_key="none"))[0]

    assert episode.actions is None
    assert episode.state is None
    assert episode.embodiment.action_dim == 0
    assert "state_without_actions_left_out" in episode.notes


def test_the_real_gr1_dataset_is_survived(real_data: Path) -> None:
    source = LeRobotSource(real_data / "gr1_lerobot_v2")
    episodes = read(source)

    assert [len(e.actions) + 1 for e in episodes] == [416, 470, 470, 412, 328]
    assert "declared_view_without_files:observation_images_egoview" in source.notes
    assert "declared_total_chunks_differs:0!=1" in source.notes
    assert {"first_timestamp_not_zero", "no_frame_index"} <= set(episodes[0].notes)
    assert episodes[0].prompts == ("pick the pear from the counter and place it in the plate",)
    assert episodes[0].extra == {"annotations": {"annotation.human.validity": "valid"}}
    assert episodes[0].embodiment.action_names[22] == "right_arm_0"


def test_the_real_bridge_dataset_is_survived(real_data: Path) -> None:
    source = LeRobotSource(real_data / "bridge_lerobot_v3")
    episodes = read(source)

    assert sum(len(e.actions) + 1 for e in episodes) == 355
    assert all("placeholder_prompt" in e.notes for e in episodes)
    assert len(list(episodes[9].views["image_0"].frames())) == len(episodes[9].actions) + 1
