"""Every module against the rules of the house; and every rule against a module that breaks it."""

from collections import defaultdict
from collections.abc import Callable

import pytest

from tests.policy import rules
from tests.policy.tree import PACKAGES, python_files, read

Rule = Callable[[str], list[str]]

CLI = ("wam_video/cli/",)
SIMULATORS = ("data_pipelines/pusht/simulator.py", "data_pipelines/metaworld/simulator.py")
"""SDL and MuJoCo read their drivers from the environment only, before pygame or mujoco is imported."""

RULES: dict[str, tuple[Rule, tuple[str, ...], tuple[str, ...]]] = {
    "sizes": (rules.too_long, (*PACKAGES, "tests"), ()),
    "nesting": (rules.too_deep, PACKAGES, ()),
    "prints": (rules.prints, PACKAGES, (*CLI, "wam_video/log.py")),
    "environment": (rules.environment, PACKAGES, (*CLI, *SIMULATORS)),
    "pickle": (rules.unsafe, PACKAGES, ()),
    "annotations": (rules.future_annotations, (*PACKAGES, "tests"), ()),
    "docstrings": (rules.undocumented, PACKAGES, ()),
    "shapes": (rules.unshaped, PACKAGES, ()),
    "lazy extras": (rules.eager_extras, ("wam_video",), ()),
    "data knows no networks": (rules.networks, ("wam_video/data", "data_pipelines"), ()),
}
"""Name -> the rule, the folders it holds for, and the paths that are excused by design."""

BROKEN: dict[str, str] = {
    "sizes": "def f():\n" + "    x = 1\n" * 61,
    "nesting": "def f(a):\n    for b in a:\n        for c in b:\n            if c:\n                while c:\n                    if a:\n                        return 1\n",
    "prints": "def f():\n    print(1)\n",
    "environment": "import os\nA = os.environ['A']\n",
    "pickle": "import numpy as np\nA = np.load('a', allow_pickle=True)\n",
    "annotations": "from __future__ import annotations\n",
    "docstrings": '"""Doc."""\nclass A:\n    """Doc."""\n    def method(self): ...\n',
    "shapes": "def f(x: torch.Tensor | None) -> None: ...\n",
    "lazy extras": "import decord\n",
    "data knows no networks": "from torch import nn\n",
}

ALLOWED: dict[str, str] = {
    "sizes": '"""Doc."""\ndef f():\n    """' + "\n" * 80 + '"""\n' + "    x = 1\n" * 50,
    "nesting": "def f(a):\n    if a == 1:\n        return 1\n"
    + "".join(f"    elif a == {i}:\n        return 1\n" for i in range(2, 9)),
    "docstrings": '"""Doc."""\nclass _Hidden:\n    def method(self): ...\ndef _f(): ...\n',
    "lazy extras": "def f():\n    import decord\n",
    "pickle": "import torch\nA = torch.load('a', weights_only=True)\n",
    "data knows no networks": "import torch\nimport torch.nnx\n",
}


@pytest.mark.parametrize("name", RULES)
def test_the_tree_keeps_the_rule(name: str) -> None:
    rule, folders, excused = RULES[name]
    modules = [m for m in python_files(*folders) if not m.startswith(excused)]
    found = [f"{module}:{problem}" for module in modules for problem in rule(read(module))]
    assert modules
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("name", RULES)
def test_a_module_that_breaks_the_rule_is_caught(name: str) -> None:
    assert RULES[name][0](BROKEN[name])


@pytest.mark.parametrize("name", ALLOWED)
def test_what_only_looks_like_a_breach_is_allowed(name: str) -> None:
    assert not RULES[name][0](ALLOWED[name])


def test_a_long_file_is_caught() -> None:
    assert rules.too_long("x = 1\n" * 401)


def test_each_optional_package_is_behind_one_module() -> None:
    users = defaultdict(set)
    for module in python_files("wam_video"):
        for _, name in rules.imports(read(module)):
            users[name.split(".")[0]].add(module)
    shared = {name: sorted(users[name]) for name in rules.ONE_MODULE if len(users[name]) > 1}
    assert not shared
