"""`import wam_video` is cheap, and its public names are what diffusers and users look up."""

import subprocess
import sys
from importlib import import_module

import pytest

import wam_video


def test_every_public_name_is_defined_where_the_table_says() -> None:
    for name, module in wam_video._PUBLIC.items():
        assert getattr(wam_video, name) is getattr(import_module(module), name)
    assert set(wam_video.__all__) == {*wam_video._PUBLIC, "__version__"}
    assert set(wam_video.__all__) <= set(dir(wam_video))


def test_an_unknown_name_is_an_attribute_error_that_lists_the_public_ones() -> None:
    with pytest.raises(AttributeError, match="WAMPipeline"):
        _ = wam_video.WAMPipelin


def test_importing_the_package_imports_neither_torch_nor_diffusers() -> None:
    code = "import sys, wam_video; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_diffusers_finds_the_base_classes_and_the_package_in_its_table() -> None:
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    assert issubclass(wam_video.WAMTransformer, wam_video.ModelMixin)
    assert hasattr(wam_video, "SchedulerMixin")
    assert set(LOADABLE_CLASSES["wam_video"]) >= {"ModelMixin", "SchedulerMixin"}
