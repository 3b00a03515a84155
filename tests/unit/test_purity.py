"""docs/design.md rules 6 and 8, read off the source: decisions are pure, and nothing is ever unpickled."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ENGINE = Path(__file__).parent.parent.parent / "tsugi_kpool"
CORE = sorted((ENGINE / "core").rglob("*.py"))
PURE = {
    "__future__", "bisect", "collections", "contextlib", "dataclasses", "enum", "functools", "hashlib", "hmac",
    "ipaddress", "itertools", "json", "math", "msgspec", "operator", "re", "statistics", "struct", "typing", "zlib",
}  # fmt: skip
"""Nothing here reads a clock, opens a socket or a file, starts a thread, or draws anything."""
UNPICKLES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def imports(tree: ast.AST) -> set[str]:
    """Top-level names of the modules that are imported absolutely, wherever in the file."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.split(".")[0])
    return found


def attributes(tree: ast.AST, name: str) -> list[str]:
    """What is taken from the module `name`, as in name.attribute."""
    return [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    ]


def unseeded(tree: ast.AST) -> list[int]:
    """Lines that make a random.Random without a seed."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "Random"
        if not node.args
    ]


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_decisions_read_no_clock_no_socket_and_no_random_source(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert imports(tree) - PURE <= {"random", "tsugi_kpool"}
    assert set(attributes(tree, "random")) <= {"Random"}, "random.Random(seed) is a function of its seed"
    assert unseeded(tree) == []


@pytest.mark.parametrize(
    "source",
    ["import time", "from time import monotonic", "def f():\n    import socket", "import random\nrandom.random()"],
)
def test_that_would_be_seen(source):
    tree = ast.parse(source)
    assert imports(tree) - PURE - {"random"} or set(attributes(tree, "random")) - {"Random"}


@pytest.mark.parametrize("path", sorted(ENGINE.rglob("*.py")), ids=lambda path: path.stem)
def test_nothing_is_unpickled(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not imports(tree) & UNPICKLES
    assert "load" not in attributes(tree, "torch"), "torch.load unpickles"
    assert not {"recv_pyobj", "all_gather_object", "broadcast_object_list"} & {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }
