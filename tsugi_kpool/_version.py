"""The version, and whether this is the only package of its name that is installed here.

On the package index another distribution brings a package `tsugi_kpool`, too, with other semantics under the same
names. Installed into one environment they overwrite each other's files.
"""

from __future__ import annotations

import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTION = "tsugi"
HERE = Path(__file__).resolve().parent
MIXED = (
    "{others} is installed beside {ours}, which this is, and brings a package tsugi_kpool, too: files of the one may "
    "have replaced the other's. Uninstall both and install one again"
)


def others(site: Path) -> list[str]:
    """Distributions in a folder that bring this package besides ours."""
    found = []
    for facts in sorted(site.glob("tsugi*.dist-info")):
        name = facts.name.split("-")[0]
        tops = facts / "top_level.txt"
        brings = HERE.name in tops.read_text(encoding="utf-8").split() if tops.is_file() else name == HERE.name
        if name != DISTRIBUTION and brings:
            found.append(facts.name.removesuffix(".dist-info"))
    return found


def warn_of_others(site: Path) -> None:
    """Say which of them this is."""
    mixed = others(site)
    if mixed:
        warnings.warn(MIXED.format(others=", ".join(mixed), ours=f"{DISTRIBUTION} {VERSION}"), stacklevel=2)


def _installed() -> str:
    """The distribution's version; of a copy that is not installed, none."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "0+unknown"


VERSION = _installed()
warn_of_others(HERE.parent)
