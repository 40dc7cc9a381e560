"""Imports run downward: import-linter's contracts hold, and each of them notices an import against the grain."""

import subprocess
import sys
from pathlib import Path

from tests.policy.rules import imports
from tests.policy.tree import ROOT, python_files, read

AGAINST_THE_GRAIN = {
    "wam_video/models/up.py": "import wam_video.training",
    "wam_video/training/sideways.py": "import wam_video.inference",
    "wam_video/data/out.py": "import data_pipelines.lerobot",
    "data_pipelines/lerobot.py": "import wam_video.models",
    "wam_video/evaluation/fakes.py": "import wam_video.testing",
    "wam_video/evaluation/launcher.py": "import accelerate",
    "wam_video/flow/files.py": "import safetensors",
    "wam_video/data/hen.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import wam_video.data.egg",
    "wam_video/data/egg.py": "import wam_video.data.hen",
}
PACKAGES = ("cli", "evaluation", "training", "inference", "latent_actions", "models", "flow", "data")
MODULES = ("config", "tensors", "errors", "log", "markup", "page", "testing")


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = (
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    )
    environment = {"PYTHONPATH": str(root), "PATH": "", "NO_COLOR": "1"}
    return subprocess.run([sys.executable, "-c", command], cwd=root, env=environment, capture_output=True, text=True)


def skeleton(root: Path, extra: dict[str, str]) -> None:
    (root / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    empty = [f"wam_video/{p}/__init__.py" for p in PACKAGES] + [f"wam_video/{m}.py" for m in MODULES]
    for name in ["wam_video/__init__.py", "data_pipelines/__init__.py", *empty]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, text in extra.items():
        (root / name).write_text(text + "\n")


def test_imports_run_downward() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_empty_house_keeps_the_contracts(tmp_path: Path) -> None:
    skeleton(tmp_path, {})
    result = lint_imports(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_each_contract_notices_an_import_against_the_grain(tmp_path: Path) -> None:
    skeleton(tmp_path, AGAINST_THE_GRAIN)
    result = lint_imports(tmp_path)
    assert result.returncode == 1
    assert " 0 kept" in result.stdout, result.stdout
    for breach in ("wam_video.models.up", "wam_video.training.sideways"):
        assert breach in result.stdout, "both breaches of the layers contract must be named"


def from_the_facade(source: str) -> list[str]:
    names = [name.removeprefix("wam_video.") for _, name in imports(source) if name.startswith("wam_video.")]
    return [name for name in names if "." not in name and name != "__version__" and not name.islower()]


def test_no_module_imports_the_public_facade() -> None:
    found = {module: names for module in python_files("wam_video") if (names := from_the_facade(read(module)))}
    found.pop("wam_video/__init__.py", None)
    assert not found, "import from the module that defines the name; the lazy facade hides who depends on whom"


def test_an_import_from_the_facade_is_noticed() -> None:
    assert from_the_facade("from wam_video import WAMPipeline, __version__") == ["WAMPipeline"]
    assert not from_the_facade("from wam_video import errors, __version__\nimport wam_video.errors")
