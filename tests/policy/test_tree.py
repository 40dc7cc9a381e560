"""Names, sizes and texts of the repository's files; its shell scripts."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.policy.tree import PACKAGES, ROOT, files, python_files, read

DIFFUSERS_FOLDERS = frozenset({"wan", "cosmos", "flux", "ltx"})
"""Diffusers takes a component whose module lies in a folder of such a name for one of its own pipelines."""

TEXT = (".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".sbatch", ".json", ".txt", ".cfg")
MAX_FILE_BYTES = 500 * 1024
CHECKPOINTS = "model_cards/"
MAX_CHECKPOINT_BYTES = 8 * 1024 * 1024
SCRIPTS = sorted(name for name in files() if name.endswith((".sh", ".sbatch")) or name == ".ci/run")
MAX_SCRIPT_LINES = 40
TOP_LEVEL = frozenset({"wam_video", "configs", "launch", "data_pipelines", "tests", "model_cards"})


def bad_names(paths: list[str]) -> list[str]:
    """Folders that diffusers mistakes for its own, and modules that shadow the standard library."""
    found = []
    for path in paths:
        *folders, last = path.split("/")
        stem = last.removesuffix(".py")
        found += [f"{path}: folder {f!r}" for f in folders if f in DIFFUSERS_FOLDERS]
        modules = {*folders[1:], stem} - {"__init__", "__main__"}
        found += [f"{path}: {m!r} is in the standard library" for m in modules if m in sys.stdlib_module_names]
    return found


def not_ascii(text: str) -> list[str]:
    """Lines with anything but ASCII."""
    return [f"{i}: {line.strip()[:60]!r}" for i, line in enumerate(text.splitlines(), 1) if not line.isascii()]


def machine_paths(text: str) -> list[str]:
    """Absolute paths that only the machine of the author has."""
    own = [f"{ROOT.parent}/", f"{Path.home()}/", *(f"/{name}/" for name in ("work", "home", "Users"))]
    heads = [re.escape(head) for head in own if len(head) > 3]
    return re.findall(rf"(?<![\w.$}}\"'])(?:{'|'.join(heads)})\S*|[\"'](?:{'|'.join(heads)})\S*", text)


def test_module_names() -> None:
    assert not bad_names(python_files(*PACKAGES))


@pytest.mark.parametrize("path", ["wam_video/wan/a.py", "wam_video/data/logging.py", "wam_video/types/a.py"])
def test_a_bad_module_name_is_noticed(path: str) -> None:
    assert bad_names([path])


def test_every_folder_of_the_packages_is_a_package() -> None:
    folders = {str(Path(name).parent) for name in python_files(*PACKAGES)}
    assert not [folder for folder in folders if f"{folder}/__init__.py" not in files()]


def test_top_level_folders_are_those_of_the_design() -> None:
    folders = {name.split("/")[0] for name in files() if "/" in name and not name.startswith(".")}
    assert folders <= TOP_LEVEL


def test_texts_are_ascii() -> None:
    names = [name for name in files() if name.endswith(TEXT) and not name.startswith("tests/data/")]
    found = [f"{name}:{problem}" for name in names for problem in not_ascii(read(name))]
    assert not found, "\n" + "\n".join(found)
    assert not_ascii("a\nb \N{EM DASH} c")


def test_no_paths_of_the_authors_machine() -> None:
    names = [name for name in files() if name.endswith(TEXT) and not name.startswith("tests/policy/")]
    found = {name: paths for name in names if (paths := machine_paths(read(name)))}
    assert not found
    assert machine_paths(f"see {Path.home()}/x")
    assert machine_paths("path: '/home/someone/data'")
    assert not machine_paths("runs/home/x and https://a.b/work/x")


def test_files_are_small() -> None:
    limits = {name: MAX_CHECKPOINT_BYTES if name.startswith(CHECKPOINTS) else MAX_FILE_BYTES for name in files()}
    assert not {n: size for n, limit in limits.items() if (size := (ROOT / n).stat().st_size) > limit}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_short_strict_and_parses(name: str) -> None:
    text = read(name)
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text
    assert len(text.splitlines()) <= MAX_SCRIPT_LINES
    assert (ROOT / name).stat().st_mode & 0o100
    command = ["shellcheck"] if shutil.which("shellcheck") else ["bash", "-n"]
    checked = subprocess.run([*command, ROOT / name], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_scripts_of_the_readme_exist() -> None:
    assert {"launch/quickstart.sh", "launch/test.sh", "launch/install.sh", "launch/check.sh", ".ci/run"} <= set(SCRIPTS)


def test_data_files_parse() -> None:
    assert [json.loads(read(n)) for n in files() if n.startswith(("launch/", "configs/")) and n.endswith(".json")]
    assert [list(yaml.safe_load_all(read(n))) for n in files() if n.startswith("launch/") and n.endswith(".yaml")]


def test_two_processes_on_a_cpu_are_really_two() -> None:
    """The launcher starts one process, without a word, for MULTI_CPU or use_cpu."""
    config = yaml.safe_load(read("launch/accelerate/cpu_two_processes.yaml"))
    assert (config["distributed_type"], config["num_processes"], config["use_cpu"]) == ("MULTI_GPU", 2, False)
