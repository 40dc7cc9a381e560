"""RLDS datasets: format fixtures of Bridge, DROID and Open X-Embodiment, and a real piece of Bridge."""

import struct
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.rlds import RldsSource
from data_pipelines.rlds.records import parse_example, read_records
from tests.unit.data_pipelines.recording_fixtures import encoded, frames, numbers, shown
from tests.unit.data_pipelines.rlds_fixtures import (
    BRIDGE,
    bridge_episode,
    example,
    field,
    framed,
    group,
    image,
    marks,
    masked,
    structure,
    tensor,
    text,
    varint,
    write_rlds,
)
from wam_video.data.convert import convert
from wam_video.data.encode import WriterConfig
from wam_video.data.reader import load_clip
from wam_video.data.schema import Episode
from wam_video.data.sources import SkippedEpisode, detect
from wam_video.errors import ConfigError, DataError


def bridge(root: Path, shards=((0, 1), (2,)), **options) -> Path:
    return write_rlds(
        root / "1.0.0", BRIDGE, [[bridge_episode(n) for n in shard] for shard in shards], **options
    ).parent


def test_steps_become_rows_and_the_folder_is_found_by_its_content(tmp_path: Path) -> None:
    root = bridge(tmp_path)
    assert detect(root) is RldsSource
    source = RldsSource(root)
    episodes = list(source.episodes())

    assert [e.episode_id for e in episodes] == ["train-00000-000000", "train-00000-000001", "train-00001-000000"]
    assert source.len_hint == 3
    last = episodes[2]
    np.testing.assert_array_equal(last.actions, numbers(2, 4, 7))
    np.testing.assert_array_equal(last.state, numbers(2, 5, 7) + 1)
    np.testing.assert_array_equal(shown(last.views["image_0"]), frames(2, 5))
    assert last.prompts == ("task 2",)
    assert (last.embodiment.name, last.embodiment.fps) == ("widowx", 5)
    assert last.extra == {"episode_metadata": {"file_path": "/data/2"}}
    assert {"last_action_without_frame", "empty_view:image_1"} <= set(last.notes)
    assert set(source.notes) == {"feature_left_out:steps_language_embedding", "rate_not_recorded:5_taken"}


def test_droid_takes_absolute_joints_three_instructions_and_success_from_its_path(tmp_path: Path) -> None:
    features = structure(
        action=tensor(7, dtype="float64"),
        action_dict=group(joint_position=tensor(7, dtype="float64"), gripper_position=tensor(1, dtype="float64")),
        observation=group(
            joint_position=tensor(7, dtype="float64"),
            gripper_position=tensor(1, dtype="float64"),
            wrist_image_left=image(),
        ),
        language_instruction=text(),
        language_instruction_2=text(),
        language_instruction_3=text(),
    )
    episode = marks(5) | {
        "steps/action": numbers(3, 5, 7),
        "steps/action_dict/joint_position": numbers(0, 5, 7),
        "steps/action_dict/gripper_position": numbers(1, 5, 1),
        "steps/observation/joint_position": numbers(4, 5, 7),
        "steps/observation/gripper_position": numbers(5, 5, 1),
        "steps/observation/wrist_image_left": [encoded(f, "JPEG") for f in frames(0, 5)],
        "steps/language_instruction": [b"move the pan"] * 5,
        "steps/language_instruction_2": [b""] * 5,
        "steps/language_instruction_3": [b"shift the pan"] * 5,
        "episode_metadata/file_path": [b"gs://x/failure/2023-07-07/trajectory.h5"],
    }
    root = write_rlds(tmp_path / "droid_100" / "1.0.0", features, [[episode]], name="droid_100")
    (found,) = RldsSource(root).episodes()
    np.testing.assert_array_equal(found.actions[:, :7], numbers(0, 4, 7))
    assert found.embodiment.action_names[-1] == "gripper" and found.embodiment.fps == 15
    assert found.prompts == ("move the pan", "shift the pan")
    assert found.success is False
    assert "feature_left_out:steps_action" in RldsSource(root).notes
    (other,) = RldsSource(root, action_keys="action", state_keys="none").episodes()
    np.testing.assert_array_equal(other.actions, numbers(3, 4, 7))
    assert other.state is None and other.embodiment.action_names == ()


def test_groups_of_actions_and_texts_as_numbers_are_read_and_an_unknown_rate_must_be_given(tmp_path: Path) -> None:
    features = structure(
        action=group(world_vector=tensor(3), open_gripper=tensor(1, dtype="bool"), terminate_episode=tensor()),
        observation=group(rgb=image(), instruction=tensor(16, dtype="int32")),
    )
    letters = np.frombuffer(b"slide the cube\0\0", np.uint8).astype(np.int64)
    episode = marks(4) | {
        "steps/action/world_vector": numbers(0, 4, 3),
        "steps/action/open_gripper": np.array([0, 1, 1, 0]),
        "steps/action/terminate_episode": np.zeros(4, np.float32),
        "steps/observation/rgb": [encoded(f) for f in frames(0, 4)],
        "steps/observation/instruction": np.tile(letters, 4),
    }
    root = write_rlds(tmp_path / "x", features, [[episode]], name="my_lab")
    with pytest.raises(ConfigError, match="that of 'my_lab' is not known here; give it with --option fps=F"):
        RldsSource(root)
    (found,) = RldsSource(root, fps=10).episodes()
    np.testing.assert_array_equal(found.actions[:, 3], [0, 1, 1])
    assert found.prompts == ("slide the cube",)
    with pytest.raises(ConfigError, match=r"action_keys is 'action/world_vektor'.*Did you mean"):
        RldsSource(root, fps=10, action_keys="action/world_vektor")


