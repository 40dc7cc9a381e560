"""What the policy tests look at: the files of the repository, tracked or about to be."""

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("wam_video", "data_pipelines")
_IGNORED = {".git", ".venv", "runs", "shards", "build", "dist", "__pycache__"}


@cache
def files() -> tuple[str, ...]:
    """Paths relative to the root, with forward slashes: git's view, or the folder's where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0 and listed.stdout:
        names = listed.stdout.strip("\0").split("\0")
    else:
        names = [p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*") if p.is_file()]
        names = [n for n in names if not _IGNORED & set(n.split("/")) and not n.split("/")[0].startswith(".")]
    return tuple(sorted(n for n in set(names) if (ROOT / n).is_file()))


def python_files(*folders: str) -> list[str]:
    """Python files under the folders (default: the packages and the tests)."""
    heads = tuple(f"{folder}/" for folder in folders or (*PACKAGES, "tests"))
    return [n for n in files() if n.endswith(".py") and n.startswith(heads)]


def read(name: str) -> str:
    """The text of a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")
