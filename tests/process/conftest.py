"""Of every real run: whether one of its processes listens where nobody may."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.listening import Watch


@pytest.fixture(autouse=True, scope="module")
def closed_doors() -> Iterator[None]:
    """No port without a key: fails a file of tests whose processes have listened anywhere else (docs/security.md)."""
    with Watch() as watch:
        yield
    foreign = [each for each in watch.found if not each.allowed]
    assert not foreign, f"listened at without being on the list: {foreign}"
