"""Pictures of the measurements: each is on a page, follows its results, fits a telephone and keeps its colours."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
before = list(sys.path)
sys.path.insert(0, str(ROOT / "benchmarks"))
import charts  # noqa: E402
import drawings  # noqa: E402

sys.path[:] = before  # other folders of scripts have files of the same names

RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
LETTER = 6.6
"""Width of a letter of 12 points, estimated high."""
NAMES = sorted(drawings.DRAWINGS)
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def records(name: str) -> list[Any]:
    return [json.loads((RESULTS / f"{each}.json").read_text()) for each in drawings.DRAWINGS[name].of]


def drawn(name: str) -> charts.Picture:
    return drawings.DRAWINGS[name].draw(*records(name))


def bent(value: Any) -> Any:
    """A record whose measured numbers, those with a fraction, are others; ratios and differences of them, too."""
    if isinstance(value, dict):
        return {key: each if key in ("lr_scale", "learning_rates") else bent(each) for key, each in value.items()}
    if isinstance(value, list):
        return [bent(each) for each in value]
    return value * abs(value) ** 0.2 if isinstance(value, float) else value


@pytest.fixture(scope="module")
def pictures() -> dict[str, charts.Picture]:
    return {name: drawn(name) for name in NAMES}


def test_every_picture_stands_on_a_page_and_every_file_is_drawn_from_results():
    shown = {
        name for page in PAGES for name in re.findall(r"<!-- picture: (\S+) -->", page.read_text(encoding="utf-8"))
    }
    assert shown == set(NAMES)
    assert {path.stem for path in (DOCS / "pictures").glob("figure-*.svg")} == set(NAMES)


def test_pages_hold_each_picture_with_its_words_and_its_caption(pictures):
    """The files themselves, and that all of this comes from the results, are test_architecture's."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"<!-- picture: (\S+) -->", text):
            assert f"![{pictures[name].words}](" in text, f"{page.name}: {name}"
            assert f"*{drawings.DRAWINGS[name].caption}*" in text, f"{page.name}: {name}"


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_changes_with_its_results(name, pictures):
    drawing = drawings.DRAWINGS[name]
    others = drawing.draw(*map(bent, records(name)))
    assert others.svg != pictures[name].svg


def texts(svg: str) -> Iterator[tuple[float, str, str]]:
    for tag, words in re.findall(r"<text([^>]*)>([^<]*)</text>", svg):
        found = re.search(r'x="([-0-9.]+)" y="[-0-9.]+" text-anchor="(\w+)"', tag)
        assert found
        yield float(found[1]), found[2], unescape(words)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_fits_a_telephone_and_both_modes(name, pictures):
    svg = pictures[name].svg
    width = float(re.search(r'viewBox="0 0 (\d+)', svg)[1])
    assert width <= 420
    for x, anchor, words in texts(svg):
        reach = len(words) * LETTER
        left = x - {"start": 0.0, "middle": reach / 2, "end": reach}[anchor]
        assert left >= -1, words
        assert left + reach <= width + 1, words
    assert "prefers-color-scheme:dark" in svg
    assert set(re.findall(r'"(#[0-9a-f]+)"', svg)) <= set(charts.OURS.values()), "a colour that no method has"


def test_a_method_has_a_colour_of_its_own():
    assert len(set(charts.OURS.values())) == len(charts.OURS)


def test_who_never_gets_there_has_no_bar():
    """A ratio of 0 would be a bar of no length, a missing time none at all: both say it in words."""
    assert "like hivemind never there" in drawn("figure-tax-straggler").words
    assert "torchft DiLoCo not within the run" in drawn("figure-peers").words
