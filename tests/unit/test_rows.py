"""Whatever people have is read as they wrote it, or refused by file and line; nothing is lost in silence."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsugi_cli.config.compose import compose
from tsugi_cli.config.spec import Columns, Data
from tsugi_cli.data.reader import reader_of
from tsugi_cli.data.rows import Row, RowError
from tsugi_cli.data.sources import BadRow, check_format, open_rows
from tsugi_kpool.errors import DataError

CASES = Path(__file__).resolve().parents[1] / "data"
USER, SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
F = {"id": "1", "type": "function", "function": {"name": "f", "arguments": None}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [F]}
GOOD = {"messages": [USER, SAID]}


@pytest.fixture(scope="module")
def settings() -> Data:
    return compose(["model=tiny", f"data={CASES / 'multi.jsonl'}"]).data


def rows(data: Data, path: Path | str | list[str], **changed) -> list[Row | BadRow]:
    source = open_rows(replace(data, path=path if isinstance(path, list) else str(path), **changed))
    return [row for shard in source.whole for row in shard]


def only(data: Data, tmp_path: Path, record: object, **changed) -> Row | BadRow:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(record) + "\n")
    (row,) = rows(data, path, **changed)
    return row


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in CASES.glob("*.jsonl") if path.stem not in ("surrogate", "all_empty"))
)
def test_every_row_of_the_cases_is_read(settings, name):
    found = rows(settings, CASES / f"{name}.jsonl")
    assert [row for row in found if isinstance(row, BadRow)] == []
    assert [row.line for row in found] == list(range(1, len(found) + 1))


def test_cases_that_cannot_be_trained_on_are_named(settings):
    bad = [row for row in rows(settings, CASES / "surrogate.jsonl") if isinstance(row, BadRow)]
    assert bad
    assert all("half of a character" in row.reason for row in bad)
    empty = rows(settings, CASES / "all_empty.jsonl")
    assert all("the assistant's answer is empty" in row.reason for row in empty)


def test_what_a_case_says_reaches_the_row(settings):
    def first(name: str) -> Row:
        return rows(settings, CASES / f"{name}.jsonl")[0]

    assert first("weight0").trained == (None, False, None, True)
    assert first("reasoning").messages[1]["reasoning_content"] == "They greet me; I greet back."
    assert first("sysfield").messages[0] == {"role": "system", "content": "You are a pirate."}
    assert first("developer").messages[0] == {"role": "system", "content": "Brief"}
    assert first("parts").messages[1]["content"] == "Hello"
    assert first("sharegpt").messages == (
        {"role": "user", "content": "Hi 0"},
        {"role": "assistant", "content": "Hello."},
    )
    assert first("alpaca").messages[1]["content"] == "1"
    assert first("text").text == "Document 0 about things."
    assert first("trl_conv_pc").trained == (False, None)
    call = first("tool_single_null").messages[1]
    assert (call["content"], call["tool_calls"][0]["function"]["arguments"]) == ("", {"town": "town 0"})
    assert first("tool_full").messages[2] == {
        "role": "tool", "content": '{"c": 21}', "name": "weather", "tool_call_id": "c0",
    }  # fmt: skip
    assert first("tools_unused").tools[0]["function"]["name"] == "weather"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (12, "expected an object, found int"),
        ({"messages": []}, "at least one message"),
        ({"messages": "x"}, "not JSON"),
        ({"messages": [{"role": "assistant"}]}, 'needs "role" and a text'),
        ({"messages": [{"role": "robot", "content": "x"}]}, "'robot' is not one of system, user, assistant, tool"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "role of type list"),
        ({"messages": [USER]}, "last message must be the assistant's"),
        ({"messages": [USER, SAID | {"mood": "good"}]}, '"mood" of a message would be lost'),
        ({"messages": [USER, SAID | {"weight": 0.5}]}, "must be 0 or 1, found 0.5"),
        ({"messages": [USER, SAID | {"weight": 1, "train": False}]}, "contradict each other"),
        ({"messages": [USER | {"content": [{"type": "image_url", "image_url": {}}]}, SAID]}, "images and sounds"),
        (GOOD | {"reward": 1.0}, '"reward" would be lost: "messages" has no use for it'),
        (GOOD | {"reward": 1.0}, "leave it out with data.ignore=[reward]"),
        (GOOD | {"text": "x"}, "data.format=messages data.ignore=[text] or data.format=text data.ignore=[messages]"),
        (GOOD | {"system": "s", "messages": [{"role": "system", "content": "t"}, USER, SAID]}, "keep one of them"),
        ({"question": "a", "answer": "b"}, "say data.columns.prompt=question data.columns.completion=answer"),
        ({"chosen": "a", "rejected": "b"}, "preference pairs"),
        (GOOD | {"text": "x", "reward": 1}, "say data.format=messages data.ignore=[text,reward] or data.format="),
        ({"data": [GOOD]}, "rows inside another object are not read"),
        ({"messages": [USER | {"value": "b"}, SAID]}, '"content" and "value" of a message say different things'),
        ({"messages": [USER, CALL | {"function_call": {"name": "f"}}]}, "are the same thing: keep one of them"),
        ({"messages": [USER, CALLS | {"tool_calls": [F | {"mood": 1}]}]}, '"mood" of a call would be lost'),
        ({"messages": [USER, CALLS | {"tool_calls": [F | {"type": "custom"}]}]}, "a call is of type 'custom'"),
        ({"prompt": "a", "completion": 7}, '"prompt" must be a text, or a list'),
        ({"\x1b[2J": 1}, r"found \x1b[2J"),
        ({"messages": [USER, CALL]}, '"arguments" of f is a text that is not JSON'),
        (GOOD | {"tools": [1]}, "list of functions' schemas"),
        ({"text": " "}, '"text" is empty'),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_named_with_the_way_out(settings, tmp_path, record, said):
    row = only(settings, tmp_path, record)
    assert isinstance(row, BadRow)
    assert said in row.reason
    assert row.place.endswith("x.jsonl:1")
    assert "\n" not in row.reason


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{not json", "not JSON (Expecting property name"),
        (b'{"prompt": "a", "prompt": "b", "completion": "c"}', "an object has the key 'prompt' twice"),
        (b"[" * 100_000, "too deep to be read"),
        (b'{"a":' * 100_000, "too deep to be read"),
        (b'{"messages": [{"role": "user", "content": ' + b"[" * 900 + b"]" * 900 + b"}]}", "a part of a message"),
        (b'{"n": ' + b"9" * 5_000 + b"}", "Exceeds the limit"),
        (b'{"prompt": "\xff"}', "not UTF-8 text (invalid start byte at byte 12)"),
        (b'{"prompt": "\\ud83d", "completion": "x"}', "\\ud83d is half of a character"),
    ],
)
def test_lines_that_no_reader_expects_are_named_too(settings, tmp_path, line, said):
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n" + json.dumps(GOOD).encode())
    first, bad, last = rows(settings, path)
    assert (first.messages, last.messages) == ((USER, SAID), (USER, SAID))
    assert (bad.line, last.line) == (2, 3)
    assert said in bad.reason


def test_other_names_and_ignored_keys_are_taken_as_asked(settings, tmp_path):
    columns = Columns(prompt="question", completion="answer")
    record = {"question": "a", "answer": "b", "mark": 3}
    row = only(settings, tmp_path, record, columns=columns, ignore=["mark"])
    assert row.messages == (USER, SAID)
    missing = only(settings, tmp_path, {"qestion": "a", "answer": "b"}, columns=columns)
    assert "data.columns.prompt=question: the row has no such key; did you mean qestion?" in missing.reason
    talk = {"messages": [USER, SAID | {"mood": "good", "reasoning_content": "r"}]}
    assert only(settings, tmp_path, talk, ignore=["mood", "reasoning_content"]).messages == (USER, SAID)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings_are_read_by_their_mark_or_named(settings, tmp_path, encoding):
    text = json.dumps({"messages": [USER, SAID | {"content": "blåbær \u2028 \u0085 日本"}]}, ensure_ascii=False)
    path = tmp_path / "x.jsonl"
    path.write_bytes(f"{text}\n{text}\n".encode(encoding))
    if encoding == "utf-16-le":
        with pytest.raises(DataError, match="looks like UTF-16 or UTF-32 without a byte order mark"):
            rows(settings, path)
        return
    assert [row.messages[1]["content"] for row in rows(settings, path)] == ["blåbær \u2028 \u0085 日本"] * 2


def test_columns_may_change_places_be_optional_and_never_hide_another(settings, tmp_path):
    swapped = Columns(prompt="completion", completion="prompt")
    assert only(settings, tmp_path, {"prompt": "b", "completion": "a"}, columns=swapped).messages == (USER, SAID)
    record = {"prompt": "a", "completion": "b"}
    assert only(settings, tmp_path, record, columns=Columns(system="rules")).messages == (USER, SAID)
    hidden = only(settings, tmp_path, record | {"question": "c"}, columns=Columns(prompt="question"))
    assert '"prompt" stands beside "question"' in hidden.reason


def test_calls_are_read_wherever_they_stand(settings, tmp_path):
    """Without arguments, as OpenAI wrote them before there were several, and as ShareGPT's turns."""
    call = {"name": "f", "arguments": "{}"}
    wanted = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {**call}}]}
    wanted["tool_calls"][0]["function"]["arguments"] = {}
    for said in (
        {"role": "assistant", "function_call": call},
        {"role": "assistant", "content": "", "tool_calls": [call], "refusal": None, "annotations": []},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "function_call", "value": json.dumps([call])},
    ):
        assert only(settings, tmp_path, {"messages": [USER, said]}).messages == (USER, wanted)
    talk = {"messages": [USER, CALLS | {"tool_calls": [F | {"mood": 1}]}]}
    assert only(settings, tmp_path, talk, ignore=["mood"]).messages[1]["tool_calls"][0]["id"] == "1"


