"""Files of every kind, whole or broken, under right and wrong names: rows, or one line that says what is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as tried
from hypothesis import strategies as st

from tsugi_cli.config.compose import compose
from tsugi_cli.config.files import data_problem
from tsugi_cli.config.spec import Columns, Data
from tsugi_cli.data.folders import split_of
from tsugi_cli.data.lines import READERS, TABLES, is_lines, records
from tsugi_cli.data.marks import Unreadable
from tsugi_cli.data.rows import RowError
from tsugi_cli.data.sources import BadRow, open_rows
from tsugi_kpool.errors import DataError

PAIR = {"prompt": "a", "completion": "b"}
LINE = json.dumps(PAIR)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=8,
)
OBJECT = st.dictionaries(st.text(st.characters(codec="utf-8")), ANY, min_size=1, max_size=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    path = tmp_path_factory.mktemp("data") / "x.jsonl"
    path.write_text(LINE)
    return compose(["model=tiny", f"data={path}"]).data


def read(data: Data, path: Path | str, **changed) -> list:
    source = open_rows(replace(data, path=str(path), **changed))
    return [each for shard in source.whole for each in shard]


def answers(data: Data, path: Path | str, **changed) -> list[str]:
    return [each.messages[-1]["content"] for each in read(data, path, **changed)]


def written(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.parquet", b"PAR1garbage", "it is no whole parquet file"),
        ("x.parquet", b"", "it is no whole parquet file"),
        ("x.arrow", b"garbage", "it is no whole Arrow file"),
        ("x.parquet.gz", gzip.compress(b"PAR1"), "unpack it"),
        ("x.jsonl.gz", gzip.compress(LINE.encode())[:-9], "it is no whole gzip file"),
        ("x.jsonl.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"\xff" * 40, "it is no whole gzip file"),
        ("x.jsonl.gz", LINE, "it is no whole gzip file"),
        ("x.jsonl", gzip.compress(LINE.encode()), "its name must end with .gz"),
        ("x.xlsx", b"PK\x03\x04garbage", "save it as .csv"),
        ("x.jsonl", LINE.encode("utf-16-le"), "without a byte order mark"),
        ("x.csv", 'prompt,completion\na,b\nc,"d\ne,f\n', "line 3 opens a quote that is never closed"),
        ("x.csv", "prompt,prompt,completion\na,b,c\n", "names 'prompt' twice"),
        ("x.txt", LINE, "name it .jsonl"),
    ],
    ids=itertools.count(),
)
def test_a_file_that_is_not_what_it_is_called_is_named_in_one_line(data, tmp_path, name, content, said):
    path = written(tmp_path / name, content)
    with pytest.raises(DataError) as refused:
        read(data, path)
    assert str(refused.value).startswith(f"cannot read {path}: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
@pytest.mark.parametrize(
    "content",
    [
        f"{LINE}\n\n{LINE}",
        f"[{LINE}, {LINE}]",
        f"\ufeff [\n{LINE},\n{LINE}\n]\n",
        json.dumps([PAIR, PAIR], indent=2),
        json.dumps(PAIR, indent=1) + "\n" + json.dumps(PAIR, indent=1),
    ],
)
def test_lines_arrays_and_objects_over_several_lines_are_read_under_either_name(
    data, tmp_path, name, content, packed
):
    path = tmp_path / (f"{name}.gz" if packed else name)
    written(path, gzip.compress(content.encode()) if packed else content)
    assert answers(data, path) == ["b", "b"]


def test_what_stands_behind_an_array_is_not_lost(data, tmp_path):
    first, more = read(data, written(tmp_path / "x.json", f"[{LINE}]\n\n{LINE}"))
    assert (first.line, more.line) == (1, 3)
    assert "something more" in more.reason


def test_a_cell_that_is_json_is_a_text_unless_it_is_messages(data, tmp_path):
    file = io.StringIO()
    table = csv.writer(file)
    table.writerows([["", "prompt", "completion"], [0, "a", '{"x": 1}'], [1, "a", "[1, 2]"], [2, "a", "[b"]])
    assert answers(data, written(tmp_path / "x.csv", file.getvalue())) == ['{"x": 1}', "[1, 2]", "[b"]


def test_an_empty_cell_of_a_column_is_no_missing_column(data, tmp_path):
    path = written(tmp_path / "x.csv", "rules,prompt,completion\n,a,b\nr,a,b\n")
    first, second = read(data, path, columns=Columns(system="rules"))
    assert (len(first.messages), second.messages[0]) == (2, {"role": "system", "content": "r"})


def test_bytes_and_quotes_that_are_wrong_are_told_by_their_line(data, tmp_path):
    path = written(tmp_path / "x.csv", 'prompt,completion\na,b\nå,"b"\na,"say "b" now"\na,b\n'.encode("latin-1"))
    found = read(data, path)
    assert [each.line for each in found if isinstance(each, BadRow)] == [3, 4]
    assert "not UTF-8 text (byte 0xe5)" in found[1].reason
    assert "iconv -f WINDOWS-1252" in found[1].reason
    path = written(tmp_path / "y.jsonl", f"{LINE}\n{LINE}".encode("utf-16") + b"\n")
    assert "truncated" in read(data, path)[-1].reason
    half = json.dumps({"prompt": "a", "completion": "\ud800"}, ensure_ascii=False)
    path = written(tmp_path / "z.jsonl", f"{LINE}\n{half}\n{LINE}".encode("utf-16", "surrogatepass"))
    assert [isinstance(each, BadRow) for each in read(data, path)] == [False, True, False]


def test_zstd_is_read_to_its_end_or_refused(data, tmp_path):
    import pyarrow

    packed = pyarrow.compress(f"{LINE}\n".encode() * 2, codec="zstd", asbytes=True)
    assert answers(data, written(tmp_path / "x.jsonl.zst", packed + packed)) == ["b"] * 4
    for content in (packed[:-4], b"garbage", LINE):
        with pytest.raises(DataError, match="cannot read"):
            read(data, written(tmp_path / "y.jsonl.zst", content))


def test_dates_and_bytes_of_a_table_are_refused_and_nulls_of_its_rows_are_none(data, tmp_path):
    import datetime

    import pyarrow
    import pyarrow.parquet

    def call(when: object) -> list:
        arguments = {"when": when} if when else {"n": 1}
        calls = [{"function": {"name": "f", "arguments": arguments}}]
        return [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": calls}]

    path = tmp_path / "x.parquet"
    columns = {"messages": [call(None), call(datetime.date(2020, 1, 1))], "rules": [None, "r"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    first, bad = read(data, path, columns=Columns(system="rules"))
    assert first.messages[-1]["tool_calls"][0]["function"]["arguments"] == {"n": 1}
    assert "date" in bad.reason
    assert "write it as a text" in bad.reason


def test_a_folder_of_several_splits_is_asked_about(data, tmp_path):
    for split in ("train", "test"):
        path = tmp_path / "repo" / "data" / f"{split}-00000-of-00001.jsonl"
        written(path, json.dumps({"prompt": "a", "completion": split}))
    with pytest.raises(DataError, match=r"say data\.split=test or data\.split=train, or name the files"):
        read(data, tmp_path / "repo")
    assert answers(data, tmp_path / "repo", split="test") == ["test"]
    with pytest.raises(DataError, match=r"no files of data\.split=dev; by their names there are test, train"):
        read(data, tmp_path / "repo", split="dev")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.jsonl", "train"),
        ("data/train_sft-00000-of-00003-a1b2.parquet", "train_sft"),
        ("train/data-00000-of-00001.arrow", "train"),
        ("dev/part.1.jsonl", "validation"),
        ("my_eval_set.csv", "validation"),
        ("trains.jsonl", None),
        ("latest/x.jsonl", None),
    ],
)
def test_splits_are_known_by_the_names_of_files_and_folders(path, split):
    assert split_of(Path(path)) == split


def test_what_is_hidden_or_only_describes_rows_is_no_row(data, tmp_path):
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    Dataset.from_list([PAIR]).save_to_disk(tmp_path / "saved")
    written(tmp_path / "saved" / ".ipynb_checkpoints" / "x.jsonl", LINE)
    assert answers(data, tmp_path / "saved") == ["b"]


@pytest.mark.parametrize("key", ["split", "subset", "revision"])
def test_a_setting_that_nothing_heeds_is_refused(data, key):
    with pytest.raises(DataError, match=rf"data\.{key}=x is for .* and none is named"):
        read(data, data.path, **{key: "x"})


def test_a_hub_name_may_say_its_split_and_eval_has_one_of_its_own(data, monkeypatch):
    asked = []
    monkeypatch.setattr("tsugi_cli.data.hub._loaded", lambda remote: asked.append(remote) or [PAIR])
    open_rows(replace(data, path="owner/name", split="train_sft", eval="owner/name[test_sft]", test="owner/name"))
    assert {(each.repository, each.split) for each in asked} == {
        ("owner/name", "train_sft"),
        ("owner/name", "test_sft"),
        ("owner/name", "test"),
    }
    built = compose(["model=tiny", "data=owner/name[train_sft]"])
    assert (built.data.path, built.name) == ("owner/name[train_sft]", "name_train_sft")


@pytest.mark.parametrize("odd", ["~[", "~nobody_of_that_name/*.jsonl", "a**.jsonl", f"{'x' * 3000}*", "\0*", "["])
def test_a_text_that_can_be_no_pattern_matches_nothing(odd):
    assert data_problem(odd) == f"no file matches {odd}"


NAMES = st.sampled_from(sorted([*READERS, *TABLES, "json", "jsonl", "jsonl.gz", "csv.gz", "odd"]))


@tried(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(NAMES, st.binary(max_size=200) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "replace")))
@example("json", b"[")
@example("json", b'[{"a": 1}')
@example("json", b"{\n")
@example("csv", b"a,b\n\0,\n")
@example("csv", b"a\rb\rc")
@example("jsonl", b"\xff\xfe\0")
@example("tsv", b'"\n"')
def test_whatever_bytes_a_file_has_they_are_records_or_one_line(tmp_path, name, content):
    found, refused = [], ""
    try:
        found = list(records(written(tmp_path / f"x.{name}", content), "x"))
    except DataError as error:
        refused = str(error)
    assert refused == "" or refused.startswith("cannot read x: ")
    assert "\n" not in refused
    lines = [line for line, _ in found]
    assert lines == sorted(lines)
    assert all("\n" not in str(each) for _, each in found if isinstance(each, RowError))


@tried(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.lists(OBJECT, max_size=5), st.booleans(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_what_is_written_as_json_is_read_as_it_was_written(tmp_path, objects, ascii_only, encoding):
    lines = "".join(json.dumps(each, ensure_ascii=ascii_only) + "\n" for each in objects)
    array = json.dumps(objects, ensure_ascii=ascii_only, indent=1)
    for name, text in (("x.jsonl", lines), ("x.json", array)):
        found = list(records(written(tmp_path / name, text.encode(encoding)), "x"))
        assert [record for _, record in found] == objects
    assert [line for line, _ in records(tmp_path / "x.jsonl", "x")] == list(range(1, len(objects) + 1))


def test_only_lines_of_plain_text_are_cut():
    assert is_lines(LINE.encode())
    for head in (b"[", b" \n{\n", b"\xef\xbb\xbf{}", "{}".encode("utf-16")):
        assert not is_lines(head)
    with pytest.raises(Unreadable):
        is_lines(b"PAR1")
