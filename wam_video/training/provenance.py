"""Which code a run was made with: versions of this library and of what it stands on, and the commit it was checked out at."""

import platform
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from wam_video import __version__
from wam_video.log import get_logger

_PACKAGES = ("torch", "numpy", "safetensors", "accelerate", "deepspeed", "diffusers", "transformers", "decord", "av")
_LOG = get_logger(__name__)


@cache
def code_versions() -> dict[str, str]:
    """Return name -> version of Python, this library and its packages, and `commit` where it runs from a git checkout."""
    found = {"python": platform.python_version(), "wam_video": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = git_commit(Path(__file__).resolve().parents[2])
    return found | ({"commit": commit} if commit else {})


def git_commit(root: Path) -> str | None:
    """Return the commit that a folder is checked out at, read from the files in `.git`; None if it is no checkout."""
    git = root / ".git"
    try:
        if git.is_file():  # a linked work tree
            git = (root / git.read_text().removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        if head.startswith("ref:"):
            head = _resolve(git, head.removeprefix("ref:").strip())
    except OSError:
        return None
    return head if re.fullmatch(r"[0-9a-f]{40,64}", head) else None


def tell_changes(saved: Mapping[str, str], current: Mapping[str, str]) -> None:
    """Log, on one line, what a run goes on with in other versions than it was saved with."""
    names = [name for name in sorted(saved.keys() | current.keys()) if saved.get(name) != current.get(name)]
    if saved and names:
        changes = ", ".join(f"{name} {saved.get(name, 'none')} -> {current.get(name, 'none')}" for name in names)
        _LOG.warning("the checkpoint was saved with other code, so bits may differ from here on: %s", changes)


def _resolve(git: Path, name: str) -> str:
    """Return what a ref points to: in a file of its own, or in the packed ones of the main work tree."""
    common = git / "commondir"
    main = (git / common.read_text().strip()).resolve() if common.is_file() else git
    for folder in (git, main):
        if (folder / name).is_file():
            return (folder / name).read_text().strip()
    for line in (main / "packed-refs").read_text().splitlines():
        digest, _, ref = line.partition(" ")
        if ref == name:
            return digest
    return ""
