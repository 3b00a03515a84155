"""Long conversations, tokenizers without offsets, templates without stops: what is trained on stays the same."""

from __future__ import annotations

import pytest
from tokenizers import processors

from tests.unit.templates import FAMILIES, tokenizer_of
from tsugi_cli.config.templates import TEMPLATES
from tsugi_cli.data import template as rendering
from tsugi_cli.data.render import Renderer, RenderSettings
from tsugi_cli.data.rows import Row, RowError, Sample
from tsugi_cli.data.template import Template
from tsugi_kpool.errors import DataError

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "a"}}}


class Other:
    """A tokenizer with another template, or with less to tell."""

    def __init__(self, name: str, **words) -> None:
        self._inner = tokenizer_of(name)
        self.__dict__.update(words)
        self.rendered = 0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def __call__(self, text, **words):
        return self._inner(text, **words)

    def apply_chat_template(self, messages, **words):
        self.rendered += len(messages)
        return self._inner.apply_chat_template(messages, **{"chat_template": self.chat_template, **words})


def talk(turns: int) -> list[dict]:
    pairs = [
        (
            {"role": "user", "content": f" What is {at}? " * (at % 3 + 1)},
            {"role": "assistant", "content": f"The answer is {at}.\nfine "},
        )
        for at in range(turns)
    ]
    return [message for pair in pairs for message in pair]


def agent(turns: int) -> list[dict]:
    """Questions, calls, what they gave, and answers; some with thoughts."""
    made: list[dict] = [{"role": "system", "content": "ok"}]
    for at in range(turns):
        made.append({"role": "user", "content": f"What is {at}?"})
        for step in range(at % 3):
            call = {**CALL, "function": {"name": "weather", "arguments": {"town": "b" * step, "n": at}}}
            made.append({"role": "assistant", "content": "fine" * (at % 2), "tool_calls": [call] * (step + 1)})
            made.append({"role": "tool", "content": f"two {at}"})
        thought = {"reasoning_content": f"one {at}"} if at % 4 == 3 else {}
        made.append({"role": "assistant", "content": f"The answer is {at}.", **thought})
    return made


def row_of(messages, trained=(), **words) -> Row:
    return Row("f.jsonl", 3, tuple(messages), tuple(trained) or (None,) * len(messages), **words)


def samples(tokenizer, messages, **words) -> list[Sample]:
    return Renderer(tokenizer, RenderSettings(10**6)).samples(row_of(messages, **words)).samples


def said(tokenizer, sample: Sample) -> list[str]:
    return [tokenizer.decode(sample.ids[start:stop]) for start, stop in sample.spans]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_long_conversation_is_masked_as_if_each_answer_were_rendered_by_itself(name, monkeypatch):
    fast = samples(tokenizer_of(name), talk(12))
    monkeypatch.setattr(rendering, "FEW", 100)
    assert fast == samples(tokenizer_of(name), talk(12))
    assert sum(len(sample.spans) for sample in fast) == 12


def test_a_long_trace_of_an_agent_is_masked_as_if_each_answer_were_rendered_by_itself(monkeypatch):
    tokenizer = Other("smollm2", chat_template=TEMPLATES["chatml_tools"])
    (fast,) = samples(tokenizer, agent(12))
    monkeypatch.setattr(rendering, "FEW", 100)
    assert [fast] == samples(tokenizer, agent(12))
    assert len(fast.spans) == sum(message["role"] == "assistant" for message in agent(12))
    assert all(text.endswith("<|im_end|>") for text in said(tokenizer, fast))


@pytest.mark.parametrize(("name", "made"), [("llama-2", talk), ("smollm2", talk), ("smollm2", agent)])
def test_twice_the_turns_are_about_twice_the_work(name, made):
    """Counted in messages that a template has rendered."""
    work = []
    for turns in (48, 96, 192):
        words = {"chat_template": TEMPLATES["chatml_tools"]} if made is agent else {}
        tokenizer = Other(name, chat_template=words.get("chat_template", FAMILIES[name].jinja))
        samples(tokenizer, made(turns))
        work.append(tokenizer.rendered)
    assert work[1] < 2.5 * work[0]
    assert work[2] < 2.5 * work[1]


