"""Preference pairs: every usual shape says the same, and what is no pair is refused by file, line and the way out."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tsugi_cli.config.compose import compose
from tsugi_cli.data.rows import Row
from tsugi_cli.data.sources import BadRow, open_rows
from tsugi_cli.finetune.ready import kitchen_of, opened
from tsugi_cli.launch.data import check, preview
from tsugi_cli.launch.plan import make_plan
from tsugi_cli.record.answer import Answer
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.errors import ConfigError, DataError

ASKED, GOOD, BAD = "How are you?", "Fine, thank you.", "Go away."
USER = {"role": "user", "content": ASKED}
YES, NO = {"role": "assistant", "content": GOOD}, {"role": "assistant", "content": BAD}
DPO = "train.objective=dpo"


def write(folder: Path, records) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return f"data={path}"


def only(folder: Path, record, *words: str) -> Row | BadRow:
    data = compose(["model=tiny", write(folder, [record]), DPO, *words]).data
    (row,) = (row for shard in open_rows(data).whole for row in shard)
    return row


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": ASKED, "chosen": GOOD, "rejected": BAD}, []),
        ({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, []),
        ({"chosen": [USER, YES], "rejected": [USER, NO]}, []),
        ({"prompt": ASKED, "chosen": [USER, YES], "rejected": [USER, NO]}, []),
        ({"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]}, []),
        ({"prompt": [USER], "chosen": GOOD, "rejected": BAD}, []),
        ({"prompt": ASKED, "chosen": YES, "rejected": NO}, []),
        ({"prompt": json.dumps([USER]), "chosen": json.dumps([YES]), "rejected": json.dumps([NO])}, []),
        ({"chosen": [USER, YES], "rejected": [USER, NO], "messages": [USER, YES]}, []),
        ({"question": ASKED, "good": GOOD, "bad": BAD}, ["prompt=question", "chosen=good", "rejected=bad"]),
        ({"conversations": [{"from": "human", "value": ASKED}], "chosen": {"from": "gpt", "value": GOOD},
          "rejected": {"from": "gpt", "value": BAD}}, ["prompt=conversations"]),
    ],
)  # fmt: skip
def test_every_usual_shape_is_the_same_pair(tmp_path, record, words):
    row = only(tmp_path, record, *(f"data.columns.{each}" for each in words))
    assert isinstance(row, Row), row
    assert row.messages == (USER, YES)
    assert row.rejected is not None
    assert row.rejected.messages == (USER, NO)


def test_the_prompt_may_be_a_conversation_whose_answers_are_context(tmp_path):
    before = [{"role": "system", "content": "Be kind."}, USER, NO, USER]
    spec = compose(["model=tiny", write(tmp_path, [{"prompt": before, "chosen": [YES], "rejected": [NO]}]), DPO])
    row = only(tmp_path, {"prompt": before, "chosen": [YES], "rejected": [NO]})
    kitchen = kitchen_of(spec)
    chosen, rejected = kitchen.samples(row).samples
    texts = [[kitchen.decode(side.ids[slice(*span)]) for span in side.spans] for side in (chosen, rejected)]
    assert texts == [[GOOD + "<|end|>"], [BAD + "<|end|>"]]
    asked = chosen.spans[0][0]
    assert chosen.ids[:asked] == rejected.ids[:asked]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": ASKED, "completion": GOOD}, 'preference pairs, "chosen" and "rejected"; found prompt'),
        ({"prompt": ASKED, "completion": GOOD, "label": True}, "KTO) are not offered"),
        ({"chosen": GOOD, "rejected": BAD}, '"chosen" is a text without a "prompt"'),
        ({"prompt": ASKED, "chosen": GOOD, "rejected": GOOD}, "say the same: nothing is preferred"),
        ({"prompt": ASKED, "chosen": GOOD, "rejected": 3}, '"rejected" must be a text, a message or a list'),
        ({"prompt": 3, "chosen": GOOD, "rejected": BAD}, '"prompt" must be a text, or a list'),
        ({"prompt": ASKED, "chosen": GOOD, "rejected": ""}, "the assistant's answer is empty"),
        ({"chosen": [USER, YES], "rejected": [YES | {"content": "x"}]}, "they have no prompt in common"),
        ({"chosen": [USER, YES], "rejected": [USER, YES, USER, NO]}, '"chosen" has no answer of its own'),
        ({"prompt": [USER], "chosen": [YES | {"train": False}], "rejected": [NO]}, "means nothing in a preference"),
        ({"prompt": ASKED, "chosen": GOOD, "rejected": BAD, "score": 1}, '"score" would be lost'),
        ({"prompt": ASKED, "chosen": GOOD, "rejected": "\ud83d"}, "half of a character"),
        ({"prompt": ASKED, "chosen": [{"role": "user", "content": "x"}], "rejected": [NO]}, "last message must be"),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_named_with_the_way_out(tmp_path, record, said):
    row = only(tmp_path, record)
    assert isinstance(row, BadRow), row
    assert said in row.reason
    assert row.place.endswith("pairs.jsonl:1")


def test_pairs_are_not_trained_on_as_answers_by_mistake(tmp_path):
    spec = compose(["model=tiny", write(tmp_path, [{"prompt": ASKED, "chosen": GOOD, "rejected": BAD}])])
    (row,) = (row for shard in open_rows(spec.data).whole for row in shard)
    assert "are trained on with train.objective=dpo" in row.reason


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([DPO, "data.packing=true"], "data.packing=true cannot be used with train.objective=dpo"),
        ([DPO, "data.format=alpaca"], "found data.format=alpaca: take auto"),
        ([DPO, "data.train_on=last"], "data.train_on=last means nothing to train.objective=dpo"),
        ([DPO, "train.label_smoothing=0.1"], "train.dpo.loss_type=robust with train.dpo.label_smoothing"),
        ([DPO, "train.dpo.label_smoothing=0.1"], "is for train.dpo.loss_type=robust, found sigmoid"),
        ([DPO, "lora.init=pissa"], "it changes the base model, which is the reference"),
        ([DPO, "train.batch_tokens=1500"], "twice data.max_tokens=1024: a pair is two samples"),
        (["train.dpo.beta=0.2"], "train.dpo.beta is for train.objective=dpo, found train.objective=sft"),
        (["data.format=preference"], "data.format=preference is for train.objective=dpo"),
        (["train.objective=grpo"], "allowed: sft, dpo; reinforcement learning is not offered"),
        (["train.objective=reward"], "reward models are not offered"),
        (["train.objective=full"], "a LoRA is trained, never the whole model"),
        (["train.objective=dpoo"], "did you mean dpo?"),
        (["train.loss_type=ipo"], "here it is train.dpo.loss_type"),
    ],
)
def test_settings_that_do_not_go_with_pairs_are_refused_by_name(tmp_path, words, said):
    with pytest.raises(ConfigError) as raised:
        compose(["model=tiny", write(tmp_path, [{"prompt": ASKED, "chosen": GOOD, "rejected": BAD}]), *words])
    assert said in str(raised.value)


@pytest.fixture
def many(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    records = [
        {"prompt": f"Say {at}", "chosen": f"It is {at}." * (1 + at % 3), "rejected": "No."} for at in range(30)
    ]
    return ["model=tiny", write(tmp_path, records), DPO, "data.n_eval=4", "data.n_test=2"]


def test_prepared_pairs_stay_together_and_each_counts_the_same(many):
    data = opened(compose(many))
    assert (len(data.train), len(data.eval), len(data.test)) == (24, 4, 2)
    assert data.train.pairs
    assert len(set(data.train.tokens())) == 1
    assert sum(data.train.tokens()) == pytest.approx(data.facts.report["supervised_tokens"], rel=0.03)
    for rows in (data.train, data.eval):
        for pair in rows:
            assert len(pair.lengths) == 2
            assert len(pair.spans) == 2
    assert [2 * max(pair.lengths) for pair in data.train] == data.train.lengths()
    assert data.train.places(0)[0].endswith(":1") or data.train.places(0)[0].count(":") == 1


def test_a_mixture_of_pairs_keeps_both_sides(many, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(
        json.dumps({"prompt": f"O {at}", "chosen": "yes", "rejected": "never"}) + "\n" for at in range(10)
    ))  # fmt: skip
    words = ["model=tiny", f"data.mix=[{many[1].removeprefix('data=')}:0.5,{other}:0.5]", DPO, "data.n_eval=2"]
    data = opened(compose(words))
    chosen = [pair.members for pair in data.train]
    assert all(left % 2 == 0 and right == left + 1 for left, right in chosen)
    assert len(set(chosen)) < len(chosen)


def test_a_pair_that_truncation_makes_equal_is_dropped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    records = [{"prompt": f"{at}", "chosen": "y" * 300 + "a", "rejected": "y" * 300 + "b"} for at in range(3)]
    with pytest.raises(DataError, match="chosen and rejected are the same within"):
        opened(compose(["model=tiny", write(tmp_path, records), DPO, "data.max_tokens=128", "data.n_eval=0"]))


def test_check_preview_and_plan_speak_of_pairs(many, tmp_path):
    out = io.StringIO()
    assert check(many, True, Answer(out)) == 0
    assert "30 pairs: 24 train, 4 eval (data.n_eval), 2 test (data.n_test)" in out.getvalue()
    assert "first pair" in out.getvalue()
    assert "rejected: " in out.getvalue()
    assert "[[No.<|end|>" in out.getvalue()
    shown = io.StringIO()
    assert preview(many, 1, Answer(shown)) == 0
    assert "chosen: " in shown.getvalue()
    assert "rejected: " in shown.getvalue()
    spec = compose([*many, "train.dpo.loss_type=ipo"])
    plan = make_plan(spec, RunPaths(tmp_path / "run"), 24)
    assert plan.facts["objective"].startswith("DPO (ipo, beta 0.1) against the base model without the LoRA")
    assert plan.facts["data"].startswith("24 preference pairs")
    assert plan.hub.sample_tokens == 2 * spec.data.max_tokens
    assert replace(spec.train, objective="sft").step_samples == plan.hub.micro_batch