def test_a_truncated_shard_loses_its_tail_by_name_and_the_next_shard_is_read(tmp_path: Path) -> None:
    root = bridge(tmp_path)
    path = next((root / "1.0.0").glob("*-00000-of-*"))
    path.write_bytes(path.read_bytes()[:-10])
    items = list(RldsSource(root).episodes())
    assert isinstance(items[0], Episode)
    assert isinstance(items[1], SkippedEpisode) and "the file is truncated" in items[1].reason
    assert isinstance(items[2], Episode) and items[2].episode_id == "train-00001-000000"


def test_a_damaged_record_is_skipped_and_the_one_after_it_is_read(tmp_path: Path) -> None:
    root = bridge(tmp_path)
    path = next((root / "1.0.0").glob("*-00000-of-*"))
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    items = list(RldsSource(root).episodes())
    assert "its checksum differs" in items[0].reason
    assert isinstance(items[1], Episode)


def test_shards_and_records_that_are_declared_but_absent_are_told(tmp_path: Path) -> None:
    root = bridge(tmp_path, declared=[3, 1, 4])
    source = RldsSource(root)
    items = list(source.episodes())
    assert "shards_missing:train:1" in source.notes
    assert items[2].episode_id == "train-00000-rest"
    assert "2 records of the 3" in items[2].reason


def test_columns_of_unequal_length_are_skipped(tmp_path: Path) -> None:
    short = bridge_episode(0) | {"steps/action": numbers(0, 4, 7)}
    fewer = bridge_episode(1) | {"steps/observation/image_0": [encoded(f) for f in frames(0, 4)]}
    gap = bridge_episode(2)
    gap["steps/observation/image_0"][2] = b""
    root = write_rlds(tmp_path, BRIDGE, [[short, fewer, gap]])
    reasons = [item.reason for item in RldsSource(root).episodes()]
    assert "28 numbers for 5 steps of 7" in reasons[0]
    assert "differ in length" in reasons[1]
    assert "frame 2 is empty" in reasons[2]


def test_a_record_of_a_huge_length_asks_for_no_memory(tmp_path: Path) -> None:
    length = struct.pack("<Q", 1 << 62)
    path = tmp_path / "a-train.tfrecord"
    path.write_bytes(framed(b"x") + length + masked(length) + b"short")
    first, error = read_records(path)
    assert first == b"x"
    assert isinstance(error, DataError) and "more than are left" in str(error)
    path.write_bytes(struct.pack("<Q", 5) + b"\0\0\0\0" + b"hello\0\0\0\0")
    (error,) = read_records(path)
    assert "damaged length" in str(error)


def test_numbers_of_every_size_come_back_packed_or_not() -> None:
    values = np.array([0, 1, 127, 128, -1, 2**62, -(2**63), 300], np.int64)
    np.testing.assert_array_equal(parse_example(example({"a": values}))["a"], values)
    loose = field(3, b"".join(varint(1 << 3) + varint(int(v)) for v in values))
    floats = field(2, b"".join(varint(1 << 3 | 5) + struct.pack("<f", v) for v in (0.5, -2.0)))
    entries = [field(1, field(1, name) + field(2, content)) for name, content in ((b"a", loose), (b"b", floats))]
    features = parse_example(field(1, b"".join(entries)))
    np.testing.assert_array_equal(features["a"], values)
    np.testing.assert_array_equal(features["b"], [0.5, -2])
    for broken in (b"\x0a\xff\xff\x03", b"\xff" * 12, example({"a": values})[:-1]):
        with pytest.raises(DataError, match=r"no tf\.train\.Example"):
            parse_example(broken)


def test_real_bridge_episodes_convert(real_data: Path, tmp_path: Path) -> None:
    source = RldsSource(real_data / "bridge_rlds", views="image_0,image_3")
    manifest = convert(source, tmp_path / "out", WriterConfig(dataset="bridge", height=64, width=64), limit=4)
    assert manifest.counts["total"]["frames"] == 40
    assert manifest.notes["blank_view_image_3"] == 4  # black padding
    assert manifest.notes["null_first_action"] == 4
    first = next(iter(source.episodes()))
    entries = [(shard, entry) for shard in manifest.shards for entry in shard.samples]
    shard, entry = next((s, e) for s, e in entries if e.episode_id == first.episode_id)
    clip = load_clip(tmp_path / "out", shard, entry)
    np.testing.assert_array_equal(clip.actions, first.actions)
    error = clip.video["image_0"].astype(float) - shown(first.views["image_0"])
    assert 10 * np.log10(255**2 / (error**2).mean()) > 34
