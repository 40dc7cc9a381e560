"""Linter, formatter and spelling, as `launch/check.sh` runs them; and that the packaging tells the truth."""

import json
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.policy.rules import LAZY
from tests.policy.tree import ROOT, files, read

PROJECT = tomllib.loads(read("pyproject.toml"))["project"]
EXTRAS = ("train", "data", "sim", "serve", "flash", "dev")


def ruff(*arguments: str) -> subprocess.CompletedProcess[str]:
    if find_spec("ruff") is None:
        pytest.skip("ruff is not installed (extra dev)")
    command = [sys.executable, "-m", "ruff", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_lint() -> None:
    result = ruff("check", "--output-format=concise", ".")
    assert result.returncode == 0, result.stdout


def test_format() -> None:
    result = ruff("format", "--check", ".")
    assert result.returncode == 0, result.stdout


def test_the_linter_notices(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text('"""Doc."""\n\n\ndef f(a=[]):\n    # x = 1\n    print(a)\n')
    result = ruff("check", "--config", str(ROOT / "pyproject.toml"), "--output-format=json", str(tmp_path))
    assert {problem["code"] for problem in json.loads(result.stdout)} >= {"B006", "T201", "D103", "ERA001"}


def test_extras_are_those_that_messages_name() -> None:
    assert set(EXTRAS) <= set(PROJECT["optional-dependencies"])
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in read("LICENSE")


def test_the_base_install_is_lean() -> None:
    names = {requirement.split(">")[0].replace("-", "_") for requirement in PROJECT["dependencies"]}
    assert not names & LAZY


def test_every_console_script_and_source_can_be_imported() -> None:
    entries = [*PROJECT["scripts"].values(), *PROJECT["entry-points"]["wam_video.sources"].values()]
    for entry in entries:
        module, name = entry.split(":")
        assert callable(getattr(import_module(module), name)), entry


def test_constraints_hold_torch() -> None:
    pins = dict(line.split("==") for line in read("launch/constraints.txt").split())
    assert set(pins) == {"torch", "torchvision", "torchcodec"}
    assert f"torch=={pins['torch']}" in read("launch/install.sh")


def test_the_type_marker_is_shipped() -> None:
    assert "wam_video/py.typed" in files()
