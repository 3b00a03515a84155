"""The end screen."""

from __future__ import annotations

import ast
import sys
from types import SimpleNamespace

import pytest

from tests.pictures import SUMMARY, Tty, drawn, xterm
from tsugi_cli.console.live import LiveConsole
from tsugi_cli.console.plain import PlainConsole
from tsugi_cli.console.report import report
from tsugi_cli.launch.summary import adapter_at

__all__ = ["xterm"]


def test_report_compares_base_and_trained() -> None:
    text = "\n".join(drawn(report(SUMMARY)))
    for part in (
        "finished", "eval loss", "2.412", "0.312", "▼ 87%", "3.1%", "100.0%", "▲ 96.9 points", "Wake me",
        "Sorry", "wall time 4:03", "448", "58.1k", "42", "231 tok/s", "goodput 99%", "46.5k", "80%",
        "runs/tools/adapter", "from peft import PeftModel",
    ):  # fmt: skip
        assert part in text, part


def test_perplexity_falls_and_accuracy_rises_for_the_better() -> None:
    evaluation = {
        "base": {"loss": 2.0, "perplexity": 7.389, "token_accuracy": 0.5},
        "trained": {"loss": 1.0, "perplexity": 2.718, "token_accuracy": 0.75},
    }
    text = "\n".join(drawn(report({**SUMMARY, "evaluation": evaluation})))
    for part in ("eval loss", "perplexity", "7.389", "2.718", "▼ 63%", "token accuracy", "75.0%", "▲ 25.0 points"):
        assert part in text, part


def test_report_counts_what_was_left_out() -> None:
    text = "\n".join(drawn(report({**SUMMARY, "skipped": ["mine.jsonl:7 (sample 3)", "mine.jsonl:9 (sample 5)"]})))
    assert "left out 2 without a finite loss" in text
    assert "left out" not in "\n".join(drawn(report({**SUMMARY, "skipped": []})))


@pytest.mark.parametrize("missing", [*SUMMARY, None])
def test_report_leaves_out_what_is_missing(missing: str | None) -> None:
    summary = {} if missing is None else {k: v for k, v in SUMMARY.items() if k != missing}
    assert drawn(report(summary))
    assert drawn(report({**summary, str(missing): None}))


def test_what_loads_the_adapter_is_python_whatever_the_width() -> None:
    path, model = "/a/rather/long/path's" * 5, "org/model" * 9
    lines = drawn(report({"adapter": path, "model": model}), 40)
    tree = ast.parse("\n".join(lines[lines.index("from peft import PeftModel") :]))
    paths = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert sorted(paths) == [path, model]


@pytest.mark.parametrize("make", [LiveConsole, PlainConsole])
def test_what_loads_the_adapter_can_be_copied_and_run(make, xterm: pytest.MonkeyPatch) -> None:
    xterm.setenv("COLUMNS", "40")
    xterm.setenv("NO_COLOR", "1")
    loaded: list[tuple[object, ...]] = []
    load = SimpleNamespace(from_pretrained=lambda *given: loaded.append(given))
    xterm.setitem(sys.modules, "peft", SimpleNamespace(PeftModel=load))
    xterm.setitem(sys.modules, "transformers", SimpleNamespace(AutoModelForCausalLM=load))
    out, model, adapter = Tty(), "/a model/it's here" * 9, "/runs/\x1b[31m/adapter" * 9
    make(out).report({"model": model, "adapter": adapter})
    exec(out.getvalue()[out.getvalue().index("from peft") :], {})
    assert loaded == [(model,), (None, adapter)]


def test_without_the_model_there_is_nothing_to_copy() -> None:
    text = "\n".join(drawn(report({**SUMMARY, "model": None})))
    assert "runs/tools/adapter" in text
    assert "from_pretrained" not in text


def test_report_of_an_interrupted_run() -> None:
    partial = {"outcome": "interrupted", "evaluation": {"base": {"loss": 2.4}}, "examples": [{"base": ""}]}
    text = "\n".join(drawn(report(partial)))
    assert "interrupted" in text
    assert "2.400" in text
    assert "–" in text
    assert "(nothing)" in text


def test_report_clips_what_goes_on_for_ever_and_counts_the_fast_ones() -> None:
    replicas = [{"replica": i, "tokens_per_s": 100.0 + i} for i in range(40)]
    summary = {"examples": [{"base": "bla " * 1000}], "replicas": replicas}
    lines = drawn(report(summary))
    assert len(lines) < 40
    assert any("and 24 faster ones" in line for line in lines)


def test_a_machine_that_ends_without_an_adapter_says_so_and_who_has_it() -> None:
    """A hub whose machine trains no replica, or whose replica has died."""
    there = {**SUMMARY, "adapter": None, "adapter_at": ["replica 1 (node-b)", "replica 2 (node-c)"]}
    text = " ".join(" ".join(drawn(report(there))).split())
    assert "no adapter on this machine" in text
    assert "replica 1 (node-b), replica 2 (node-c): it lies in the run directory there" in text
    nowhere = "\n".join(drawn(report({**SUMMARY, "adapter": None})))
    assert "no replica has ended with one" in nowhere


def test_who_has_an_adapter_is_who_has_ended_with_the_fleets_anchors() -> None:
    def member(replica: int, **facts) -> SimpleNamespace:
        return SimpleNamespace(hello=SimpleNamespace(replica=replica, host=f"node-{replica}"), **facts)

    members = [
        member(0, gone=False, formed=True),
        member(1, gone=True, formed=True),
        member(2, gone=True, formed=False),
    ]
    assert adapter_at(SimpleNamespace(members=dict(enumerate(members)))) == ["replica 1 (node-1)"]
