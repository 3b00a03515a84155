"""What is known about prepared data without reading them: counts, their hash, and the report. Plain JSON.

The launcher reads this and nothing else of the data.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

Watch = Callable[[str, int, int], None]
"""Is told (what is done, rows done, rows in all; 0: not known)."""
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Facts:
    """Of one entry of the cache."""

    entry: str
    """Its folder."""
    fingerprint: str
    """Hash over all prepared tokens."""
    n_train: int
    """Prepared samples, which leases count; a user's row may be several, or share one with others."""
    n_eval: int
    n_test: int
    max_tokens: int
    """Of the longest sample that is let through."""
    report: dict[str, Any]
    """What `report.py` makes of it."""

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @staticmethod
    def parse(text: str | bytes) -> Facts:
        """Of what `write` has written.

        Raises:
            ValueError: it is something else.
        """
        try:
            return Facts(**json.loads(text))
        except TypeError as error:
            raise ValueError(str(error)) from error

    @staticmethod
    def read(entry: Path) -> Facts:
        """Those of an entry, wherever it lies now.

        Raises:
            OSError, ValueError: there is none, or it is something else.
        """
        return replace(Facts.parse((entry / MANIFEST).read_text(encoding="utf-8")), entry=str(entry))
