"""docs/import_graph.py counts what is in a checkout: modules, edges, rooms, circles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = {
    "tsugi_kpool/__init__.py": "",
    "tsugi_kpool/core/__init__.py": "from . import a",
    "tsugi_kpool/core/a.py": "import json\nfrom .b import one",
    "tsugi_kpool/core/b.py": "def one():\n    from tsugi_kpool.core.a import two",
    "tsugi_cli/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .app import run",
    "tsugi_cli/app.py": "import tsugi_cli\nfrom tsugi_kpool.core.b import one",
}
"""a and b import each other; a circle for type checkers only; one edge between the packages."""


@pytest.mark.timeout(200)
def test_a_small_checkout_is_counted_by_hand(tmp_path: Path) -> None:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    command = [sys.executable, "docs/import_graph.py", str(tmp_path), "--rooms"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=True)
    found = {name: int(value) for value, name in (line.split(maxsplit=1) for line in done.stdout.splitlines()[:8])}
    assert found == {
        "modules": 6,
        "rooms": 3,
        "modules in the largest room": 3,
        "edges": 5,
        "edges across rooms": 1,
        "pairs of rooms with an edge": 1,
        "circles": 1,
        "circles with the imports for type checkers": 2,
    }
    assert "circle: tsugi_kpool.core.a, tsugi_kpool.core.b" in done.stdout
