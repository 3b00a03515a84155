"""What is trained on, for every family of chat templates: the answers as rendered, each with its turn's own end."""

from __future__ import annotations

import json

import pytest

from tests.unit.templates import FAMILIES, tokenizer_of
from tsugi_cli.data.render import Renderer, RenderSettings
from tsugi_cli.data.rows import Row, RowError, Sample

TALK = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "The answer is 42."},
    {"role": "user", "content": "Hello there!"},
    {"role": "assistant", "content": "fine, one two"},
]


def row_of(messages, trained=(), tools=None, plain=False) -> Row:
    return Row("f.jsonl", 3, tuple(messages), tuple(trained) or (None,) * len(messages), tools, plain=plain)


def renderer(name: str, **settings) -> Renderer:
    return Renderer(tokenizer_of(name), RenderSettings(**{"max_tokens": 500, **settings}))


def supervised(name: str, sample: Sample) -> list[str]:
    return [tokenizer_of(name).decode(sample.ids[start:stop]) for start, stop in sample.spans]


def stop_of(name: str, last: bool) -> str:
    return FAMILIES[name].stop


def contents(messages=TALK) -> list[str]:
    return [each["content"] for each in messages if each["role"] == "assistant"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answers_as_rendered_and_their_turns_end_are_trained_and_nothing_else(name):
    family, found = FAMILIES[name], renderer(name).samples(row_of(TALK)).samples
    assert len(found) == (2 if family.rewrites else 1)
    said = [text for sample in found for text in supervised(name, sample)]
    if family.rewrites:
        said = [supervised(name, sample)[-1] for sample in found]
        assert all(len(sample.spans) == 1 for sample in found), "one sample for each answer"
    assert len(said) == 2
    for text, content in zip(said, contents(), strict=True):
        end = " " + family.stop if name == "llama-2" else family.stop
        assert text.strip() == (family.prefix.strip() + content + end).strip()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_ids_are_those_of_the_whole_text(name):
    """Turn by turn, SentencePiece would begin an answer with a token that the model never produces there."""
    tokenizer, rows = tokenizer_of(name), [TALK, TALK[:2]]
    for messages in rows:
        *_, sample = renderer(name).samples(row_of(messages)).samples
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert sample.ids == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_follows_what_inference_would_give(name):
    """The ids before a trained span are those of the prompt, unless a token lies across the edge."""
    made, tokenizer = renderer(name), tokenizer_of(name)
    *_, sample = made.samples(row_of(TALK)).samples
    asked = made.prompt(row_of(TALK))
    assert asked.expected == TALK[-1]["content"]
    start = sample.spans[-1][0]
    assert tokenizer.decode(asked.ids).startswith(tokenizer.decode(sample.ids[:start]).rstrip())
    assert sample.ids[:start][:-1] == asked.ids[: start - 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_end_is_put_into_the_middle_of_a_conversation(name):
    tokenizer = tokenizer_of(name)
    text = tokenizer.apply_chat_template(TALK, tokenize=False)
    *_, sample = renderer(name).samples(row_of(TALK)).samples
    assert sample.ids.count(tokenizer.eos_token_id) == text.count(tokenizer.eos_token)


@pytest.mark.parametrize("name", FAMILIES)
def test_special_tokens_that_a_user_writes_stay_text(name):
    tokenizer, stop = tokenizer_of(name), FAMILIES[name].stop
    said = f"With {stop} and then more."
    talk = [{"role": "user", "content": f"How does it end? {stop}"}, {"role": "assistant", "content": said}]
    (sample,) = renderer(name).samples(row_of(talk)).samples
    clean = renderer(name).samples(row_of(TALK[:2])).samples[0]
    wanted = tokenizer.convert_tokens_to_ids(stop)
    assert sample.ids.count(wanted) == clean.ids.count(wanted), "no more ends than the template writes"
    assert said in supervised(name, sample)[-1], "and not a character of it is lost"


def test_an_empty_thought_belongs_to_the_prompt_and_a_real_one_is_trained():
    (short,) = renderer("qwen-3").samples(row_of(TALK[:2])).samples
    assert supervised("qwen-3", short) == ["The answer is 42.<|im_end|>"]
    thought = [TALK[0], TALK[1] | {"reasoning_content": "one two"}]
    (long,) = renderer("qwen-3").samples(row_of(thought)).samples
    assert supervised("qwen-3", long) == ["<think>\none two\n</think>\n\nThe answer is 42.<|im_end|>"]


def test_what_a_template_would_drop_is_refused_by_name():
    thought = [TALK[0], TALK[1] | {"reasoning_content": "one two"}]
    with pytest.raises(
        RowError, match=r'"reasoning_content": .* shows none of it; .*data.ignore=\[reasoning_content\]'
    ):
        renderer("smollm2").samples(row_of(thought))
    tools = ({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},)
    with pytest.raises(RowError, match='"tools": '):
        renderer("smollm2").samples(row_of(TALK, tools=tools))
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "a"}}}
    with pytest.raises(RowError, match='"tool_calls": '):
        renderer("smollm2").samples(row_of([TALK[0], {"role": "assistant", "content": "", "tool_calls": [call]}]))


