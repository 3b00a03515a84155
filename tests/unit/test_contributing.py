"""CONTRIBUTING.md: its walks run, its names exist, its rooms and layers are those of the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tsugi_cli.config.spec import Data
from tsugi_cli.finetune.source import source_of
from tsugi_kpool.codec import coding
from tsugi_kpool.engine import wire

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WALKS = dict(re.findall(r"<!-- run: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))
NAMED = re.findall(r"`([\w/.]+\.(?:py|yaml|md|json))(?:: (\w+))?`", PAGE)


def test_there_is_a_walk_for_each_of_them():
    assert set(WALKS) == {"codec", "routing", "setting", "sink", "event", "message"}


@pytest.mark.parametrize("walk", WALKS)
def test_walks_do_what_they_say(walk, monkeypatch):
    codes = dict(wire.CODES)
    monkeypatch.setattr(coding, "CODES", codes)
    monkeypatch.setattr(wire, "CODES", codes)
    exec(compile(WALKS[walk], f"CONTRIBUTING.md, {walk}", "exec", dont_inherit=True), {"__name__": __name__})


def test_the_builder_of_the_walk_is_read(tmp_path, monkeypatch):
    found = re.search(r"<!-- file: mine.py -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    (tmp_path / "mine.py").write_text(found[1], encoding="utf-8")
    lines = ["question,answer", *(f"q{number},a{number}" for number in range(10))]
    (tmp_path / "mine.csv").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    splits = {shard.part: list(shard) for shard in source_of(of_builder("mine:build")).whole}
    assert {part: len(rows) for part, rows in splits.items()} == {"train": 7, "eval": 2, "test": 1}
    asked = {row.messages[0]["content"]: row.messages[1]["content"] for rows in splits.values() for row in rows}
    assert asked == {f"q{number}": f"a{number}" for number in range(10)}


def of_builder(target: str) -> Data:
    return Data(builder=target, path=None, scorer=None, seed=0, n_train=0, n_eval=2, n_test=1, max_tokens=64)


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)), ids=lambda value: value)
def test_every_file_and_name_exists(file, name):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert not name or re.search(rf"\b{name}\b", text)


def test_every_room_has_its_line():
    packages = {
        str(path.parent.relative_to(ROOT))
        for top in ("tsugi_kpool", "tsugi_cli", "recipes")
        for path in (ROOT / top).rglob("__init__.py")
    }
    rooms = PAGE.partition("## Rooms")[2].partition("## ")[0]
    assert set(re.findall(r"^\| `([\w/]+)` \|", rooms, re.MULTILINE)) == packages


def test_layers_are_those_of_the_contracts():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = [each for each in project["tool"]["importlinter"]["contracts"] if each["type"] == "layers"]
    wanted = "\n".join("\n    ".join([*each["containers"], *each["layers"]]) for each in contracts)
    found = re.search(r"<!-- layers -->\n```\n(.*?)\n```", PAGE, re.DOTALL)
    assert found is not None
    assert found[1] == wanted