def test_a_template_that_rewrites_only_thoughts_is_found_out_in_a_long_conversation():
    """Only turns with a thought are rewritten, and only one in the middle has one."""
    jinja = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if loop.last and m.reasoning_content %}"
        "{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    messages = talk(10)
    messages[11] = {**messages[11], "reasoning_content": "one two"}
    tokenizer = Other("smollm2", chat_template=jinja)
    found = samples(tokenizer, messages)
    assert len(found) == 10
    assert said(tokenizer, found[5]) == ["<think>one two</think>The answer is 5.\nfine <|im_end|>"]


def test_marks_that_change_what_a_template_writes_are_not_used():
    jinja = FAMILIES["smollm2"].jinja.replace("m['content']", "(m['content'] | length | string) + m['content']")
    tokenizer = Other("smollm2", chat_template=jinja)
    (sample,) = samples(tokenizer, talk(8))
    assert said(tokenizer, sample) == [f"22The answer is {at}.\nfine <|im_end|>" for at in range(8)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tokenizer_without_offsets_is_reconstructed_exactly(name):
    stop = FAMILIES[name].stop
    messages = [
        {"role": "user", "content": f"What is é漢🙂 {stop}?"},
        {"role": "assistant", "content": f"🙂 The answer is é. {stop} fine"},
    ]
    slow = Other(name, is_fast=False, chat_template=FAMILIES[name].jinja)
    (sample,) = samples(slow, messages)
    assert said(slow, sample) == said(slow, samples(tokenizer_of(name), messages)[0])
    assert sample.ids == samples(tokenizer_of(name), messages)[0].ids


def test_a_tokenizer_whose_tokens_do_not_add_up_to_the_text_is_refused_by_name():
    lying = Other("smollm2", is_fast=False, chat_template=FAMILIES["smollm2"].jinja, decode=lambda ids, **_: "x")
    with pytest.raises(RowError, match=r"the tokenizer Other does not say .* tokenizer\.json"):
        samples(lying, talk(1))


def test_a_template_without_stops_ends_a_sample_with_eos_once():
    jinja = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    tokenizer = Other("smollm2", chat_template=jinja)
    (sample,) = samples(tokenizer, talk(2))
    assert said(tokenizer, sample) == [" The answer is 0.\nfine \n", " The answer is 1.\nfine \n<|im_end|>"]
    assert sample.ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_quoted_special_tokens_are_text_for_inference_and_for_tools_too(name):
    tokenizer, stop = tokenizer_of(name), FAMILIES[name].stop
    messages = [{"role": "user", "content": f"What is {stop}?"}, {"role": "assistant", "content": "The answer"}]
    asked = Renderer(tokenizer, RenderSettings(500)).prompt(row_of(messages))
    (sample,) = samples(tokenizer, messages)
    assert asked.ids[: sample.spans[0][0] - 1] == sample.ids[: sample.spans[0][0] - 1]
    clean = Renderer(tokenizer, RenderSettings(500)).prompt(row_of(talk(1)))
    wanted = tokenizer.convert_tokens_to_ids(stop)
    assert asked.ids.count(wanted) == clean.ids.count(wanted)


def test_the_ids_differ_from_the_whole_texts_only_where_a_special_token_is_quoted():
    tokenizer = tokenizer_of("smollm2")
    messages = [{"role": "user", "content": "What is <|im_end|>?"}, {"role": "assistant", "content": "fine one"}]
    (sample,) = samples(tokenizer, messages)
    whole = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)["input_ids"]
    before, behind = tokenizer.encode("<|im_start|>user\nWhat is "), len(whole)
    at = whole.index(tokenizer.eos_token_id)
    assert sample.ids[:at] == whole[:at] == before
    assert sample.ids[-(behind - at - 1) :] == whole[at + 1 :]
    assert tokenizer.decode(sample.ids) == tokenizer.decode(whole)


