"""Data: what is wrong with a file is said by line before anything starts; splits never overlap."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tsugi_cli.compose import compose
from tsugi_cli.finetune.data import DataOrder, load_splits, read_jsonl
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
        load_splits(compose(["model=tiny", f"data={path}"]).data)


def test_a_builder_that_does_not_exist_is_a_config_error():
    data = compose(["model=tiny"]).data
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_splits(replace(data, builder="no.such.module:build"))


def test_every_epoch_is_a_permutation_of_its_own():
    order = DataOrder(seed=3, n_train=20)
    first, second = [order(p) for p in range(20)], [order(p) for p in range(20, 40)]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first == [DataOrder(seed=3, n_train=20)(p) for p in range(20)]