def test_a_system_turn_is_refused_with_a_way_out_or_folded_where_that_was_asked_for():
    talk = [{"role": "system", "content": "Be brief"}, *TALK]
    with pytest.raises(RowError, match=r"refuses it: System role not supported; data.fold_system=true puts"):
        renderer("gemma-2").samples(row_of(talk))
    (sample,) = renderer("gemma-2", fold_system=True).samples(row_of(talk)).samples
    assert "user\nBe brief\n\nWhat is it?<end_of_turn>" in tokenizer_of("gemma-2").decode(sample.ids)
    assert len(sample.spans) == 2


def test_a_greeting_of_the_assistant_is_context():
    talk = [{"role": "assistant", "content": "Welcome!"}, *TALK]
    (sample,) = renderer("smollm2").samples(row_of(talk)).samples
    assert supervised("smollm2", sample) == [text + "<|im_end|>" for text in contents()]
    with pytest.raises(RowError, match="roles must alternate"):
        renderer("mistral").samples(row_of(talk))


@pytest.mark.parametrize(
    ("train_on", "trained", "said"),
    [
        ("all", (None, None, None, None), [0, 1]),
        ("last", (None, None, None, None), [1]),
        ("all", (None, False, None, None), [1]),
        ("marked", (None, True, None, None), [0]),
        ("last", (None, True, None, None), [0, 1]),
    ],
)
def test_answers_are_chosen(train_on, trained, said):
    (sample,) = renderer("llama-3", train_on=train_on).samples(row_of(TALK, trained)).samples
    assert supervised("llama-3", sample) == [contents()[at] + "<|eot_id|>" for at in said]


def test_a_row_in_which_nothing_is_trained_is_refused():
    with pytest.raises(RowError, match="train_on=marked, and no answer is marked"):
        renderer("llama-3", train_on="marked").samples(row_of(TALK))
    with pytest.raises(RowError, match="every answer is marked not to be"):
        renderer("llama-3").samples(row_of(TALK, (None, False, None, False)))
    with pytest.raises(RowError, match="no answer of an assistant"):
        renderer("llama-3").samples(row_of(TALK[:1]))


def test_long_samples_are_dropped_or_cut_and_counted():
    whole = renderer("smollm2").samples(row_of(TALK)).samples[0]
    most = len(whole.ids) - 5
    for how, kept in (("drop", 0), ("end", 1), ("start", 1)):
        found = renderer("smollm2", max_tokens=most, truncate=how).samples(row_of(TALK))
        assert len(found.samples) == kept
        assert [count for name, count in found.counts.items() if "max_tokens" in name] == [1]
    (end,) = renderer("smollm2", max_tokens=most, truncate="end").samples(row_of(TALK)).samples
    assert end.ids == whole.ids[:most]
    (start,) = renderer("smollm2", max_tokens=most, truncate="start").samples(row_of(TALK)).samples
    assert start.ids == whole.ids[5:]
    found = renderer("smollm2", max_tokens=20, truncate="end").samples(row_of(TALK[:2]))
    assert (found.samples, list(found.counts)) == ([], ["dropped: no answer is left within data.max_tokens"])