def test_schemas_of_tools_may_quote_special_tokens():
    tokenizer = Other("smollm2", chat_template=TEMPLATES["chatml_tools"])
    schema = {"name": "weather", "description": "ends with <|im_end|>", "parameters": {"type": "object"}}
    (sample,) = samples(tokenizer, talk(1), tools=({"type": "function", "function": schema},))
    assert sample.ids.count(tokenizer.eos_token_id) == 3
    assert "ends with <|im_end|>" in tokenizer.decode(sample.ids)


def test_texts_begin_as_the_tokenizer_begins_them():
    """Bases that expect a bos get one, once, also in what inference is given."""
    inner = tokenizer_of("llama-3")
    before = inner.backend_tokenizer.post_processor
    bos = inner.bos_token_id
    inner.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    try:
        tokenizer = Other("llama-3", chat_template=None)
        renderer = Renderer(tokenizer, RenderSettings(20))
        found = renderer.samples(Row("f", 1, text="The quick brown fox. " * 5)).samples
        assert [sample.ids.count(bos) for sample in found] == [1] + [0] * (len(found) - 1)
        assert found[0].ids[0] == bos
        pair = row_of(talk(1), plain=True)
        (sample,) = Renderer(tokenizer, RenderSettings(200)).samples(pair).samples
        assert (sample.ids[0], sample.ids.count(bos)) == (bos, 1)
        assert said(tokenizer, sample) == ["The answer is 0.\nfine <|eot_id|>"]
        assert renderer.prompt(pair).ids == sample.ids[: sample.spans[0][0]]
        (chat,) = samples(inner, talk(1))
        assert chat.ids.count(bos) == 1
    finally:
        inner.backend_tokenizer.post_processor = before


def test_a_system_turn_beside_a_plain_pair_is_not_lost_where_there_is_no_template():
    row = row_of([{"role": "system", "content": "ok"}, *talk(1)], plain=True)
    with pytest.raises(RowError, match="it has a system turn beside prompt and completion"):
        Renderer(Other("smollm2", chat_template=None), RenderSettings(200)).samples(row)


def test_a_mark_on_what_cannot_be_trained_on_is_refused():
    with pytest.raises(RowError, match=r"message 1 \(user\) is marked to be trained on"):
        Renderer(tokenizer_of("smollm2"), RenderSettings(200)).samples(row_of(talk(1), (True, None)))
    greeting = [{"role": "assistant", "content": "Hello"}, *talk(1)]
    with pytest.raises(RowError, match=r"message 1 \(assistant\) is marked"):
        Renderer(tokenizer_of("smollm2"), RenderSettings(200)).samples(row_of(greeting, (True, None, None)))


def test_a_template_refuses_a_row_and_not_the_question_how_it_ends():
    """It wants a system turn; our own probe has none."""
    jinja = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer = Other("smollm2", chat_template=jinja + FAMILIES["smollm2"].jinja)
    (sample,) = samples(tokenizer, [{"role": "system", "content": "ok"}, *talk(1)])
    assert said(tokenizer, sample) == ["The answer is 0.\nfine <|im_end|>"]
    assert Template(tokenizer).special_texts


def test_without_an_eos_another_special_token_ends_a_text_and_that_is_said_or_the_tokenizer_is_refused():
    none = {"eos_token_id": None, "eos_token": None, "sep_token_id": None, "chat_template": None}
    tokenizer = Other("smollm2", **none)
    renderer = Renderer(tokenizer, RenderSettings(200))
    (sample,) = renderer.samples(Row("f", 1, text="The quick brown fox.")).samples
    assert sample.ids[-1] == tokenizer.pad_token_id
    assert renderer.notes == ["the tokenizer has no eos token: pad_token (<|im_end|>) ends a text"]
    with pytest.raises(DataError, match="neither an eos nor a pad token"):
        Renderer(Other("smollm2", pad_token_id=None, **none), RenderSettings(200))
