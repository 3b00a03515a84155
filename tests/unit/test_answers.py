"""Answers before and after, for any data: counted with a scorer, shown without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsugi_cli.config.compose import compose
from tsugi_cli.finetune.evaluate import Evaluator
from tsugi_cli.finetune.model import load
from tsugi_cli.finetune.ready import opened
from tsugi_cli.launch.summary import _examples
from tsugi_kpool.core.messages import Evaluated

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize(
    ("words", "answered"),
    [
        ([], 3),
        (["evaluate.examples=1"], 1),
        (["evaluate.examples=0"], 0),
        (["data.n_test=2"], 2),
    ],
)
def test_without_a_scorer_some_held_out_requests_are_answered(words, answered, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fixed = ["model=tiny", f"data={DATA / 'multi.jsonl'}", "data.n_eval=6", "evaluate.max_new_tokens=2"]
    spec = compose([*fixed, "topology.replicas=1", "topology.min_replicas=1", *words])
    model, tokenizer = load(spec.model)
    found = Evaluator(spec, opened(spec), tokenizer, 0).run(model, "base", stop=lambda: False)
    assert len(found.examples) == answered
    assert all(asked and expected for asked, expected, _ in found.examples)


def test_plain_texts_ask_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = compose(["model=tiny", f"data={DATA / 'text.jsonl'}", "data.n_eval=6", "topology.replicas=1"])
    model, tokenizer = load(spec.model)
    assert Evaluator(spec, opened(spec), tokenizer, 0).run(model, "base", stop=lambda: False).examples == ()


def test_replicas_take_turns_in_what_is_shown():
    def shares(stage: str, answers: dict[int, list[str]]) -> list[Evaluated]:
        return [
            Evaluated(
                0, replica, "", stage, {}, tuple((f"asked {text}", "expected", f"{stage} {text}") for text in own)
            )
            for replica, own in answers.items()
        ]

    answers = {0: ["a", "c"], 1: ["b"]}
    found = _examples({name: shares(name, answers) for name in ("base", "trained")}, 2)
    assert [(each["base"], each["trained"]) for each in found] == [("base a", "trained a"), ("base b", "trained b")]
    assert _examples({"base": shares("base", answers)}, 2) == []
