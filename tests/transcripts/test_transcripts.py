"""Every transcript says what the code does. `pytest tests/transcripts --rewrite-transcripts` writes them anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from .driver import Story, replayed

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "transcripts.md"
TRANSCRIPTS = sorted(HERE.glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path, pytestconfig):
    told = path.read_text(encoding="utf-8")
    happened = replayed(told)
    if pytestconfig.getoption("--rewrite-transcripts"):
        path.write_text(happened, encoding="utf-8")
    else:
        assert happened == told


def test_every_transcript_is_listed_and_short_enough_to_be_read():
    listed = PAGE.read_text(encoding="utf-8")
    assert len(TRANSCRIPTS) == 10
    for path in TRANSCRIPTS:
        assert f"(../tests/transcripts/{path.name})" in listed
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
        assert 20 <= len(lines) <= 70, path.name


def test_an_unknown_command_is_refused():
    with pytest.raises(ValueError, match="no such command"):
        Story().perform("replica 0 sings")
