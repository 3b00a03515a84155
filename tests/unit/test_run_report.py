"""`tsugi report`: one page of one run or several, from whatever its directory holds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.pictures import fleet, replica
from tests.unit.test_replay import stamp, write
from tsugi_cli.app import app
from tsugi_cli.config.compose import compose, resolved_yaml
from tsugi_cli.pages.facts import Curve, RunFacts, plain
from tsugi_cli.pages.figures import COLOURS
from tsugi_cli.pages.gather import gather
from tsugi_cli.pages.html import STYLE
from tsugi_cli.pages.report import page
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.record.status_log import compact
from tsugi_kpool.errors import ConfigError

EVIL = "<script>alert(1)</script><img src=x onerror='alert(2)'>\x1b[31m\u202e\"'&"
SLOW = {
    "factor": 3.8,
    "before_s": 0.4,
    "after_s": 1.5,
    "part": "step",
    "cause": "compute",
    "evidence": ["clock 0.8 GHz"],
}


def record(root: Path, text: str = "plain", ended: bool = True, settings: tuple[str, ...] = ()) -> RunPaths:
    """Sixty seconds of two replicas; the second one is slow from 20 to 40. `text` stands wherever a text may."""
    root.mkdir()
    paths = RunPaths(root)
    paths.config.write_text(resolved_yaml(compose(["model=tiny", "kpool.k=3", *settings])), encoding="utf-8")

    events: list[dict[str, Any]] = []

    def event(second: float, name: str, **fields: Any) -> None:
        events.append({"time": stamp(second), "event": name, **fields})

    for number in (0, 1):
        event(0, "joined", replica=number, host=f"{text}{number}", pid=1)
    event(0, "generation", generation=1, members=[0, 1])
    event(1, "evaluated", replica=0, stage="base", sums={"loss_sum": 20.0, "loss_tokens": 10.0})
    for second in range(0, 60, 10):
        rows = tuple(replica(n, host=f"{text}{n}", sent_bytes=second * 1000, lag_s=n * 2.0) for n in (0, 1))
        write(paths.status, {"time": stamp(second), **compact(fleet(replicas=rows, loss=2.0 - second / 60))})
        number = second // 10 + 1
        done = {"version": number, "seconds": 1.5, "payload_bytes": 10, "weights": [1, 1], "digest": "d"}
        event(second + 5, "fired", round=number, adapters=[0, 1], reason=text, pooled=4)
        event(second + 7, "committed", round=number, **done)
    event(20, "slow", replica=1, since_s=2.0, **{**SLOW, "cause": text})
    event(40, "recovered", replica=1, seconds=20.0, step_s=0.4)
    event(41, "note", text=text)
    write(paths.events, *sorted(events, key=lambda each: each["time"]))
    for step in range(1, 61):
        own = {"steps": step, "samples": step * 2, "tokens": step * 20, "loss": 2.0 - step / 60, "step_s": 0.5}
        write(paths.metrics, {"time": stamp(step), "replica": 0, **own})
    if ended:
        paths.summary.write_text(json.dumps(summary(text)), encoding="utf-8")
    return paths


def summary(text: str) -> Mapping[str, Any]:
    return {
        "run": text,
        "recipe": text,
        "model": text,
        "outcome": "finished",
        "evaluation": {"base": {"loss": 2.0, "perplexity": 7.389, text: 0.1}, "trained": {"loss": 1.5, text: 0.9}},
        "examples": [{"request": text, "expected": "yes", "base": text, "trained": "yes"}],
        "wall_s": 61.0,
        "samples": 120,
        "samples_total": 120,
        "tokens": 1200,
        "goodput": 0.5,
        "replicas": [
            {"replica": 0, "steps": 60, "busy_s": 30.0, "trained_s": 59.5, "sent_bytes": 50_000, "share": 0.5}
        ],
        "go_on": None,
    }


class Parsed(HTMLParser):
    """A page's tags, attributes and text; fails where a tag is closed that is not open."""

    VOID = frozenset(("meta", "img", "br"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_run_becomes_numbers(tmp_path):
    run = gather(record(tmp_path / "run"))
    assert (run.outcome, run.total("rounds"), run.total("samples")) == ("finished", 6, 120)
    assert [(each.replica, each.host) for each in run.replicas] == [(0, "plain0"), (1, "plain1")]
    own = run.replicas[0]
    assert (own.computed_s, own.waited_s, own.shipped_s) == (30.0, 29.5, 9.0)
    assert own.loss[-1] == (60.0, 1.0)
    assert (own.sent[-1], run.replicas[1].lag_s[0]) == ((50.0, 50_000.0), (0.0, 2.0))
    assert [(span.replica, span.from_s, span.until_s) for span in run.slow] == [(1, 18.0, 40.0)]
    assert "clock 0.8 GHz" in run.slow[0].why
    assert run.evaluated == [("base", 1.0, 2.0)]
    assert (run.rounds[0].at_s, run.rounds[0].whole_s) == (5.0, 2.0)
    changed = {each.key: (each.default, each.value) for each in run.changed}
    assert changed["kpool.k"] == ("2", "3")
    assert "seed" not in changed


def test_the_page_holds_what_a_run_did(tmp_path):
    paths = record(tmp_path / "run")
    before = {path: path.read_bytes() for path in paths.root.rglob("*") if path.is_file()}
    found = Parsed(page([gather(paths)]))
    for words in (
        "Eval loss 2.000 before training, 1.500 after (-25%)", "one seed", "7.389 → –", "10.0% → 90.0%",
        "Fleet timeline", "3.8x slow", "kpool.k",
        "as expected", "not as expected", f"recipe={paths.config}", "replica 1, from 0:18 to 0:40",
    ):  # fmt: skip
        assert words in found.text, words
    assert sum(tag == "svg" for tag, _ in found.tags) == 4 + 2  # four figures, and a row for each replica
    assert before == {path: path.read_bytes() for path in paths.root.rglob("*") if path.is_file()}


def test_nothing_in_a_page_needs_a_network_or_runs(tmp_path):
    """Hosts, reasons, answers and causes come from other machines."""
    runs = [gather(record(tmp_path / name, EVIL)) for name in ("a<b>", "c")]
    text = page(runs)
    found = Parsed(text)
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "img", "link", "iframe", "a", "object", "form"})
    attributes = {name for _, attrs in found.tags for name in attrs}
    assert not {name for name in attributes if name.startswith("on") or name in ("src", "href")}
    assert "url(" not in text
    assert "@import" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<script>alert(1)</script>" in found.text  # shown as the text that it is


