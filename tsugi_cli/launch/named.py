"""A function that a user names, looked for without running its module: that may import torch."""

from __future__ import annotations

import ast
import sys
from importlib.util import find_spec
from pathlib import Path

from tsugi_cli.config.schema import did_you_mean
from tsugi_cli.finetune.functions import UserError, look_here, of_user
from tsugi_kpool.errors import ConfigError


def check_function(target: str, key: str) -> None:
    """See that there is such a function, as far as its module's text says so.

    Args:
        target: "package.module:function".
        key: The setting that names it.

    Raises:
        ConfigError: there is no such module, or nothing of that name in it.
    """
    module, _, name = target.partition(":")
    look_here()
    try:
        found = of_user(lambda: find_spec(module))  # runs what a package has at its top
    except UserError as error:
        raise ConfigError([f"{key}={target}: cannot be imported ({error})"]) from error
    if found is None:
        raise ConfigError([
            f'{key}={target}: there is no module {module} here ({sys.path[0] or Path.cwd()} was looked into first); '
            'write "package.module:function"'
        ])  # fmt: skip
    names = _names(found.origin)
    if names is not None and name not in names:
        known = f"; it has {', '.join(sorted(names)[:10])}" if names else ""
        hint = did_you_mean(name, sorted(names)) or known
        raise ConfigError([f"{key}={target}: {found.origin} has no function {name}{hint}"])


def _names(origin: str | None) -> set[str] | None:
    """What a module's text gives a name to at its top; None where that cannot be told."""
    if origin is None or not origin.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(origin).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None  # the worker says it, with the line
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {each.id for each in targets if isinstance(each, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(each.asname or each.name).partition(".")[0] for each in node.names}
        elif not isinstance(node, ast.Expr):
            return None  # a name may come from a branch or a loop
    return None if "*" in found else found
