"""What people are used to type elsewhere works, or the line names the way out."""

from __future__ import annotations

import json

import pytest

from tsugi_cli.config.compose import compose
from tsugi_cli.ending import refuse_dashes, refuse_run_as_word
from tsugi_kpool.errors import ConfigError

ROWS = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(40)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the same rows in several files."""
    monkeypatch.chdir(tmp_path)
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    for name in ("mine.jsonl", "two words.jsonl", "folder/mine.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "bom.jsonl").write_text(text, encoding="utf-8-sig")
    (tmp_path / "mine.csv").write_text("prompt,completion\n" + "q,a\n" * 40, encoding="utf-8")
    (tmp_path / "mine.yaml").write_text("\ufefftrain:\n  lr: 5.0e-4\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("token", "path"),
    [
        ("data='two words.jsonl'", "two words.jsonl"),
        ('data="mine.jsonl"', "mine.jsonl"),
        ("data.path='two words.jsonl'", "two words.jsonl"),
        ("data=bom.jsonl", "bom.jsonl"),
        ("data=folder", "folder"),
        ("data=mine.csv", "mine.csv"),
    ],
)
def test_a_quoted_path_a_folder_a_csv_and_a_mark_at_the_beginning_are_read(place, token, path):
    group = ["data=jsonl"] if token.startswith("data.path") else []
    assert compose(["model=tiny", *group, token]).data.path == path


def test_a_file_whose_name_has_quotes_is_the_one_that_is_meant(place):
    (place / "'mine.jsonl'").write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    assert compose(["model=tiny", "data='mine.jsonl'"]).data.path == "'mine.jsonl'"


def test_a_recipe_with_a_mark_at_the_beginning_is_read(place):
    assert compose(["model=tiny", "recipe='mine.yaml'"]).train.lr == 5e-4


@pytest.mark.parametrize(
    ("token", "value"),
    [("yes", True), ("On", True), ("NO", False), ("off", False), ("True", True), ("false", False)],
)
def test_a_switch_takes_yaml_s_words(token, value):
    assert compose(["model=tiny", f"data.packing={token}"]).data.packing is value


def test_none_is_null_where_it_can_mean_nothing_else():
    assert compose(["model=tiny", "train.max_steps=None"]).train.max_steps is None
    assert compose(["model=tiny", "train.max_steps=none"]).train.max_steps is None
    assert compose(["model=tiny", "model.chat_template=None"]).model.chat_template is None
    assert compose(["model=tiny", "model.quantize=none"]).model.quantize == "none"
    with pytest.raises(ConfigError, match="expected true or false, found 'perhaps'"):
        compose(["model=tiny", "data.packing=perhaps"])


@pytest.mark.parametrize(
    ("words", "way"),
    [
        ("finetune --config my.yaml", "recipe=my.yaml"),
        ("--config=my.yaml finetune", "recipe=my.yaml"),
        ("finetune -c my.yaml", "recipe=my.yaml"),
        ("finetune --model tiny", "model=tiny"),
        ("finetune --data=mine.jsonl", "data=mine.jsonl"),
        ("finetune --learning-rate 1e-3", "train.lr"),
        ("finetune --lora_r=16", "lora.rank"),
        ("finetune --train.lr=1e-3", "train.lr=1e-3"),
    ],
)
def test_an_option_of_another_tool_is_answered_with_ours(words, way):
    with pytest.raises(ConfigError, match=rf"{way}"):
        refuse_dashes(words.split())


def test_a_run_that_eval_is_given_as_a_word_is_answered_with_its_option(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match=f"--run {tmp_path}"):
        refuse_run_as_word(["eval", "--json", str(tmp_path), "data=mine.jsonl"])
    refuse_run_as_word(["eval", "--run", str(tmp_path), "data=mine.jsonl"])
    refuse_run_as_word(["report", str(tmp_path)])


def test_what_is_an_option_of_ours_is_left_alone():
    refuse_dashes(["finetune", "model=tiny", "--dry-run", "--plain", "--json"])
    refuse_dashes(["generate", "--", "--model tiny"])


@pytest.mark.parametrize(("word", "way"), [("my.yaml", "recipe=my.yaml"), ("mine.jsonl", "data=mine.jsonl")])
def test_a_file_alone_is_answered_with_its_key(word, way):
    with pytest.raises(ConfigError, match=rf"did you mean {way}\?"):
        compose([word])
