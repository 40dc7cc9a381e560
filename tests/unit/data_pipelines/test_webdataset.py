"""WebDatasets of others: clips with captions or actions, and vla_foundry's frames with tables, real ones too."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.webdataset import WebDatasetSource
from tests.unit.data_pipelines.recording_fixtures import cut, encoded, frame, frames, numbers, shown
from wam_video.data.convert import convert
from wam_video.data.encode import WriterConfig
from wam_video.data.schema import Episode
from wam_video.data.sources import SkippedEpisode, detect
from wam_video.data.video import encode_mp4
from wam_video.errors import ConfigError, DataError


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def video(number: int, rows: int = 5) -> bytes:
    return encode_mp4(frames(number, rows), 10, crf=4)


def npz(**arrays) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return sink.getvalue()


def npy(array) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def foundry(key: str, start: int = 6, **changes) -> dict[str, bytes]:
    table = {
        "robot__action__poses__right::panda__xyz": numbers(0, 8, 3, np.float64),
        "robot__action__poses__right::panda__rot_6d": numbers(1, 8, 6, np.float64),
        "robot__action__poses__right::panda__xyz_relative": numbers(9, 8, 3),
        "robot__action__grippers__right::panda_hand": numbers(2, 8, 1, np.float64),
        "robot__actual__poses__right::panda__xyz": numbers(3, 8, 3, np.float64),
    }
    facts = {"image_timesteps": [start, start + 1], "lowdim_start_timestep": start, "is_padded": False} | changes
    language = {"original": ["pick it up"], "randomized": ["lift it", "pick it up"]}
    return {
        f"{key}.top_t-1.jpg": encoded(frame(0, 0), "PNG"),
        f"{key}.top_t0.jpg": encoded(frame(0, 1), "PNG"),
        f"{key}.lowdim.npz": npz(**table),
        f"{key}.metadata.json": json.dumps(facts).encode(),
        f"{key}.language_instructions.json": json.dumps(language).encode(),
    }


def test_captioned_clips_are_video_without_actions(tmp_path: Path) -> None:
    facts = json.dumps({"caption": "a cat", "url": "http://x", "status": "success"}).encode()
    tar(tmp_path / "00000.tar", {"000000000.mp4": video(0), "000000000.txt": b"cat", "000000000.json": facts})
    tar(tmp_path / "00001.tar", {"000000001.mp4": video(1), "000000001.txt": b"a dog\n", "000000001.pkl": b"\x80"})
    assert detect(tmp_path) is WebDatasetSource
    first, second = WebDatasetSource(tmp_path).episodes()
    assert (first.episode_id, first.prompts, first.actions) == ("00000-000000000", ("a cat",), None)
    assert first.extra["url"] == "http://x"
    assert second.prompts == ("a dog",) and "member_left_out:pkl" in second.notes
    assert np.abs(shown(second.views["camera"]).astype(int) - frames(1, 5)).mean() < 8


def test_clips_with_arrays_or_lists_have_actions(tmp_path: Path) -> None:
    facts = json.dumps(
        {"actions": numbers(1, 5, 7).tolist(), "state": numbers(1, 5, 6).tolist(), "text": "go"}
    ).encode()
    tar(
        tmp_path / "shards" / "a.tar",
        {
            "x/e0.left.mp4": video(0),
            "x/e0.right.mp4": video(1),
            "x/e0.actions.npy": npy(numbers(0, 4, 7)),
            "x/e0.lowdim.npz": npz(state=numbers(0, 5, 6), depth=np.zeros(3)),
            "x/e1.left.mp4": video(2),
            "x/e1.right.mp4": video(3),
            "x/e1.json": facts,
        },
    )
    first, second = WebDatasetSource(tmp_path).episodes()
    assert tuple(first.views) == ("left", "right")
    np.testing.assert_array_equal(first.actions, numbers(0, 4, 7))
    np.testing.assert_array_equal(first.state, numbers(0, 5, 6))
    assert {"array_left_out:depth", "no_prompt"} <= set(first.notes)
    np.testing.assert_array_equal(second.actions, numbers(1, 4, 7))
    assert second.prompts == ("go",) and "last_action_without_frame" in second.notes
    with pytest.raises(ConfigError, match="view is 'lft'; allowed: left, right"):
        list(WebDatasetSource(tmp_path, views="lft").episodes())


def test_foundrys_frames_meet_their_rows(tmp_path: Path) -> None:
    tar(tmp_path / "shard_000000.tar", foundry("u-1") | foundry("u-2", lowdim_start_timestep=4))
    first, second = WebDatasetSource(tmp_path).episodes()
    np.testing.assert_array_equal(first.actions[:, :3], numbers(0, 8, 3)[:1])
    np.testing.assert_array_equal(second.actions[:, 9:], numbers(2, 8, 1)[2:3])
    np.testing.assert_array_equal(second.state, numbers(3, 8, 3)[2:4])
    np.testing.assert_array_equal(shown(first.views["top"]), [frame(0, 0), frame(0, 1)])
    assert first.prompts == ("pick it up", "lift it")
    assert first.embodiment.action_names[3] == "robot__action__poses__right_panda__rot_6d_0"
    assert "steps_after_last_frame:6" in first.notes


def test_damaged_and_padded_samples_are_skipped_and_the_others_kept(tmp_path: Path) -> None:
    members = (
        foundry("a", is_padded=True)
        | foundry("b")
        | foundry("c")
        | foundry("d", lowdim_start_timestep=9)
        | foundry("e")
    )
    members["c.lowdim.npz"] = members["c.lowdim.npz"][:300]
    del members["e.top_t0.jpg"]
    tar(tmp_path / "shard_000000.tar", members)
    (tmp_path / "manifest.jsonl").write_text(
        '{"shard": "shard_000000", "num_sequences": 6}\n{"shard": "x", "num_sequences": 1}\n'
    )
    source = WebDatasetSource(tmp_path)
    items = list(source.episodes())
    assert source.notes == ("shards_missing:1",)
    words = (
        "is padded",
        None,
        "not a readable npz",
        "don't meet",
        "at least 2",
        "holds 5 samples; manifest.jsonl says 6",
    )
    for item, word in zip(items, words, strict=True):
        assert isinstance(item, Episode) if word is None else word in item.reason


def test_a_truncated_tar_loses_its_tail_by_name(tmp_path: Path) -> None:
    members = {f"e{n}.mp4": video(n) for n in range(3)}
    cut(tar(tmp_path / "a.tar", members), 0.3)
    tar(tmp_path / "b.tar", {"f.mp4": video(4)})
    *_, skipped, last = WebDatasetSource(tmp_path).episodes()
    assert isinstance(skipped, SkippedEpisode)
    assert skipped.episode_id == "a-rest" and "truncated" in skipped.reason
    assert isinstance(last, Episode)


def test_links_paths_and_pickles_are_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as file:
        for name, content in (("../../e.mp4", video(0)), ("../../e.pkl", b"\x80")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("../../e.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    (episode,) = WebDatasetSource(path).episodes()
    assert {"member_left_out:pkl", "member_left_out:link"} <= set(episode.notes)
    with pytest.raises(DataError, match="no tar there"):
        WebDatasetSource(tmp_path / "nothing")


def test_real_samples_of_vla_foundry_convert(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "vla_foundry_wds"
    assert detect(folder) is WebDatasetSource
    source = WebDatasetSource(folder)
    assert source.len_hint == 5
    manifest = convert(source, tmp_path / "out", WriterConfig(dataset="tri", height=64, width=64))
    assert manifest.counts["total"] | {"bytes": 0, "seconds": 0} == {
        "episodes": 5, "samples": 5, "frames": 10, "actions": 5, "bytes": 0, "seconds": 0
    }  # fmt: skip
    (spec,) = manifest.embodiments.values()
    assert (spec.action_dim, spec.state_dim, len(spec.views)) == (20, 20, 6)
