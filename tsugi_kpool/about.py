"""What this machine says of itself when it joins, or is joined: its name and versions. Loads none of the packages."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from tsugi_kpool._version import VERSION
from tsugi_kpool.core.likeness import HOST, MAY
from tsugi_kpool.core.messages.frame import SCHEMA_VERSION


@cache
def about() -> dict[str, str]:
    """Return the facts, as core.likeness compares them."""
    packages = {name: _version(name) for name in MAY if name != "python"}
    found = {name: text for name, text in packages.items() if text is not None}
    own = {"wire": str(SCHEMA_VERSION), "tsugi": VERSION, "python": platform.python_version(), HOST: platform.node()}
    return own | found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