def test_several_runs_stand_side_by_side(tmp_path):
    runs = [
        gather(record(tmp_path / "a")),
        gather(record(tmp_path / "b", settings=("train.lr=0.5", "data.n_eval=7"))),
    ]
    found = Parsed(page(runs))
    table = found.text[found.text.index("Settings that differ") :]
    assert "train.lr" in table
    assert "0.5" in table
    assert "kpool.k" not in table[: table.index("To paste")]  # both have it
    assert "The runs differ in data.n_eval" in found.text
    assert sum(attrs.get("class") == "runs" for _, attrs in found.tags) == 1


def test_an_unfinished_or_damaged_run_has_a_page(tmp_path):
    paths = record(tmp_path / "run", ended=False)
    with paths.metrics.open("ab") as file:
        file.write(b'{"torn": \n\xff\xfe\n[1]\n{"time":"x","replica":true,"steps":1e999}\n{"time": "2026')
    huge = "9" * 400
    with paths.events.open("a") as file:
        file.write(f'{{"time":"{stamp(50)}","event":"committed","round":{huge},"seconds":{huge}}}\n')
        file.write(
            f'{{"time":"{stamp(51)}","event":"evaluated","stage":"x","sums":{{"loss_sum":1e308,"loss_tokens":1e-9}}}}\n'
        )
    with paths.metrics.open("a") as file:
        file.write(f'\n{{"time":"{stamp(61)}","replica":1,"steps":{huge},"step_s":1e308,"loss":1e308}}\n')
    with paths.status.open("a") as file:
        broken = json.dumps({"time": stamp(62), **compact(fleet())})
        file.write(
            broken.replace('"elapsed_s": 83.0', '"elapsed_s": NaN').replace('"loss": 1.234', '"loss": Infinity')
            + "\n"
        )
    run = gather(paths)
    json.dumps(plain(asdict(run)), allow_nan=False)
    assert run.outcome == "unfinished"
    assert any("lines of" in words for words in run.left_out)
    assert len(run.replicas[0].loss) == 60
    text = Parsed(page([run])).text
    assert "the run goes on, or its launcher has gone" in text
    assert "could not be read and were left out" in text
    paths.summary.write_text("[", encoding="utf-8")
    paths.config.write_text("train: [", encoding="utf-8")
    left_out = " ".join(gather(paths).left_out)
    assert "summary.json" in left_out
    assert "config.yaml" in left_out


@pytest.mark.parametrize("kept", ["config.yaml", "summary.json", "events.jsonl", "metrics.jsonl", "status.jsonl"])
def test_a_run_of_which_one_file_is_left_has_a_page(kept, tmp_path):
    paths = record(tmp_path / "run")
    for path in paths.root.iterdir():
        if path.name != kept:
            path.unlink()
    Parsed(page([gather(paths)]))


def test_the_command_writes_a_page_and_keeps_what_is_not_its_own(tmp_path, monkeypatch):
    paths = record(tmp_path / "run")
    monkeypatch.chdir(tmp_path)

    def tsugi(*words: str) -> Any:
        return CliRunner().invoke(app, ["report", *words])

    assert tsugi(str(paths.root)).exit_code == 0
    made = tmp_path / "run.report.html"
    assert "</svg>" in made.read_text(encoding="utf-8")
    assert tsugi(str(paths.root)).exit_code == 0  # over its own page
    (tmp_path / "mine.html").write_text("mine")
    assert "stays" in str(tsugi(str(paths.root), "--out", "mine.html").exception)
    assert (tmp_path / "mine.html").read_text() == "mine"
    assert "did you mean run" in str(tsugi("rum").exception)
    assert isinstance(tsugi(str(tmp_path)).exception, ConfigError)
    told = tsugi(str(paths.root), "--json")
    numbers = json.loads(told.stdout)
    assert (numbers["outcome"], len(numbers["rounds"])) == ("finished", 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.html", "run", "run.report.html"]


def test_a_long_run_is_drawn_in_few_points():
    curve = Curve()
    for number in range(10_001):
        curve.add(float(number), 2.0)
    assert Curve.LIMIT <= len(curve.points) <= 2 * Curve.LIMIT
    assert curve.points[-1][0] > 9_950
    assert {value for _, value in curve.points} == {2.0}


def test_an_empty_run_has_a_page():
    Parsed(page([RunFacts("run", "/runs/run")]))


def test_colours_stand_out_from_both_pages():
    papers = re.findall(r"--paper: (#\w+)", STYLE)
    assert len(papers) == 2
    for colour in COLOURS:
        for paper in papers:
            assert contrast(colour, paper) >= 3.0, (colour, paper)


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2; 3 is what graphics need."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