def files_of(folder: Path, records: list[dict]) -> dict[str, Path]:
    """The same rows in every kind of file."""
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset

    lines = "".join(json.dumps(each) + "\n" for each in records)
    found = {name: folder / f"x.{name}" for name in ("jsonl", "json", "jsonl.gz", "csv", "tsv", "parquet", "arrow")}
    found["jsonl"].write_text(lines)
    found["json"].write_text(json.dumps(records, indent=1))
    with gzip.open(found["jsonl.gz"], "wt") as file:
        file.write(lines)
    for name, separator in (("csv", ","), ("tsv", "\t")):
        with found[name].open("w", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]), delimiter=separator)
            writer.writeheader()
            writer.writerows({key: json.dumps(value) for key, value in each.items()} for each in records)
    table = Dataset.from_list(records).data.table
    pyarrow.parquet.write_table(table, found["parquet"])
    with pyarrow.OSFile(str(found["arrow"]), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return found


def test_files_of_every_kind_give_the_same_rows(settings, tmp_path):
    """Also calls whose arguments have different keys: Arrow would give each the keys of both."""

    def calls(arguments: dict) -> dict:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]}

    records = [calls({"town": "a\nb"}), calls({"code": 3}), calls({})]
    found = files_of(tmp_path, records)
    wanted = [row.messages for row in rows(settings, found["jsonl"])]
    assert [each[1]["tool_calls"][0]["function"]["arguments"] for each in wanted] == [
        {"town": "a\nb"},
        {"code": 3},
        {},
    ]
    for name, path in found.items():
        assert [row.messages for row in rows(settings, path)] == wanted, name


