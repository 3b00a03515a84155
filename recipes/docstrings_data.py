"""The docstring recipe's data: a function of the standard library -> the first line of its docstring.

The samples come from the Python that runs this: nothing is downloaded and no module is imported. Another
Python version has other functions, so the data is the same for a seed and a Python version.
"""

from __future__ import annotations

import ast
import hashlib
import random
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "eval", "test"]
Conversation = list[dict[str, str]]

SYSTEM = "Write the docstring."
# About 120 tokens of code: small models' tokenizers take some three characters to a token here. With the
# template and the answer a sample stays below 160.
_PROMPT_CHARS = 340
_SUMMARY_CHARS = range(16, 81)
# A few large modules would otherwise fill a split with one style of docstring.
_PER_MODULE = 8
# Test suites, vendored or bundled programs, installed packages and generated tables.
_SKIPPED = frozenset(
    {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
    | {"__pycache__", "encodings", "pydoc_data", "msilib", "lib-dynload"}
)


@dataclass(frozen=True)
class _Function:
    """A documented function: its name, its source without the docstring, and the docstring's first line."""

    name: str
    source: str
    summary: str


def build(seed: int, n_train: int, n_eval: int, n_test: int) -> dict[str, list[Conversation]]:
    """The three splits; no module has functions in two of them."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = _module_paths(root)
    # The held-out splits come first: what they hold must not depend on the size of the training split.
    sizes: dict[Split, int] = {"test": n_test, "eval": n_eval, "train": n_train}
    seen: set[tuple[str, str]] = set()
    built = {split: _build_split(seed, split, size, root, paths, seen) for split, size in sizes.items()}
    return {split: built[split] for split in ("train", "eval", "test")}


def _build_split(
    seed: int, split: Split, size: int, root: Path, paths: list[Path], seen: set[tuple[str, str]]
) -> list[Conversation]:
    """`size` conversations from the split's modules, read in a shuffled order until there are enough."""
    rng = random.Random(f"{seed}:{split}")
    own = [path for path in paths if split_of(module_name(root, path)) == split]
    rng.shuffle(own)
    chosen: list[_Function] = []
    for path in own:
        if len(chosen) >= size:
            break
        chosen += _unseen(_functions(path), seen)
    if len(chosen) < size:
        raise ValueError(f"{root} has {len(chosen)} functions for the {split} split, {size} were asked for")
    rng.shuffle(chosen)
    return [_conversation(function) for function in chosen[:size]]


def split_of(module: str) -> Split:
    """The split a module belongs to: a tenth of them to eval, a tenth to test."""
    place = hashlib.sha256(module.encode()).digest()[0] % 10
    return "eval" if place == 0 else "test" if place == 1 else "train"


def module_name(root: Path, path: Path) -> str:
    """The dotted name of the module in a file below the library's root."""
    return ".".join(path.relative_to(root).with_suffix("").parts)


def _module_paths(root: Path) -> list[Path]:
    """The library's modules in a fixed order."""
    found = [
        path
        for top in root.iterdir()
        if top.name not in _SKIPPED
        for path in (top.rglob("*.py") if top.is_dir() else [top])
        if path.suffix == ".py" and not _SKIPPED.intersection(path.relative_to(root).parts)
    ]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _unseen(functions: Iterator[_Function], seen: set[tuple[str, str]]) -> list[_Function]:
    """Up to `_PER_MODULE` functions whose like no sister module gave (posixpath has ntpath's)."""
    fresh: list[_Function] = []
    for function in functions:
        key = (function.name, function.summary)
        if key in seen:
            continue
        seen.add(key)
        fresh.append(function)
        if len(fresh) == _PER_MODULE:
            break
    return fresh


def _functions(path: Path) -> Iterator[_Function]:
    """The usable functions of a module."""
    text = path.read_text(encoding="utf-8", errors="replace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old modules have invalid escapes, which is not the user's concern
        try:
            tree = ast.parse(text)
        except SyntaxError:  # templates and samples that are not for this Python
            return
    lines = text.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            summary = _summary(node)
            source = _source(node, lines)
            if summary and source:
                yield _Function(node.name, source, summary)


def _summary(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The docstring's first line where it stands by itself as a sentence, else nothing."""
    paragraph = (ast.get_docstring(node) or "").split("\n\n")[0].strip()
    usable = paragraph.isascii() and "\n" not in paragraph and len(paragraph) in _SUMMARY_CHARS
    return paragraph if usable and paragraph[0].isupper() and paragraph.endswith(".") else ""


def _source(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """The function without its docstring and blank lines, cut to the budget; nothing for a bare docstring."""
    docstring = node.body[0]
    apart = len(node.body) > 1 and docstring.lineno > node.lineno
    if not apart or docstring.end_lineno is None or node.body[1].lineno <= docstring.end_lineno:
        return ""
    kept = lines[node.lineno - 1 : docstring.lineno - 1] + lines[docstring.end_lineno : node.end_lineno]
    return _cut(textwrap.dedent("\n".join(line for line in kept if line.strip())))


def _cut(source: str) -> str:
    """As many whole lines as fit the budget."""
    if len(source) <= _PROMPT_CHARS:
        return source
    return source[: source.rfind("\n", 0, _PROMPT_CHARS + 1)] if "\n" in source[:_PROMPT_CHARS] else ""


def _conversation(function: _Function) -> Conversation:
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": function.source},
        {"role": "assistant", "content": function.summary},
    ]
