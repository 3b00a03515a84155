"""Data prepared once: what is written is what was said, whoever prepares it; what is wrong is said by line."""

from __future__ import annotations

import io
import json
import threading
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pytest

from tsugi_cli.config.compose import compose
from tsugi_cli.data import cache
from tsugi_cli.data.kitchen import Limits
from tsugi_cli.data.prepare import make, read_rows
from tsugi_cli.data.prepared import open_entry
from tsugi_cli.data.rows import Row, RowError, Sample
from tsugi_cli.data.tables import Columns, Writer, batches, schema_of
from tsugi_cli.finetune import ready as readying
from tsugi_cli.finetune.ready import kitchen_of, known, opened, previewed, ready
from tsugi_cli.launch.data import check, preview
from tsugi_cli.launch.request import RunRequest
from tsugi_cli.record.answer import Answer
from tsugi_kpool.errors import DataError, MachineError

ROWS = 40


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A cache of this module's own, with the model in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield patch


def rows(count=ROWS):
    return [{"prompt": f"What is {number}?", "completion": f"It is {number}."} for number in range(count)]


def write(path: Path, records) -> Path:
    lines = (each if isinstance(each, str) else json.dumps(each) for each in records)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def words(home, tmp_path):
    """Settings for a file of 40 rows."""
    return ["model=tiny", f"data={write(tmp_path / 'mine.jsonl', rows())}", "data.n_eval=4", "data.n_test=2"]


def test_what_is_read_back_is_what_was_said_and_nothing_is_tokenised_again(words, monkeypatch):
    data = opened(compose(words))
    tokenizer = readying.load_tokenizer(compose(words).model)
    assert (len(data.train), len(data.eval), len(data.test)) == (ROWS - 6, 4, 2)
    sample = data.train[0]
    (start, stop), text = sample.spans[0], tokenizer.decode(sample.ids)
    number = text.split("What is ")[1].split("?")[0]
    assert tokenizer.decode(sample.ids[start:stop]) == f"It is {number}.<|end|>"
    assert data.train.tokens() == [each.tokens for each in data.train]
    question = data.test[0]
    assert question.expected == question.asked.replace("What is", "It is").replace("?", ".")
    assert tokenizer.decode(question.prompt).endswith(f"{question.asked}<|end|>\n<|start|>assistant\n")
    assert json.loads(question.row)["messages"][0]["content"] == question.asked
    monkeypatch.setattr(readying, "kitchen_of", lambda spec: pytest.fail("tokenised again"))
    assert opened(compose(words)).fingerprint() == data.fingerprint()


@dataclass(frozen=True)
class Listed:
    rows: tuple[Row, ...]
    part: str = "open"
    mixed: int = 0

    def __iter__(self):
        return iter(self.rows)


@dataclass(frozen=True)
class Source:
    listed: tuple[Listed, ...]
    detected: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    def shards(self, processes):
        return self.listed


@pytest.mark.parametrize("processes", [2, 3])
def test_neither_cores_nor_parts_of_files_change_what_is_prepared(words, tmp_path, processes):
    spec, turns = (
        compose(words),
        [({"role": "user", "content": str(n)}, {"role": "assistant", "content": "ok"}) for n in range(1500)],
    )
    listed = tuple(Row("x", line, each, (None, None)) for line, each in enumerate(turns, start=1))
    kitchen, found = kitchen_of(spec), []
    for name, source, cores in (
        ("one", Source((Listed(listed),)), 1),
        ("more", Source((Listed(listed),)), processes),
        ("parts", Source((Listed(listed[:700]), Listed(listed[700:]))), processes),
    ):
        into = tmp_path / name
        into.mkdir()
        read = read_rows(source, spec.data, cores, readying.silent, False)
        found.append(make(read, kitchen, spec.data, source, cores, readying.silent, into))
    assert found[0].fingerprint == found[1].fingerprint == found[2].fingerprint
    assert found[0].report == found[1].report == found[2].report
    tables = [(tmp_path / name / "entry") for name in ("one", "more", "parts")]
    for table in tables:
        found[0].write(table / "manifest.json")
    one, more, parts = ([sample.ids for sample in open_entry(table).train] for table in tables)
    assert one == more == parts