def test_folders_patterns_and_lists_are_read_in_order(settings, tmp_path):
    for name in ("b.jsonl", "a.jsonl", "sub/c.csv", "notes.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        head = "prompt,completion\n" if name.endswith("csv") else ""
        path.write_text(head + (f"{name},x\n" if head else json.dumps({"prompt": name, "completion": "x"}) + "\n"))
    said = [row.messages[0]["content"] for row in rows(settings, tmp_path)]
    assert said == ["a.jsonl", "b.jsonl", "sub/c.csv"]
    assert len(rows(settings, f"{tmp_path}/*.jsonl")) == 2
    listed = rows(settings, [f"{tmp_path}/sub/c.csv", f"{tmp_path}/a.jsonl"])
    assert [row.messages[0]["content"] for row in listed] == ["sub/c.csv", "a.jsonl"]


def test_tables_and_arrays_say_the_line_of_what_is_wrong(settings, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('prompt,completion\na,"two\nlines"\nshort\nc,d\n')
    first, bad, last = rows(settings, path)
    assert (first.line, bad.line, last.line) == (2, 4, 5)
    assert "not as many cells as the head of the table has (2)" in bad.reason
    path = tmp_path / "x.json"
    path.write_text('[\n {"prompt": "a", "completion": "b"},\n\n {"prompt": "a"},\n {"x\n')
    found = rows(settings, path)
    assert [each.line for each in found] == [2, 4, 5]
    assert "not JSON" in found[-1].reason


def test_a_file_is_cut_at_line_ends_and_every_row_keeps_its_line(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("tsugi_cli.data.sources.SPLIT_BYTES", 500)
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f"\n{json.dumps({'prompt': str(at), 'completion': 'é' * at})}\n" for at in range(40)))
    source = open_rows(replace(settings, path=str(path)))
    whole = [row for shard in source.whole for row in shard]
    for processes in (1, 2, 3, 7):
        pieces = source.shards(processes)
        assert len(pieces) == min(processes, path.stat().st_size // 500)
        assert [row for shard in pieces for row in shard] == whole
    assert [row.line for row in whole] == list(range(2, 82, 2))


def test_what_was_found_is_said_and_an_empty_file_refused(settings, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}))
    assert open_rows(replace(settings, path=str(path))).detected == (f'{path}: "conversations" (ShareGPT)',)
    path.write_text("\n \n")
    with pytest.raises(DataError, match="is empty"):
        open_rows(replace(settings, path=str(path)))


