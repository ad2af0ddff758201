"""What no file of quire may do: run code that came as data. See the table in docs/security.md."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import quire

ROOT = Path(quire.__file__).parent

FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "jsonpickle", "runpy", "code"}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "execfile"}
FORBIDDEN_ATTRIBUTES = {
    ("torch", "load"),
    ("torch", "save"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("os", "system"),
    ("os", "popen"),
    ("importlib", "reload"),
}
FORBIDDEN_METHODS = {"recv_pyobj", "send_pyobj", "exec_module", "unsafe_load"}
TABLES_OF_MODULES = {Path("__init__.py"), Path("entrypoints/cli/main.py"), Path("entrypoints/cli/serve.py")}
"""They import by names from a table in the same file, so that no more is loaded than is needed."""


@cache
def trees() -> list[tuple[Path, ast.Module]]:
    return [
        (path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(ROOT.rglob("*.py"))
    ]


def violations(path: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        place = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        for name in names:
            if name.partition(".")[0] in FORBIDDEN_MODULES:
                yield f"{place} imports {name}"
        if isinstance(node, ast.Call):
            yield from _call_violations(path, place, node)


def _call_violations(path: Path, place: str, node: ast.Call) -> Iterator[str]:
    function = node.func
    if isinstance(function, ast.Name) and function.id in FORBIDDEN_NAMES:
        yield f"{place} calls {function.id}"
    if not isinstance(function, ast.Attribute):
        return
    if function.attr in FORBIDDEN_METHODS:
        yield f"{place} calls {function.attr}"
    if isinstance(function.value, ast.Name):
        name = (function.value.id, function.attr)
        if name in FORBIDDEN_ATTRIBUTES:
            yield f"{place} calls {'.'.join(name)}"
        if name == ("importlib", "import_module") and path not in TABLES_OF_MODULES:
            first = node.args[0] if node.args else None
            if not (isinstance(first, ast.Constant) and str(first.value).partition(".")[0] != ""):
                yield f"{place} imports a module by a name that is not written there"


def test_no_pickle_eval_torch_load_or_dynamic_import() -> None:
    assert [found for path, tree in trees() for found in violations(path, tree)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "import yaml\nyaml.load('x')",
        "sock.recv_pyobj()",
        "import importlib\nimportlib.import_module(name)",
        "import importlib\nimportlib.import_module(f'models.{name}')",
        "spec.loader.exec_module(module)",
    ],
)
def test_the_scan_finds_what_it_looks_for(code: str) -> None:
    assert list(violations(Path("x.py"), ast.parse(code)))


def test_no_subprocess_goes_through_a_shell() -> None:
    shells = [
        f"{path}:{node.lineno}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "shell"
    ]
    assert shells == []