def test_rows_whose_arguments_have_other_keys_gain_none(words, tmp_path):
    """Arrow would give all rows the keys of all."""
    spec = replace(compose(words).data, n_eval=0, n_test=2)
    calls = [{"role": "assistant", "content": "ok", "extra": {key: 1}} for key in ("left", "right")]
    listed = tuple(
        Row("x", line, ({"role": "user", "content": str(line)}, call), (None, None))
        for line, call in enumerate([*calls, {"role": "assistant", "content": "no"}], start=1)
    )
    source = Source((Listed(listed[:2], "test"), Listed(listed[2:], "train")))
    read = read_rows(source, spec, 1, readying.silent, False)
    facts = make(read, kitchen_of(compose(words)), spec, source, 1, readying.silent, tmp_path)
    facts.write(tmp_path / "entry" / "manifest.json")
    kept = [json.loads(each.row)["messages"][1]["extra"] for each in open_entry(tmp_path / "entry").test]
    assert kept == [{"left": 1}, {"right": 1}]


def test_what_is_wrong_is_said_at_once_by_line_and_nothing_is_left_behind(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.jsonl", [*rows(3), *["{"] * 7])
    with pytest.raises(DataError) as refused:
        RunRequest.read([words[0], "data=bad.jsonl"])
    said = str(refused.value).splitlines()
    assert [line.split(": ")[0] for line in said[:5]] == [f"bad.jsonl:{line}" for line in range(4, 9)]
    assert said[5:] == ["... and 2 more"]
    assert not (tmp_path / "runs").exists()


def test_a_row_that_the_template_refuses_is_named_before_anything_trains(words):
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}<|end|>\\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    path = Path(words[1].removeprefix("data="))
    turns = [{"role": each, "content": "x"} for each in ("system", "user", "assistant")]
    write(path, [*rows(20), {"messages": turns}])
    spec = compose(words)
    with pytest.raises(DataError, match=r"mine\.jsonl:21: .*no system here"):
        ready(replace(spec, model=replace(spec.model, chat_template=template)))


def test_a_token_that_the_model_has_not_is_named_with_both_sizes():
    limits = Limits(100, 8, lambda token: f"<{token}>")
    limits.check(Sample([1, 99], ((1, 2),)))
    with pytest.raises(RowError, match=r"token 100 \('<100>'\) is beyond the model's embedding, which has 100 rows"):
        limits.check(Sample([1, 100], ((1, 2),)))
    with pytest.raises(RowError, match="9 tokens are more than the model's 8 positions"):
        limits.check(Sample([1] * 9, ((1, 2),)))


def test_the_models_positions_cap_the_longest_sample_and_that_is_said(words):
    facts = ready(compose([*words, "data.max_tokens=4096"]))
    assert facts.max_tokens == 2048
    assert facts.report["notes"] == ["data.max_tokens=4096 is capped at 2048, the positions that the model has"]


def test_repeated_rows_are_counted_and_never_on_both_sides(words):
    path = Path(words[1].removeprefix("data="))
    write(path, rows(20) * 10)
    data = opened(compose(words))
    report = data.facts.report["rows"]
    assert (report["read"], report["repeated"], report["left_out_of_train_because_held_out"]) == (200, 180, 54)
    train = {tuple(each.ids) for each in data.train}
    assert (len(data.eval), len(data.train)) == (4, 140)
    assert not train & {tuple(each.ids) for each in data.eval}


@pytest.mark.parametrize("name", ["train.arrow", "manifest.json", "seal.json"])
def test_a_damaged_entry_is_made_again(words, name):
    spec = compose(words)
    facts = ready(spec)
    file = Path(facts.entry) / name
    before = file.read_bytes()
    file.write_bytes(before[: len(before) // 2])
    assert known(spec) is None
    assert ready(spec).fingerprint == facts.fingerprint
    assert known(spec) == facts
    file.write_bytes(bytes([before[0] ^ 1]) + before[1:])
    assert known(spec) is None


def test_who_reads_an_entry_reads_on_while_it_is_made_again(words):
    spec = compose(words)
    data = opened(spec)
    (Path(data.facts.entry) / "seal.json").unlink()
    again = opened(spec)
    assert data.train[3] == again.train[3]


def test_what_changes_samples_changes_the_entry_and_nothing_else_does(words, tmp_path):
    key = Path(ready(compose(words)).entry).name
    same = [*words, "train.lr=1e-5", "seed=3", "topology.replicas=3", "data.scorer=null"]
    assert Path(ready(compose(same)).entry).name == key
    for other in (
        ["data.max_tokens=64"],
        ["data.seed=5"],
        ["data.n_eval=3"],
        ["model.chat_template='{{ messages }}'"],
    ):
        assert known(compose([*words, *other])) is None
    write(Path(words[1].removeprefix("data=")), rows(ROWS + 1))
    assert known(compose(words)) is None


def test_runs_that_begin_at_once_prepare_once(words, monkeypatch):
    spec, made, errors = compose(words), [], []
    original = readying.kitchen_of
    monkeypatch.setattr(readying, "kitchen_of", lambda spec: (made.append(1), original(spec))[1])

    def one():
        try:
            ready(spec)
        except Exception as error:  # noqa: BLE001  (raised again below)
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert (errors, len(made)) == ([], 1)
    assert [each.name for each in cache.folder().iterdir() if each.name.startswith(".making")] == []


def test_a_place_that_takes_nothing_is_named(words, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "mine.jsonl" / "prepared")
    with pytest.raises(MachineError, match=r"cannot keep the prepared data in .*XDG_CACHE_HOME"):
        ready(compose(words))


def test_the_launcher_keeps_what_it_has_shown_in_the_runs_directory(words, tmp_path):
    request = RunRequest.read([*words, f"runs_dir={tmp_path / 'runs'}"])
    paths = request.settle(datetime(2026, 11, 30))
    report = json.loads(paths.data_report.read_text())
    assert report["rows"]["read"] == ROWS
    assert report["first"]["pieces"][-2][1] is True
    assert any("40 read, 40 kept" in note for note in request.notes())
    assert request.plan(paths).hub.samples == request.n_train == ROWS - 6
    assert RunRequest.of(paths).fingerprint == request.fingerprint
    assert opened(request.spec, paths).fingerprint() == request.fingerprint


def test_a_dry_run_reads_the_rows_and_tokenises_none(words, monkeypatch):
    monkeypatch.setattr("tsugi_cli.launch.request.prepare", lambda spec, onlooker: pytest.fail("prepared"))
    assert RunRequest.read(words, dry_run=True).n_train == ROWS - 6
    path = Path(words[1].removeprefix("data="))
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(DataError, match=r"mine\.jsonl:41"):
        RunRequest.read(words, dry_run=True)


def test_preview_shows_what_is_trained_and_special_tokens(words, capsys):
    found = previewed(compose(words), 2)
    assert [each["pieces"][1] for each in found["samples"]] == [[f"It is {n}.<|end|>", True] for n in (0, 1)]
    said = io.StringIO()
    assert preview(words, 1, Answer(said)) == 0
    assert "[[It is 0.<|end|>]]" in said.getvalue()
    told = io.StringIO()
    preview(words, 1, Answer(said, told))
    assert json.loads(told.getvalue())["samples"][0]["supervised_tokens"] == 9


def test_check_says_what_became_of_the_rows(words):
    said = io.StringIO()
    assert check(words, True, Answer(said)) == 0
    assert "40 read, 40 kept" in said.getvalue()
    told = io.StringIO()
    check(words, True, Answer(said, told))
    assert json.loads(told.getvalue())["samples"] == {"train": 34, "eval": 4, "test": 2}


@pytest.mark.parametrize(("vocabulary", "bytes_each"), [(1 << 16, 2), ((1 << 16) + 1, 4)])
def test_the_largest_token_of_every_vocabulary_is_read_back(tmp_path, vocabulary, bytes_each):
    row = Row(messages=[], file="mine.jsonl", line=1)
    columns = Columns()
    columns.add(row, Sample([0, vocabulary - 1], ((1, 2),)))
    with Writer(tmp_path / "train.arrow", schema_of("train", vocabulary)) as table:
        table.columns(columns)
    (batch,) = batches(tmp_path / "train.arrow")
    assert batch.to_pylist()[0]["ids"] == [0, vocabulary - 1]
    assert batch.column("ids").type.value_type.bit_width == 8 * bytes_each
