"""Data: what is wrong with a file is said by line before anything starts; splits never overlap."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from tsugi_cli.bench.compare.command import bench
from tsugi_cli.config.compose import compose
from tsugi_cli.finetune.data import DataOrder, load_splits, read_jsonl
from tsugi_cli.launch.run import finetune
from tsugi_kpool.errors import ConfigError, DataError

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_both_formats_are_read(tmp_path):
    path = write(tmp_path / "x.jsonl", GOOD, "", {"prompt": "a", "completion": "b"})
    first, second = read_jsonl(path)
    assert first == second == GOOD["messages"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "expected an object, found list"),
        ({"text": "x"}, 'expected "messages", or "prompt" and "completion"; found text'),
        ({"messages": []}, "at least one message"),
        ({"messages": "x"}, "must be a list"),
        ({"messages": [{"role": "assistant"}]}, 'needs "role" and a text'),
        ({"messages": [{"role": "robot", "content": "x"}]}, "'robot' is not one of system, user, assistant"),
        ({"messages": [{"role": "user", "content": "x"}]}, "last message must be the assistant's"),
        ({"prompt": "a", "completion": None}, "a text as"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_reason(tmp_path, line, said):
    path = write(tmp_path / "x.jsonl", GOOD, line)
    with pytest.raises(DataError, match=r"x\.jsonl:2: ") as caught:
        read_jsonl(path)
    assert said in str(caught.value)


def test_many_bad_lines_are_counted(tmp_path):
    path = write(tmp_path / "x.jsonl", *["{"] * 12)
    with pytest.raises(DataError, match="and 7 more"):
        read_jsonl(path)


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b"\xff\xfe{", "not UTF-8")])
def test_unreadable_files_are_refused(tmp_path, content, said):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_jsonl(path)


def test_a_file_is_cut_into_splits_that_do_not_overlap(tmp_path):
    lines = [{"prompt": str(i), "completion": "b"} for i in range(50)]
    path = write(tmp_path / "x.jsonl", *lines)
    data = compose(["model=tiny", f"data={path}", "data.n_eval=10", "data.n_test=5"]).data
    splits = load_splits(data)
    assert (len(splits.train), len(splits.eval), len(splits.test)) == (35, 10, 5)
    prompts = [c[0]["content"] for split in (splits.train, splits.eval, splits.test) for c in split]
    assert sorted(prompts, key=int) == [str(i) for i in range(50)]
    assert load_splits(data).fingerprint() == splits.fingerprint()
    assert load_splits(replace(data, seed=1)).fingerprint() != splits.fingerprint()


def test_splits_that_leave_nothing_to_train_on_are_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", GOOD, GOOD)
    with pytest.raises(DataError, match="leave none to train on"):
        load_splits(compose(["model=tiny", f"data={path}", "data.n_eval=2"]).data)


def test_a_builder_that_does_not_exist_is_a_config_error():
    data = compose(["model=tiny"]).data
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_splits(replace(data, builder="no.such.module:build"))


BUILDERS = """
import sys

GOOD = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def of(train, eval=(), test=()):
    return {"train": train, "eval": list(eval), "test": list(test)}


def good(seed, n_train, n_eval, n_test):
    return of([GOOD] * n_train, [GOOD], (GOOD,))


def too_few(seed):
    return of([GOOD])


def raises(seed, n_train, n_eval, n_test):
    raise KeyError("no such\\nthing")


def ends(*sizes):
    sys.exit(0)


def endless(*sizes):
    return endless(*sizes)


def nothing(*sizes):
    return None


def text(*sizes):
    return {"train": "abc", "eval": [], "test": []}


def lacks(*sizes):
    return {"train": [GOOD]}


def half(*sizes):
    return of([GOOD, [{"role": "assistant", "content": "\\ud83d"}]])


def number(*sizes):
    return of([GOOD, 7])


def empty(*sizes):
    return of([])
