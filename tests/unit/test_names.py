"""The words of other tools are answered with ours; `lora.from` is written as PEFT's users would."""

from __future__ import annotations

import re

import pytest

from tests.unit.test_compose import mistake, mistakes
from tsugi_cli.config import names, overrides, schema
from tsugi_cli.config.compose import compose

TINY = ("model=tiny",)


@pytest.mark.parametrize("word", names.HUGGING_FACE)
def test_another_tools_name_is_answered_with_a_setting_that_there_is(word):
    answer = names.HUGGING_FACE[word]
    key = re.match(r"[\w.]+", answer)[0]
    known = {*schema.leaf_types(), *names.SPELLED, *overrides.group_options(), "resume"}
    assert key in known, answer
    ways = {each: None for each in (word, f"train.{word}", word.upper()) if each not in known}
    found = mistakes(*TINY, *(f"{each}=1" for each in ways))
    assert len(found) == len(ways)
    for typed, problem in zip(ways, found, strict=True):
        assert problem.startswith(f"{typed}: ")
        assert answer in problem


def test_the_line_for_another_tools_name():
    assert mistake(*TINY, "train.learning_rate=1") == "train.learning_rate: no such key; here it is train.lr"


def test_a_list_of_layers_is_numbers():
    assert compose([*TINY, "lora.layers=0,1"]).lora.layers == [0, 1]
    assert mistake(*TINY, "lora.layers=first") == "lora.layers: expected int, found 'first'"


def test_an_adapter_to_begin_with_is_named_on_the_command_line_and_in_a_recipe(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"defaults: [config, override model: tiny, _self_]\nlora: {{from: {tmp_path}/none}}\n")
    for words in (("model=tiny", f"lora.from={tmp_path}/none"), (f"recipe={mine}",)):
        assert mistake(*words).startswith("lora.from: no such directory")
