"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# A deadline would be a timing assertion, which says more about the neighbours than about the code.
settings.register_profile("tsugi", deadline=None)
settings.load_profile("tsugi")