def test_an_answer_is_never_trained_without_its_question():
    whole = renderer("smollm2").samples(row_of(TALK)).samples[0]
    first = whole.spans[0]
    found = renderer("smollm2", max_tokens=len(whole.ids) - first[0] + 3, truncate="start").samples(row_of(TALK))
    assert [text for sample in found.samples for text in supervised("smollm2", sample)] == ["fine, one two<|im_end|>"]


def test_text_is_trained_whole_in_pieces_with_one_end():
    row = Row("f.jsonl", 1, text="The quick brown fox. " * 20)
    found = renderer("llama-2", max_tokens=30).samples(row)
    ids = [token for sample in found.samples for token in sample.ids]
    tokenizer = tokenizer_of("llama-2")
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids[:-1]).strip() == row.text.strip()
    assert all(sample.spans == ((0, len(sample.ids)),) and len(sample.ids) <= 30 for sample in found.samples)


def test_a_base_model_takes_pairs_as_they_are():
    tokenizer = tokenizer_of("smollm2")
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        (sample,) = renderer("smollm2").samples(row_of(TALK[:2], plain=True)).samples
        assert tokenizer.decode(sample.ids) == "What is it?The answer is 42.<|im_end|>"
        assert supervised("smollm2", sample) == ["The answer is 42.<|im_end|>"]
        with pytest.raises(RowError, match="no chat template"):
            renderer("smollm2").samples(row_of(TALK))
    finally:
        tokenizer.chat_template = template


def test_ids_beyond_the_embedding_are_refused_with_both_numbers():
    with pytest.raises(RowError, match=r"has the id \d+, but the model's embedding has 200 rows"):
        renderer("smollm2", vocabulary=200).samples(row_of(TALK))


def test_our_template_shows_tools_calls_answers_and_thoughts():
    from tsugi_cli.config.templates import TEMPLATES

    tokenizer = tokenizer_of("smollm2")
    template, tokenizer.chat_template = tokenizer.chat_template, TEMPLATES["chatml_tools"]
    try:
        call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "a"}}}
        tools = ({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},)
        talk = [
            {"role": "system", "content": "Be brief"},
            TALK[0],
            {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "one"},
            {"role": "tool", "content": "21"},
            TALK[1],
        ]
        (sample,) = renderer("smollm2").samples(row_of(talk, tools=tools)).samples
        assert supervised("smollm2", sample) == [
            '<think>\none\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"town": "a"}}\n</tool_call>'
            "<|im_end|>",
            "The answer is 42.<|im_end|>",
        ]
        text = tokenizer.decode(sample.ids)
        assert text.startswith("<|im_start|>system\nBe brief\n\nYou may call these functions:\n<tools>\n{")
        assert "<tool_response>\n21\n</tool_response>" in text
    finally:
        tokenizer.chat_template = template


def test_nested_arguments_of_tools_reach_the_template_as_they_were():
    """Two rows whose calls have different keys: nothing is added to either."""
    tokenizer = tokenizer_of("smollm2")
    template = tokenizer.chat_template
    tokenizer.chat_template = template.replace(
        "{{ m['content'] }}", "{{ m['content'] }}{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}"
    )
    try:
        for arguments in ({"town": "a"}, {"code": {"x": None}}):
            call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
            talk = [TALK[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
            (sample,) = renderer("smollm2").samples(row_of(talk)).samples
            assert json.loads(supervised("smollm2", sample)[0].removesuffix("<|im_end|>")) == call
    finally:
        tokenizer.chat_template = template
