"""Small files of the kinds that people have (tests/data): each trains as it was written, or is refused by line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tsugi_cli.config.compose import compose
from tsugi_cli.finetune import ready as readying
from tsugi_cli.finetune.ready import opened
from tsugi_kpool.errors import DataError

DATA = Path(__file__).parents[1] / "data"
PLAIN = ["alpaca", "asstfirst", "bom", "developer", "domain", "dups", "eosin", "longanswer", "multi", "nel"]
PLAIN += ["parts", "sharegpt", "sysfield", "system1", "text", "trl_conv_pc", "u2028", "weight0"]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """A cache of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def spec_of(name, *words):
    return compose(["model=tiny", f"data={DATA / name}.jsonl", "data.n_eval=8", *words])


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_read_is_trained_on(name):
    data = opened(spec_of(name))
    assert len(data.train) > 50
    assert all(data.train.tokens())
    train = {tuple(each.ids) for each in data.train}
    assert not train & {tuple(each.ids) for each in data.eval}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("all_empty", r"all_empty\.jsonl:1: the assistant's answer is empty"),
        ("surrogate", r"surrogate\.jsonl:51: .*half of a character"),
        ("tool_full", r'tool_full\.jsonl:1: "tools": the model\'s chat template shows none of it'),
        ("reasoning", r'reasoning\.jsonl:1: "reasoning_content": the model\'s chat template shows none of it'),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_line(name, said):
    with pytest.raises(DataError, match=said) as refused:
        opened(spec_of(name))
    assert len(str(refused.value).splitlines()) <= 6


def test_skipped_rows_are_listed_and_the_rest_is_trained_on():
    report = opened(spec_of("surrogate", "data.on_bad_row=skip")).facts.report
    assert (report["rows"]["refused"], report["rows"]["kept"]) == (1, 100)
    assert report["bad_rows"][0].startswith(f"{DATA / 'surrogate.jsonl'}:51: ")


HEAD = "{{ '<|start|>' + m['role'] + '\\n' }}"
TOOLS = (
    "{% if tools %}{{ '<|start|>system\\n' + tools | tojson + '<|end|>\\n' }}{% endif %}{% for m in messages %}"
    + HEAD
    + "{{ m['reasoning_content'] or '' }}{{ m['content'] or '' }}"
    "{% for c in m['tool_calls'] or [] %}{{ '<call>' + c['function'] | tojson }}{% endfor %}{{ '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)
FORGETS = (
    "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}"
    + HEAD
    + "{{ m['content'] }}{{ '<|end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    + HEAD
    + "{{ m['content'] }}{{ '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)


def first(name, template=None, *words):
    """What is trained in the first row's samples."""
    spec = spec_of(name, *words)
    found = readying.previewed(replace(spec, model=replace(spec.model, chat_template=template)), 1)["samples"]
    return ["".join(text for text, on in each["pieces"] if on) for each in found]


def test_a_bad_answer_is_context_and_a_quoted_stop_is_text():
    assert first("weight0") == ["Right answer.<|end|>"]
    assert first("eosin") == ["With the marker <|end|> and then a new line.<|end|>"]


@pytest.mark.parametrize("name", ["tool_single_empty", "tool_single_null", "tool_full"])
def test_a_tool_call_is_what_is_trained_and_its_result_is_not(name):
    (answer,) = first(name, TOOLS)
    assert answer.startswith("<call>{")
    assert "tool\n" not in answer


def test_reasoning_goes_to_a_template_that_has_a_place_for_it():
    (answer,) = first("reasoning", TOOLS)
    assert answer != first("reasoning", None, "data.ignore=[reasoning_content]")[0]


def test_a_template_that_rewrites_earlier_turns_gives_one_sample_for_each_answer():
    assert first("multi", FORGETS) == ["One to 0.<|end|>", "0 once more.<|end|>"]


def test_a_system_turn_that_a_template_refuses_is_named_by_line_or_folded_when_asked():
    spec = spec_of("system1")
    with pytest.raises(DataError, match=r"system1\.jsonl:\d+: .*System role not supported"):
        opened(replace(spec, model=replace(spec.model, chat_template=NO_SYSTEM)))
    spec = spec_of("system1", "data.fold_system=true")
    assert len(opened(replace(spec, model=replace(spec.model, chat_template=NO_SYSTEM))).train) == 92


def test_tokens_beyond_the_models_embedding_are_named_by_line_before_anything_trains(monkeypatch):
    monkeypatch.setattr(readying, "sizes", lambda model: (200, 2048))
    with pytest.raises(DataError, match=r"domain\.jsonl:1: .*200 rows"):
        opened(spec_of("domain", "data.seed=7"))
