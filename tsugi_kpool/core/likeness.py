"""Versions of two machines, compared before anything is loaded: a pure verdict on what each says of itself.

Tsugi's own version and that of the wire must be equal. Other versions may differ: data and adapters are compared by
content later. If these turn out to differ, the first version that does is the likely reason, and is named.
"""

from __future__ import annotations

from collections.abc import Mapping

MUST = ("wire", "tsugi")
"""Must be equal, in the order in which they are compared."""
MAY = ("transformers", "peft", "torch", "python")
"""May differ; the likeliest reason of a difference in what they make stands first."""
HOST = "host"
"""What a machine calls itself. Not compared."""
MOST_WORDS, LONGEST = 16, 200
"""Facts that a machine may say of itself, and their length."""

About = Mapping[str, str]
"""What a machine says of itself: its name, and versions by package."""


def unlike(theirs: About, ours: About, names: tuple[str, ...]) -> str | None:
    """Return the first of these versions that differs, with both values, theirs first. None: none that both name.

    Args:
        theirs: Of the machine that joins.
        ours: Of the hub.
        names: Which to compare.
    """
    for name in names:
        there, here = theirs.get(name), ours.get(name)
        if there is not None and here is not None and _release(name, there) != _release(name, here):
            return f"it has {name} {there}, the hub {here}"
    return None


def refusal(theirs: About, ours: About) -> str | None:
    """Return why a machine may not join a hub, or None."""
    found = unlike(theirs, ours, MUST)
    return None if found is None else f"the joining machine is of another version: {found}"


def possible(about: About) -> bool:
    """Return whether a machine may say this of itself."""
    return len(about) <= MOST_WORDS and all(len(key) + len(value) <= LONGEST for key, value in about.items())


def _release(name: str, version: str) -> str:
    """Return the part of a version that says how a package behaves: of others than our own the first two numbers."""
    return version if name in MUST else ".".join(version.partition("+")[0].split(".")[:2])
