"""The rules of the house that can be read off one module's syntax tree. Each returns `line: what is wrong` strings."""

import ast
from collections.abc import Iterator

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_CLASS_LINES = 250
MAX_NESTING = 4

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)

LAZY = frozenset(
    "decord flash_attn deepspeed wandb trackio tensorboard gymnasium gym_pusht pymunk pygame cv2 timm torchvision peft "
    "matplotlib pandas pyarrow websockets msgpack webdataset".split()
)
"""Packages of the extras: imported inside functions, so that the base install works and starts fast."""

ONE_MODULE = frozenset("decord flash_attn deepspeed wandb trackio gymnasium gym_pusht timm websockets msgpack".split())
"""Packages that one module of the library keeps behind its own interface."""


def own_lines(node: ast.AST) -> int:
    """Lines of a function or class without its docstring."""
    count = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node, clean=False) is not None:
        doc = node.body[0]
        count -= doc.end_lineno - doc.lineno + 1
    return count


def too_long(source: str) -> list[str]:
    """Files, functions and classes over their limit."""
    lines = len(source.splitlines())
    found = [f"1: {lines} lines in the file; at most {MAX_FILE_LINES}"] if lines > MAX_FILE_LINES else []
    for node in ast.walk(ast.parse(source)):
        limit = MAX_CLASS_LINES if isinstance(node, ast.ClassDef) else MAX_FUNCTION_LINES
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and own_lines(node) > limit:
            found.append(f"{node.lineno}: {node.name} has {own_lines(node)} lines; at most {limit}")
    return found


def _depth(node: ast.AST) -> int:
    """Deepest nesting of control blocks below a node; an `elif` is no deeper than its `if`."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            continue
        chained = isinstance(node, ast.If) and isinstance(child, ast.If) and [child] == node.orelse
        deepest = max(deepest, _depth(child) + (isinstance(child, _BLOCKS) and not chained))
    return deepest


def too_deep(source: str) -> list[str]:
    """Functions whose blocks nest too deeply."""
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, FUNCTIONS)]
    return [
        f"{n.lineno}: {n.name} nests {_depth(n)} blocks; at most {MAX_NESTING}"
        for n in functions
        if _depth(n) > MAX_NESTING
    ]


def prints(source: str) -> list[str]:
    """Calls that write to the terminal."""
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
    text = [(n.lineno, ast.unparse(n.func)) for n in calls]
    return [f"{line}: {name}()" for line, name in text if name in ("print", "sys.stdout.write", "sys.stderr.write")]


def environment(source: str) -> list[str]:
    """Reads and writes of environment variables."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.putenv"):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            found += [f"{node.lineno}: from os import {a.name}" for a in node.names if a.name in ("environ", "getenv")]
    return found


def unsafe(source: str) -> list[str]:
    """Ways to execute what a file holds: pickle, and loaders that fall back to it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {a.name for a in node.names} | {getattr(node, "module", None)}
            found += [f"{node.lineno}: imports {n}" for n in names & {"pickle", "dill", "cloudpickle", "joblib"}]
        if isinstance(node, ast.Call):
            name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if keywords.get("allow_pickle") == "True":
                found.append(f"{node.lineno}: {name}(allow_pickle=True)")
            if name == "torch.load" and keywords.get("weights_only") != "True":
                found.append(f"{node.lineno}: torch.load without weights_only=True")
    return found


def future_annotations(source: str) -> list[str]:
    """`from __future__ import annotations`, which turns shape annotations into strings that nothing can check."""
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
    return [f"{n.lineno}: from __future__ import {a.name}" for n in nodes for a in n.names if a.name == "annotations"]


def public(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Public classes, functions and methods of a module. Overloads, setters and nested functions don't count."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[ast.AST, str]]:
        for node in body:
            if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or node.name.startswith("_"):
                continue
            decorators = [ast.unparse(d) for d in node.decorator_list]
            if any(d.endswith(("overload", ".setter", "override")) for d in decorators):
                continue
            yield node, prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}{node.name}.")

    yield from walk(tree.body, "")


def undocumented(source: str) -> list[str]:
    """Public names, and modules, without a docstring."""
    tree = ast.parse(source)
    found = [] if not tree.body or ast.get_docstring(tree) else ["1: the module"]
    return found + [f"{n.lineno}: {name}" for n, name in public(tree) if not ast.get_docstring(n)]


def unshaped(source: str) -> list[str]:
    """Public signatures with an array of which the reader learns neither dtype nor shape."""
    bare = {"Tensor", "torch.Tensor", "np.ndarray", "numpy.ndarray"}
    found = []
    for node, name in public(ast.parse(source)):
        if isinstance(node, FUNCTIONS):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            hints = [a.annotation for a in arguments] + [node.returns]
            parts = [part.strip() for h in hints if h for part in ast.unparse(h).split("|")]
            found += [f"{node.lineno}: {name}: {part}" for part in parts if part in bare]
    return found


def imports(source: str, *, lazy: bool = True) -> list[tuple[int, str]]:
    """(line, dotted name) of what a module imports at run time; `lazy=False` leaves out imports inside functions."""
    found: list[tuple[int, str]] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, FUNCTIONS) and not lazy:
            return
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name) for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            found.extend((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


def eager_extras(source: str) -> list[str]:
    """Packages of the extras that are imported as soon as the module is."""
    return [f"{line}: {name}" for line, name in imports(source, lazy=False) if name.split(".")[0] in LAZY]


def networks(source: str) -> list[str]:
    """Uses of torch.nn."""
    found = [f"{line}: {name}" for line, name in imports(source) if f"{name}.".startswith("torch.nn.")]
    attributes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute)]
    return found + [f"{n.lineno}: torch.nn" for n in attributes if ast.unparse(n) == "torch.nn"]
