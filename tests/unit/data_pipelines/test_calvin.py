"""CALVIN: format fixtures of one npz a frame; the pickled annotations are read and never executed."""

import os
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.calvin import CalvinSource
from data_pipelines.calvin.annotations import build, read_annotations
from data_pipelines.npz import npy_array
from tests.unit.data_pipelines.recording_fixtures import cut, frame, numbers, shown
from wam_video.data.convert import convert
from wam_video.data.encode import WriterConfig
from wam_video.data.schema import Episode
from wam_video.data.sources import SkippedEpisode, detect
from wam_video.errors import ConfigError, DataError

FIRST = 358482
WINDOWS = [(FIRST, FIRST + 4), (FIRST + 3, FIRST + 8)]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def annotate(folder: Path, windows=WINDOWS, extra=None) -> None:
    content = {
        "language": {"ann": ["push the red block", "open the drawer "], "task": ["a", "b"], "emb": np.zeros((2, 1, 4))},
        "info": {"episodes": [], "indx": windows},
    } | ({"extra": extra} if extra else {})
    (folder / "lang_annotations").mkdir(exist_ok=True)
    np.save(folder / "lang_annotations/auto_lang_ann.npy", content, allow_pickle=True)


def calvin(root: Path, split: str = "training", language: bool = True) -> Path:
    folder = root / split
    folder.mkdir(parents=True)
    actions, state = numbers(0, 10, 7, np.float64), numbers(1, 10, 15, np.float64)
    for row in range(10):
        np.savez_compressed(
            folder / f"episode_{FIRST + row:07d}.npz",
            rgb_static=frame(0, row),
            rgb_gripper=frame(1, row),
            depth_static=np.zeros((32, 32), np.float32),
            actions=actions[row] + 2,
            rel_actions=actions[row],
            robot_obs=state[row],
            scene_obs=np.zeros(24),
        )
    np.save(folder / "ep_start_end_ids.npy", np.array([[FIRST, FIRST + 9]]))
    if language:
        annotate(folder)
    return root


def test_windows_with_an_instruction_are_episodes(tmp_path: Path) -> None:
    root = calvin(tmp_path / "task_D_D")
    assert detect(root) is CalvinSource
    assert detect(root / "training") is CalvinSource
    source = CalvinSource(root)
    first, second = source.episodes()

    assert second.episode_id == "training-window_000001"
    assert second.prompts == ("open the drawer",)
    np.testing.assert_array_equal(second.actions, numbers(0, 10, 7)[3:8])
    np.testing.assert_array_equal(second.state, numbers(1, 10, 15)[3:9])
    np.testing.assert_array_equal(shown(second.views["static"]), [frame(0, row) for row in range(3, 9)])
    assert first.embodiment.views == ("static", "gripper")
    assert first.embodiment.action_names[0] == "dx"
    assert {"array_left_out:depth_static", "array_left_out:scene_obs", "array_left_out:actions"} <= set(first.notes)
    assert source.notes == ("rate_not_recorded:30_taken",)


def test_play_is_a_whole_recording_and_absolute_actions_are_an_option(tmp_path: Path) -> None:
    root = calvin(tmp_path, "validation", language=False)
    (episode,) = CalvinSource(root, action_key="actions", views="gripper").episodes()
    np.testing.assert_array_equal(episode.actions, numbers(0, 10, 7)[:9] + 2)
    assert episode.embodiment.action_units[:4] == ("m", "m", "m", "rad")
    assert "no_prompt" in episode.notes
    with pytest.raises(ConfigError, match=r"windows is 'languages'.*Did you mean 'language'"):
        CalvinSource(root, windows="languages")
    with pytest.raises(DataError, match="not readable as CALVIN's annotations"):
        CalvinSource(root, windows="language")


def test_numpy_integers_in_the_annotations_are_read(tmp_path: Path) -> None:
    annotate(tmp_path, [(np.int64(7), np.int64(9)), tuple(np.array([3, 300]))])
    assert read_annotations(tmp_path / "lang_annotations/auto_lang_ann.npy") == [
        (7, 9, "push the red block"),
        (3, 300, "open the drawer "),
    ]


def test_what_a_pickle_would_execute_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    annotate(tmp_path, extra=Evil())
    assert len(read_annotations(tmp_path / "lang_annotations/auto_lang_ann.npy")) == 2
    assert not (tmp_path / "executed").exists()
    cut(tmp_path / "lang_annotations/auto_lang_ann.npy")
    with pytest.raises(DataError, match="annotations"):
        read_annotations(tmp_path / "lang_annotations/auto_lang_ann.npy")
    with pytest.raises(ValueError, match="instruction PERSID is not read"):
        build(b"Pxyz\n.")


def test_missing_and_truncated_frames_skip_their_windows_by_name(tmp_path: Path) -> None:
    root = calvin(tmp_path)
    cut(root / f"training/episode_{FIRST + 1:07d}.npz")
    first, second = CalvinSource(root).episodes()
    assert isinstance(first, SkippedEpisode) and f"episode_{FIRST + 1:07d}.npz: not a readable npz" in first.reason
    assert isinstance(second, Episode)
    (root / f"training/episode_{FIRST + 5:07d}.npz").unlink()
    assert "missing file" in list(CalvinSource(root).episodes())[1].reason


def test_it_converts(tmp_path: Path) -> None:
    manifest = convert(CalvinSource(calvin(tmp_path)), tmp_path / "out", WriterConfig(dataset="x", height=32, width=32))
    assert manifest.counts["total"]["frames"] == 5 + 6


def test_arrays_of_objects_and_of_promised_size_are_refused() -> None:
    import io

    def npy(array, **options) -> bytes:
        sink = io.BytesIO()
        np.save(sink, array, **options)
        return sink.getvalue()

    np.testing.assert_array_equal(npy_array(npy(np.asfortranarray(np.eye(3)[:2])), "x"), np.eye(3)[:2])
    with pytest.raises(DataError, match="never objects"):
        npy_array(npy(np.array([{}]), allow_pickle=True), "x")
    huge = npy(np.zeros((3, 7))).replace(b"(3, 7), }     ", b"(10**9, 7), } ")
    with pytest.raises(DataError, match="npy array"):
        npy_array(huge, "x")
    huge = npy(np.zeros((3, 7))).replace(b"(3, 7), }         ", b"(3000000000, 7), }")
    with pytest.raises(DataError, match="promises 168000000000 bytes and has 168"):
        npy_array(huge, "x")
