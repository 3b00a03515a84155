"""Exit codes are a promise: the page, the enum and the error classes agree."""

from __future__ import annotations

import re
from pathlib import Path

from tsugi_kpool import errors
from tsugi_kpool.errors import ExitCode, TsugiError

PAGE = Path(__file__).parents[2] / "docs" / "exit-codes.md"


def test_page_lists_every_exit_code():
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: int(code) for code, name in rows} == {code.name: int(code) for code in ExitCode}


def test_error_tree_in_the_docstring_is_the_tree():
    drawn = set(re.findall(r"(\w*Error_?)\b", errors.__doc__ or ""))
    real = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, TsugiError)}
    assert drawn == real
