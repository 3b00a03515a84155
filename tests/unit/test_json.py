"""`--json`: every command takes it, and every line of stdout is then one object; words for people go to stderr."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.pictures import SUMMARY, event, fleet
from tsugi_cli.app import app
from tsugi_cli.console import attach
from tsugi_cli.console.json_lines import JsonConsole
from tsugi_cli.console.plain import PlainConsole
from tsugi_cli.record.answer import Answer, line
from tsugi_cli.record.atomic import write_json
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.errors import ExitCode


def leaves(at: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command, by its words."""
    inner = getattr(at, "commands", None)
    if inner is None:
        yield path
        return
    for name, each in inner.items():
        yield from leaves(each, (*path, name))


COMMANDS = sorted(leaves(typer.main.get_command(app)))
ROWS = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(40)]
TINY = ["model=tiny", "data=mine.jsonl"]
ASKED: dict[tuple[str, ...], list[str]] = {
    ("finetune",): [*TINY, "--dry-run"],
    ("bench",): ["--simulate", "replicas=3", "minutes=0.05", "model=tiny"],
    ("console",): ["--run", "run"],
    ("launch",): ["slurm", "model=tiny"],
    ("report",): ["run"],
    ("settings",): ["packing"],
    ("completion",): ["words", "--", "tsugi da"],
    ("help",): ["data", "check"],
    ("recipes", "ls"): [],
    ("recipes", "show"): ["own_data"],
    ("recipes", "copy"): ["own_data"],
    ("sideband", "keygen"): [],
}
"""What each command is asked here. The others need a run, a model or a hub, and are asked where such are at hand."""
ELSEWHERE = {
    ("data", "check"),
    ("data", "preview"),
    ("doctor",),
    ("generate",),
    ("eval",),
    ("export",),
    ("stop",),
    ("join",),
    ("hub",),
    ("sideband", "status"),
    ("sideband", "token"),
}


def test_every_command_takes_it():
    assert set(ASKED) | ELSEWHERE == set(COMMANDS), "a new command is asked here, too"
    for path in COMMANDS:
        at: Any = typer.main.get_command(app)
        for word in path:
            at = at.commands[word]
        assert any("--json" in each.opts for each in at.params), path


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with data and a run that has ended."""
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    paths = RunPaths(Path("run"))
    paths.root.mkdir()
    paths.events.write_text(json.dumps(event("joined", replica=0, host="here", pid=1)) + "\n", encoding="utf-8")
    write_json(paths.summary, SUMMARY)
    return tmp_path


@pytest.mark.parametrize("path", sorted(ASKED), ids=" ".join)
def test_every_line_of_stdout_is_an_object(path, place):
    asked = ASKED[path]
    options = asked.index("--") if "--" in asked else len(asked)
    result = CliRunner().invoke(app, [*path, *asked[:options], "--json", *asked[options:]])
    assert result.exit_code == 0, (result.output, result.exception)
    lines = result.stdout.splitlines()
    assert lines
    assert all(isinstance(json.loads(each), dict) for each in lines)


def test_a_line_is_ascii_and_has_what_json_lacks_as_null():
    said = line({"text": "é\u2028\n", "loss": math.nan, "steps": (1, math.inf), "at": Path("a"), 3: "three"})
    assert said.isascii()
    assert said.count("\n") == 1
    assert json.loads(said) == {"text": "é\u2028\n", "loss": None, "steps": [1, None], "at": "a", "3": "three"}


def told(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(each) for each in lines.getvalue().splitlines()]


def test_a_run_tells_programs_and_people():
    people, lines = io.StringIO(), io.StringIO()
    with JsonConsole(PlainConsole(people), Answer(people, lines)) as console:
        console.message("tools: runs/tools")
        console.event(event("joined", replica=0, host="here", pid=1))
        for elapsed_s in (1.0, 1.5, 4.0):
            console.show(fleet(elapsed_s=elapsed_s))
        console.report(SUMMARY)
    kinds = [next(iter({"event", "message", "status", "summary"} & set(each))) for each in told(lines)]
    assert kinds == ["message", "event", "status", "status", "summary"], "statuses come as often as in status.jsonl"
    assert told(lines)[2]["status"]["samples_done"] == 42
    assert told(lines)[-1]["summary"] == SUMMARY
    assert "42/448 samples" in people.getvalue()


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_program_that_reads_no_more_ends_nothing_for_people():
    people = io.StringIO()
    console = JsonConsole(PlainConsole(people), Answer(people, Gone()))
    console.message("one")
    console.message("two")
    assert console.broken
    assert people.getvalue().splitlines() == ["one", "two"]


def test_a_finished_run_is_told_event_by_event(place):
    people, lines = io.StringIO(), io.StringIO()
    assert attach.show("run", None, True, Answer(people, lines)) == ExitCode.OK
    assert next(each.get("event") for each in told(lines)) == "joined"
