"""A package that a format needs and that is not there is named, with the extra that brings it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.rlds import RldsSource
from data_pipelines.robomimic import RobomimicSource
from data_pipelines.umi import UmiSource
from data_pipelines.umi.chunks import _image_codec
from tests.unit.data_pipelines.rlds_fixtures import BRIDGE, bridge_episode, write_rlds
from tests.unit.data_pipelines.test_robomimic import robomimic
from tests.unit.data_pipelines.test_umi import umi
from wam_video.data.sources import detect
from wam_video.errors import MissingDependencyError


def read_hdf5(root: Path) -> None:
    list(RobomimicSource(root / "a.hdf5").episodes())


def look_at_hdf5(root: Path) -> None:
    detect(root / "a.hdf5")


def read_zarr(root: Path) -> None:
    list(UmiSource(root / "a.zarr").episodes())


def read_jpeg_xl(root: Path) -> None:
    _image_codec.cache_clear()
    _image_codec('{"id": "imagecodecs_jpegxl"}')


def read_rlds(root: Path) -> None:
    list(RldsSource(root / "rlds").episodes())


@pytest.mark.parametrize(
    ("package", "extra", "read"),
    [
        ("h5py", "data", read_hdf5),
        ("h5py", "data", look_at_hdf5),
        ("numcodecs", "data", read_zarr),
        ("google_crc32c", "data", read_rlds),
        ("imagecodecs.numcodecs", "umi", read_jpeg_xl),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    package: str, extra: str, read: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    robomimic(tmp_path / "a.hdf5")
    umi(tmp_path / "a.zarr")
    write_rlds(tmp_path / "rlds", BRIDGE, [[bridge_episode(0)]])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'wam-video\[{extra}\]'"):
        read(tmp_path)
