"""The way in: README is short and its figures are the pages', the decisions have an index, anchors lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DECISIONS = ROOT / "docs" / "decisions"


def test_readme_is_short():
    assert len(README.splitlines()) < 150


def figures() -> list[tuple[str, str]]:
    """(figure, page) of every row of README's table of figures."""
    table = README.partition("## Five figures")[2].partition("## ")[0]
    return re.findall(r"^\| .*? \| (.*?\d.*?) \| \[\w+\]\((.*?)\) \|$", table, re.MULTILINE)


def test_readme_has_five_figures():
    assert len(figures()) == 5


@pytest.mark.parametrize(("figure", "page"), figures())
def test_every_number_of_a_figure_stands_on_its_page(figure, page):
    text = (ROOT / page.partition("#")[0]).read_text(encoding="utf-8")
    numbers = re.findall(r"\d+\.\d+%?", figure)
    assert numbers
    assert [number for number in numbers if number not in text] == []


def title(page: Path) -> tuple[str, str]:
    """(number, title) as a decision's first line has them."""
    found = re.match(r"# (\d{4})[:.]? (.*)\n", page.read_text(encoding="utf-8"))
    assert found is not None, page.name
    return found[1], found[2]


def test_index_of_decisions_has_every_page_once_and_in_order():
    index = (DECISIONS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\d{4})\]\((.*?)\) \| (.*?) \| (.+?) \|$", index, re.MULTILINE)
    pages = sorted(DECISIONS.glob("[0-9]*.md"))
    assert [(number, name, named) for number, name, named, _ in rows] == [
        (page.name[:4], page.name, title(page)[1]) for page in pages
    ]
    assert [title(page)[0] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", each).lower() for each in headings]
    return {re.sub(r"[^\w\- ]", "", each).strip().replace(" ", "-") for each in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_anchors_exist(page):
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    for target, anchor in links:
        there = page if not target else (page.parent / target).resolve()
        if there.suffix == ".md":
            assert anchor in anchors(there), f"{page.name} links to {target}#{anchor}"


GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
TERMS = re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \| `(.*?)` \|$", GLOSSARY, re.MULTILINE)


def test_the_glossary_leads_to_files_that_exist():
    assert len(TERMS) >= 60
    homes = [where if where.startswith("tsugi_cli/") else f"tsugi_kpool/{where}" for *_, where in TERMS]
    assert [home for home in homes if not (ROOT / home).is_file()] == []


def test_the_glossary_has_every_word_of_the_design():
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = design.partition("## 2. Words")[2].partition("## 3.")[0]
    words = {word for cell in re.findall(r"^\| ([\w, -]+) \|", table, re.MULTILINE) for word in cell.split(", ")}
    ours = " ".join(word for _, word, *_ in TERMS)
    assert len(words) > 10
    assert [word for word in words - {"word"} if word not in ours] == []


WANTED = (
    "heartbeat,coordinator,all-reduce,watchdog,rendezvous,retry,timeout,straggler,fencing,quorum,checkpoint,"
    "write-ahead log,error feedback,quantisation,all-gather,staleness,world,rank,launcher,failure detector,"
    "acknowledgement,lease,graceful shutdown,local SGD,pseudo-gradient,gradient noise scale,change-point,goodput,"
    "drift,rate limit,priority queue,telemetry,micro-batch"
)


@pytest.mark.parametrize("term", WANTED.split(","))
def test_an_engineer_of_the_field_finds_the_word(term):
    assert any(term in f"{field} {ours}" for field, ours, *_ in TERMS)
