"""The recipes' data: held-out splits really are held out, and every answer is one a tool would accept."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from tsugi_cli.recipes import docstrings_data, tools_data
from tsugi_cli.recipes.tools_catalog import TOOLS
from tsugi_cli.recipes.tools_data import POOLS, SPLITS, Argument, Conversation, Value

PAIRS_OF_SPLITS = [("train", "eval"), ("train", "test"), ("eval", "test")]
CLOSED = ("bool", "enum")
BY_NAME = {tool.name: tool for tool in TOOLS}
TYPES: dict[str, type] = {
    "str": str,
    "enum": str,
    "time": str,
    "date": str,
    "int": int,
    "float": float,
    "bool": bool,
}
SHAPES = {"time": r"([01]\d|2[0-3]):[0-5]\d", "date": r"(0[1-9]|1[0-2])-([0-2]\d|3[01])"}


@pytest.fixture(scope="module")
def built() -> dict[str, list[Conversation]]:
    return tools_data.build(0, 480, 80, 120)


def requests(conversations: list[Conversation]) -> list[str]:
    return [messages[1]["content"] for messages in conversations]


def calls(conversations: list[Conversation]) -> list[tuple[str, str, dict[str, Value]]]:
    """(request, tool name, args) of each conversation."""
    found = []
    for messages in conversations:
        call = json.loads(messages[2]["content"])
        assert list(call) == ["tool", "args"]
        found.append((messages[1]["content"], call["tool"], call["args"]))
    return found


def everything(built: dict[str, list[Conversation]]) -> list[tuple[str, str, dict[str, Value]]]:
    return [call for split in SPLITS for call in calls(built[split])]


def argument(tool: str, name: str) -> Argument:
    return next(found for found in tools_data.arguments(BY_NAME[tool]) if found.name == name)


def test_sizes_and_roles(built: dict[str, list[Conversation]]) -> None:
    assert {split: len(built[split]) for split in built} == {"train": 480, "eval": 80, "test": 120}
    roles = {tuple(message["role"] for message in messages) for split in SPLITS for messages in built[split]}
    assert roles == {("system", "user", "assistant")}


def test_a_seed_gives_the_same_data_and_another_seed_other_data() -> None:
    assert tools_data.build(3, 60, 10, 10) == tools_data.build(3, 60, 10, 10)
    assert tools_data.build(3, 60, 10, 10)["train"] != tools_data.build(4, 60, 10, 10)["train"]


def test_the_held_out_splits_do_not_move_when_the_training_split_grows() -> None:
    small, large = tools_data.build(0, 50, 40, 64), tools_data.build(0, 300, 40, 64)
    assert small["eval"] == large["eval"]
    assert small["test"] == large["test"]
    assert small["train"] == large["train"][:50]


def test_no_request_comes_twice(built: dict[str, list[Conversation]]) -> None:
    counts = Counter(request for split in SPLITS for request in requests(built[split]))
    assert [request for request, count in counts.items() if count > 1] == []


def test_an_exhausted_tool_repeats_rather_than_failing() -> None:
    # Doors have six requests in the test split; requests still never cross into another split.
    large = tools_data.build(0, 0, 0, 2000)
    assert len(large["test"]) == 2000


@pytest.mark.parametrize(("one", "other"), PAIRS_OF_SPLITS)
def test_phrasings_are_held_out(one: str, other: str) -> None:
    shared = {tool.name: set(getattr(tool, one)) & set(getattr(tool, other)) for tool in TOOLS}
    assert {name: found for name, found in shared.items() if found} == {}


@pytest.mark.parametrize(("one", "other"), PAIRS_OF_SPLITS)
@pytest.mark.parametrize("name", sorted(name for name, pool in POOLS.items() if pool.kind not in CLOSED))
def test_open_ended_values_are_held_out(name: str, one: tools_data.Split, other: tools_data.Split) -> None:
    pairs = POOLS[name].pairs
    assert pairs[one]
    assert {value for _, value in pairs[one]}.isdisjoint(value for _, value in pairs[other])
    assert {words.lower() for words, _ in pairs[one]}.isdisjoint(words.lower() for words, _ in pairs[other])


def test_every_argument_has_a_pool_and_every_pool_is_used() -> None:
    assert {found.pool for tool in TOOLS for found in tools_data.arguments(tool)} == set(POOLS)


def test_phrasings_name_all_required_arguments_and_no_unknown_ones() -> None:
    for tool in TOOLS:
        declared = {found.name for found in tools_data.arguments(tool)}
        required = {found.name for found in tools_data.arguments(tool) if found.required}
        for phrasing in (*tool.train, *tool.eval, *tool.test):
            assert set(re.findall(r"\{(\w+)\}", phrasing)) == declared, phrasing
            assert set(re.findall(r"\{(\w+)\}", re.sub(r"\[.*?\]", "", phrasing))) == required, phrasing


def test_calls_fit_their_tools_signature(built: dict[str, list[Conversation]]) -> None:
    for request, name, args in everything(built):
        signature = tools_data.arguments(BY_NAME[name])
        required = {found.name for found in signature if found.required}
        assert required <= set(args) <= {found.name for found in signature}, request
        for key, value in args.items():
            pool = POOLS[argument(name, key).pool]
            assert type(value) is TYPES[pool.kind], request
            assert re.fullmatch(SHAPES.get(pool.kind, r".+"), str(value)), request
            if pool.kind in CLOSED:
                assert value in [known for _, known in pool.pairs["train"]], request


def test_tools_are_covered_evenly_in_every_split(built: dict[str, list[Conversation]]) -> None:
    for split in SPLITS:
        counts = Counter(name for _, name, _ in calls(built[split]))
        assert set(counts) == set(BY_NAME)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_optional_arguments_are_there_in_some_calls_only(built: dict[str, list[Conversation]]) -> None:
    for tool in TOOLS:
        keys = [set(args) for _, name, args in calls(built["train"]) if name == tool.name]
        for found in tools_data.arguments(tool):
            assert found.required or {found.name in present for present in keys} == {True, False}, tool.name


def test_values_can_be_read_from_the_request(built: dict[str, list[Conversation]]) -> None:
    for request, name, args in everything(built):
        for key, value in args.items():
            kind = POOLS[argument(name, key).pool].kind
            if kind == "str":
                assert str(value) in request
            if kind == "float" or (kind == "int" and re.search(r"\d", request)):
                assert str(value) in request or tools_data._spell(int(value)) in request
            if kind == "time":
                assert str(value) == read_clock(request)


def read_clock(request: str) -> str:
    """The 24-hour time asked for in a request, read independently of the generator."""
    if past := re.search(r"(half|quarter) past (\w+)", request):
        names = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
        return f"{names.index(past[2]) + 1:02d}:{ {'half': 30, 'quarter': 15}[past[1]] }"
    found = re.search(r"(\d+):(\d\d)( pm)?", request)
    assert found, request
    return f"{int(found[1]) + (12 if found[3] else 0):02d}:{found[2]}"


@pytest.mark.parametrize(
    ("generated", "parses", "exact"),
    [
        ('{"tool":"a","args":{"n":5,"on":true}}', True, True),
        (' {"args": {"on": true, "n": 5}, "tool": "a"}\n', True, True),
        ('{"tool":"a","args":{"n":5.0,"on":true}}', True, False),
        ('{"tool":"a","args":{"n":5,"on":1}}', True, False),
        ('{"tool":"a","args":{"n":5}}', True, False),
        ('{"tool":"a","args":{"n":5,"on":true}} ok', False, False),
        ("", False, False),
    ],
)
def test_score_compares_values_not_spelling(generated: str, parses: bool, exact: bool) -> None:
    expected = '{"tool":"a","args":{"n":5,"on":true}}'
    assert tools_data.score(expected, generated) == {"parses": parses, "exact": exact}


def test_main_prints_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    tools_data.main(["--seed", "1", "--split", "eval", "--eval", "3"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["split"] for row in rows] == ["eval"] * 3
    assert [row["messages"] for row in rows] == tools_data.build(1, 0, 3, 0)["eval"]


FUNCTION = '''
class C{n}:
    def of_module_{n}_{k}(self, x):
        """Do thing {k} of module {n}.

        More words.
        """
        return x + {k}
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small standard library: sixty modules of two functions, and things that must not be read."""
    for n in range(60):
        folder = tmp_path / ("pkg" if n % 2 else ".")
        folder.mkdir(exist_ok=True)
        (folder / f"m{n}.py").write_text("".join(FUNCTION.format(n=n, k=k) for k in range(2)))
    for skipped in ("test", "site-packages"):
        (tmp_path / skipped).mkdir()
        (tmp_path / skipped / "m99.py").write_text(FUNCTION.format(n=99, k=0))
    (tmp_path / "broken.py").write_text("def f(:\n")
    monkeypatch.setattr(docstrings_data.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    return tmp_path


@pytest.mark.usefixtures("library")
def test_docstring_modules_are_held_out_whole() -> None:
    built = docstrings_data.build(0, 40, 4, 4)
    modules = {
        split: {re.findall(r"of_module_(\d+)", request)[0] for request in requests(built[split])} for split in built
    }
    assert {split: len(built[split]) for split in built} == {"train": 40, "eval": 4, "test": 4}
    assert all(modules[one].isdisjoint(modules[other]) for one, other in PAIRS_OF_SPLITS)
    assert "99" not in set.union(*modules.values())


@pytest.mark.usefixtures("library")
def test_docstring_is_the_answer_and_not_in_the_prompt() -> None:
    for messages in docstrings_data.build(0, 20, 0, 0)["train"]:
        assert re.fullmatch(r"Do thing \d of module \d+\.", messages[2]["content"])
        assert re.fullmatch(r"def of_module_\w+\(self, x\):\n    return x \+ \d", messages[1]["content"])


@pytest.mark.usefixtures("library")
def test_too_small_a_library_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match=r"functions for the train split, 500 were asked for"):
        docstrings_data.build(0, 500, 0, 0)


def test_a_modules_split_is_the_same_on_every_machine() -> None:
    places = {name: docstrings_data.split_of(name) for name in ("json.decoder", "queue", "string")}
    assert places == {"json.decoder": "train", "queue": "eval", "string": "test"}


def test_docstrings_of_the_real_library() -> None:
    built = docstrings_data.build(0, 60, 12, 0)
    assert built == docstrings_data.build(0, 60, 12, 0)
    assert built["eval"] == docstrings_data.build(0, 10, 12, 0)["eval"]
    assert {split: len(built[split]) for split in built} == {"train": 60, "eval": 12, "test": 0}
    for messages in built["train"] + built["eval"]:
        assert messages[2]["content"] not in messages[1]["content"]
        assert 0 < len(messages[1]["content"]) <= docstrings_data._PROMPT_CHARS
    assert set(requests(built["train"])).isdisjoint(requests(built["eval"]))