"""


@pytest.fixture
def builders(tmp_path, monkeypatch):
    """A module of builders; returns the settings that name one of them."""
    monkeypatch.syspath_prepend(tmp_path)
    module = f"builders_{abs(hash(tmp_path))}"
    (tmp_path / f"{module}.py").write_text(BUILDERS)
    (tmp_path / f"{module}_broken.py").write_text("def build(:")
    (tmp_path / f"{module}_ends.py").write_text("raise SystemExit(0)")
    data = compose(["model=tiny"]).data
    return lambda name: replace(data, builder=f"{module}{name}", n_train=3)


def test_what_a_builder_makes_is_what_is_trained_on(builders):
    splits = load_splits(builders(":good"))
    assert (len(splits.train), len(splits.eval), len(splits.test)) == (3, 1, 1)


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        (":too_few", ConfigError, "takes (seed), but is called with (seed, n_train, n_eval, n_test)"),
        ("_broken:build", ConfigError, "cannot be imported (SyntaxError: "),
        ("_ends:build", ConfigError, "cannot be imported (SystemExit: 0 at "),
        (":nobody", ConfigError, "cannot be imported (AttributeError"),
        (":GOOD", ConfigError, "is not a function"),
        (":raises", DataError, "raised KeyError: 'no such\\nthing' at "),
        (":ends", DataError, "raised SystemExit: 0 at "),
        (":endless", DataError, "raised RecursionError"),
        (":nothing", DataError, 'expected a dict with lists "train", "eval" and "test"'),
        (":text", DataError, 'expected a dict with lists "train", "eval" and "test"'),
        (":lacks", DataError, 'expected a dict with lists "train", "eval" and "test"'),
        (":half", DataError, 'train[1]: \\ud83d in "content" is half of a character'),
        (":number", DataError, 'train[1]: "messages" must be a list'),
        (":empty", DataError, "the train split is empty"),
    ],
)
def test_a_builder_that_cannot_be_used_is_named_in_one_line(builders, name, error, said):
    data = builders(name)
    with pytest.raises(error) as caught:
        load_splits(data)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert data.builder in str(caught.value) or "train split" in said


def test_a_dry_run_runs_nothing_of_the_users_and_says_what_it_does_not_know(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leaves_a_mark.py").write_text(
        "from pathlib import Path\nPath('mark').touch()\ndef build(*sizes): 1 / 0\n"
    )
    words = ["model=tiny", "data.builder=leaves_a_mark:build", "data.n_train=70"]
    said = io.StringIO()
    assert finetune(words, True, True, said) == 0
    bench([*words, "bench.methods=[kpool]", "bench.seeds=[0]"], True, True, False, said, said)
    assert not (tmp_path / "mark").exists()
    assert "70 training samples, as asked of leaves_a_mark:build: a dry run does not call it" in said.getvalue()
    with pytest.raises(DataError, match="raised ZeroDivisionError"):
        finetune(words, False, True, said)
    assert (tmp_path / "mark").exists()


def test_a_scorer_that_does_not_exist_is_said_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.scorer=no\.module:score: cannot be imported"):
        finetune(["model=tiny", "data.scorer=no.module:score"], False, True, io.StringIO())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "\\ud83d", "completion": "x"}', '\\ud83d in "content" is half of a character'),
        (b"[" * 100_000, "too deep to be read"),
        (b'{"a":' * 100_000, "too deep to be read"),
        (b'{"messages": [{"role": ["user"], "content": "x"}]}', "role of type list"),
        (b'{"messages": [{"role": "\\u001b[2J", "content": "x"}]}', r"role '\x1b[2J' is not one of"),
        (b'{"\\u001b[2J": 1}', r"found \x1b[2J"),
        (b'{"n": ' + b"9" * 5_000 + b"}", "Exceeds the limit"),
        (b'{"prompt": "\xff"}', "not UTF-8 text (invalid start byte at byte 12)"),
    ],
)
def test_lines_that_no_reader_expects_are_named_too(tmp_path, line, said):
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=r"x\.jsonl:2: ") as caught:
        read_jsonl(path)
    assert said in str(caught.value)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_only_a_line_feed_ends_a_line(tmp_path, separator):
    """Others are characters that a JSON text may hold; what comes behind them still has its line's number."""
    path = tmp_path / "x.jsonl"
    text = json.dumps({"prompt": f"a{separator}b", "completion": "c"}, ensure_ascii=False)
    path.write_text(f"{text}\n{{\n")
    with pytest.raises(DataError) as caught:
        read_jsonl(path)
    assert str(caught.value).startswith(f"{path}:2: not JSON")


def test_every_epoch_is_a_permutation_of_its_own():
    order = DataOrder(seed=3, n_train=20)
    first, second = [order(p) for p in range(20)], [order(p) for p in range(20, 40)]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first == [DataOrder(seed=3, n_train=20)(p) for p in range(20)]
