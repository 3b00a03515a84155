"""The documentation as a site: every page is in the navigation, and what a page shows can be typed."""

from __future__ import annotations

import fnmatch
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from tsugi_cli.app import app
from tsugi_cli.config import describe, overrides
from tsugi_cli.config.names import HUGGING_FACE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
LOOSE = SITE["not_in_nav"].split()
PAGES = [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if "decisions" not in page.parts)]


def in_nav(part: Any) -> list[str]:
    if isinstance(part, str):
        return [part]
    return [page for each in (part.values() if isinstance(part, dict) else part) for page in in_nav(each)]


def test_every_page_stands_in_the_navigation_once():
    """A new page of docs/ gets its line below `nav` in mkdocs.yml."""
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    wanted = {page for page in pages if not any(fnmatch.fnmatch(f"/{page}", each) for each in LOOSE)}
    named = in_nav(SITE["nav"])
    assert sorted(named) == sorted(set(named))
    assert wanted - set(named) == set(), "these pages are in no nav"
    assert set(named) - wanted == set(), "these pages are not there"


def test_pictures_have_words_for_those_who_do_not_see_them():
    for page in PAGES:
        for words, target in re.findall(r"!\[(.*?)\]\((.*?)\)", page.read_text(encoding="utf-8")):
            assert len(words.split()) >= 2, f"{page.name}: {target}"


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every `tsugi ...` in a block of shell lines."""
    found = []
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
        for block in re.findall(r"^```(?:bash|sh|)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found += [(page.name, line) for line in block.splitlines() if re.match(r"(nohup )?tsugi (?!:)", line)]
    return found


def words_of(line: str) -> list[str]:
    """The words of a shell line behind `tsugi`, up to a pipe or a comment."""
    words = shlex.split(line.removeprefix("nohup "), comments=True)[1:]
    ends = [number for number, word in enumerate(words) if word in ("|", ">", "&", "&&", "2>&1")]
    return words[: ends[0]] if ends else words


KEYS = {each.key for each in describe.settings()}
OTHERS = {
    "recipe",
    "resume",
    "model",
    "data",
    "replicas",
    "churn",
    "scenario",
    "minutes",
    "bench",
    "lora.from",
    "key",
}
"""What stands before "=" besides settings: groups, words of a simulation, and "key" for any."""
EARLIER = {"kpool.r", "kpool.lora_alpha", "train.scale_lr"}
"""Keys of earlier versions, which pages about old runs name."""


def known(key: str) -> bool:
    return key in KEYS or key.partition(".")[0] in OTHERS - {"model", "data"} or key in OTHERS


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_line_of_a_page_can_be_typed(page, line):
    words = words_of(line.replace("...", "x").replace("…", "x"))
    at: Any = typer.main.get_command(app)
    while words and words[0] in getattr(at, "commands", {}):
        at = at.commands[words.pop(0)]
    if not words and at.name != "root":
        return
    assert getattr(at, "commands", None) is None or words[0].startswith("-"), f"{page}: no such command"
    options = {name for each in at.params for name in each.opts}
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in options, f"{page}: {at.name} has no {word}"
        elif at.name in ("finetune", "hub") and "=" in word:
            assert known(word.partition("=")[0]), f"{page}: {word}"
        if word.startswith("recipe=") and not word.endswith((".yaml", "=x")):
            assert word.removeprefix("recipe=") in overrides.recipe_names(), f"{page}: {word}"


def test_keys_that_pages_name_are_settings():
    """`train.lr` in a page is a setting, or the beginning of some, unless it is a file's or a module's name."""
    sections = {key.partition(".")[0] for key in KEYS if "." in key}
    for page in PAGES:
        for named in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?:=[^`\s]*)?`", page.read_text(encoding="utf-8")):
            section, _, rest = named.partition(".")
            if section not in sections or rest in ("json", "jsonl", "yaml", "py", "report.json", "mine"):
                continue
            assert named in KEYS | OTHERS | EARLIER or any(key.startswith(f"{named}.") for key in KEYS), (
                f"{page.name}: {named}"
            )


def test_words_of_other_tools_are_those_that_the_command_line_knows():
    page = (DOCS / "from_other_tools.md").read_text(encoding="utf-8").partition("## Words")[2].partition("## ")[0]
    for row in re.findall(r"^\| (?!what |---)(.*) \|$", page, re.MULTILINE):
        _, ours, *theirs = row.split(" | ")
        told = [
            HUGGING_FACE[word]
            for cell in theirs
            for word in re.findall(r"`([a-z_0-9]+)`", cell)
            if word != "datasets"
        ]
        keys = re.findall(r"`([a-z_.]+)", ours)
        assert all(any(key.rstrip("=") in each for key in keys) for each in told), row


def test_messages_of_the_troubleshooting_page_are_said_by_the_code():
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for top in ("tsugi_cli", "tsugi_kpool")
        for path in (ROOT / top).rglob("*.py")
    )
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    symptoms = [row.partition(" | ")[0] for row in re.findall(r"^\| (.*) \|$", page, re.MULTILINE)]
    quoted = [
        words for cell in symptoms for words in re.findall(r"`([^`]+)`", cell) if " " in words and ":17" not in words
    ]
    assert len(quoted) >= 6
    assert [words for words in quoted if words not in code and not words.startswith("slow ")] == []
