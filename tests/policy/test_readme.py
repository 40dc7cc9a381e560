"""What the READMEs say is so: marked commands run, links lead somewhere, Python blocks compile."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.policy.tree import ROOT, files, read

DOCUMENTS = sorted(name for name in files() if name.endswith(".md"))
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def blocks(text: str, language: str, mark: str = "") -> list[str]:
    """Fenced blocks of a language whose opening line carries the mark."""
    return [body for name, info, body in BLOCK.findall(text) if name == language and mark in info]


RUNNABLE = [(name, block) for name in DOCUMENTS for block in blocks(read(name), "bash", "runnable")]


def run(block: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": paths, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-euo", "pipefail", "-c", block]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("name", "block"), RUNNABLE)
def test_a_command_marked_runnable_runs(name: str, block: str) -> None:
    result = run(block)
    assert result.returncode == 0, f"{name}:\n{block}\n{result.stdout}{result.stderr}"


def test_the_readme_marks_commands_and_a_failing_one_is_noticed() -> None:
    assert any(name == "README.md" for name, _ in RUNNABLE)
    assert blocks("```bash runnable\nfalse\ntrue\n```\n", "bash", "runnable") == ["false\ntrue\n"]
    assert run("false\ntrue\n").returncode != 0


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_python_blocks(name: str) -> None:
    text = read(name)
    missing = [link for link in LINK.findall(text) if not (ROOT / name).parent.joinpath(link).exists()]
    assert not missing
    for block in blocks(text, "python"):
        compile(block, name, "exec")