def test_a_digest_is_of_what_is_read(settings, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(GOOD))
    first = open_rows(replace(settings, path=str(path))).digest()
    (tmp_path / "sub").mkdir()
    other = tmp_path / "sub" / "x.jsonl"
    other.write_text(json.dumps(GOOD))
    assert open_rows(replace(settings, path=str(other))).digest() == first, "wherever it lies"
    other.write_text(json.dumps(GOOD) + "\n")
    assert open_rows(replace(settings, path=str(other))).digest() != first


def test_a_folder_in_the_hubs_layout_is_a_data_set(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}-00000-of-00001.jsonl").write_text(json.dumps({"prompt": split, "completion": "x"}) + "\n")
    from tsugi_cli.data.hub import Remote

    found = list(Remote(str(tmp_path), None, "test", None).checked().records())
    assert found == [(1, {"prompt": "test", "completion": "x"})]
    with pytest.raises(DataError, match=r"data\.subset, data\.split"):
        Remote(str(tmp_path), None, "nothing", None).checked()


def test_a_hub_name_that_cannot_be_had_is_said_in_one_line(settings, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="cannot have the data set nobody/nothing") as caught:
        open_rows(replace(settings, path="nobody/nothing"))
    assert "\n" not in str(caught.value)


def test_a_dry_run_reads_all_rows_and_makes_no_token(settings, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{{\n{json.dumps(GOOD)}\n")
    good, (bad,) = check_format(replace(settings, path=str(path)))
    assert (good, bad.line) == (2, 2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["messages", "prompt", "completion", "conversations", "text", "tools", "system", "instruction", "output", "x"]
)
MESSAGE = st.dictionaries(
    st.sampled_from(["role", "content", "from", "value", "tool_calls", "weight", "train", "name", "y"]),
    JSON | st.sampled_from(["user", "assistant", "tool"]),
    max_size=4,
)


@given(st.dictionaries(KEYS, JSON | st.lists(MESSAGE, max_size=3), max_size=4))
def test_no_record_ends_in_anything_but_a_row_or_a_reason(record):
    with contextlib.suppress(RowError):
        row = READER.row(record, "f", 1)
        assert row.messages or row.text


READER = reader_of(compose(["model=tiny"]).data)
