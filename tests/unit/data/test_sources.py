"""Finding a source by name or by a look at a path."""

from pathlib import Path

import pytest

from data_pipelines.lerobot import LeRobotSource
from wam_video.data.sources import BUILT_IN, Source, detect, open_source, source_class, source_targets
from wam_video.errors import ConfigError


def test_the_built_in_sources_are_found_without_an_installation() -> None:
    assert set(BUILT_IN) <= set(source_targets())


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_source_keeps_the_protocol(name: str) -> None:
    found = source_class(name)
    assert found.name == name
    assert found.looks_like
    for member in ("matches", "episodes", "len_hint", "licence", "notes"):
        assert hasattr(found, member)
    assert Source is not None


def test_a_folder_with_info_json_is_lerobot_and_one_with_videos_is_video(tmp_path: Path) -> None:
    (tmp_path / "a" / "meta").mkdir(parents=True)
    (tmp_path / "a" / "meta" / "info.json").write_text("{}")
    (tmp_path / "a" / "x.mp4").write_bytes(b"")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.mp4").write_bytes(b"")

    assert detect(tmp_path / "a") is LeRobotSource
    assert detect(tmp_path / "b").name == "video"


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"--format is 'lerobt'; .*Did you mean 'lerobot'"):
        open_source("x", "lerobt")


def test_a_path_that_is_not_there_and_one_of_no_known_format_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        detect(tmp_path / "nowhere")
    (tmp_path / "demo.hdf5").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"of no known format. Known: .*lerobot: a folder with meta/info\.json"):
        detect(tmp_path)
