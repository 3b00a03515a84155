"""A user's builder and scorer, and the order of the data."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from tsugi_cli.bench.compare.command import bench
from tsugi_cli.config.compose import compose
from tsugi_cli.config.spec import Data
from tsugi_cli.data.rows import Row
from tsugi_cli.data.sources import BadRow
from tsugi_cli.finetune.data import DataOrder
from tsugi_cli.finetune.source import source_of
from tsugi_cli.launch.run import finetune
from tsugi_cli.record.answer import Answer
from tsugi_kpool.errors import ConfigError, DataError

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def made(data: Data) -> dict[str, list[Row]]:
    """What a builder makes; the first row that cannot be trained on is raised."""
    splits = {shard.part: list(shard) for shard in source_of(data).whole}
    for row in (row for rows in splits.values() for row in rows if isinstance(row, BadRow)):
        raise DataError(f"{row.place}: {row.reason}")
    return splits


def test_a_builder_that_does_not_exist_is_a_config_error():
    data = compose(["model=tiny"]).data
    with pytest.raises(ConfigError, match="cannot be imported"):
        made(replace(data, builder="no.such.module:build"))


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
    assert {part: len(rows) for part, rows in made(builders(":good")).items()} == {"train": 3, "eval": 1, "test": 1}


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
        (":half", DataError, "train:1: \\ud83d is half of a character"),
        (":number", DataError, "train:1: expected an object, found int"),
    ],
)
def test_a_builder_that_cannot_be_used_is_named_in_one_line(builders, name, error, said):
    data = builders(name)
    with pytest.raises(error) as caught:
        made(data)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert data.builder in str(caught.value)


def test_a_dry_run_runs_nothing_of_the_users_and_says_what_it_does_not_know(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leaves_a_mark.py").write_text(
        "from pathlib import Path\nPath('mark').touch()\ndef build(*sizes): 1 / 0\n"
    )
    words = ["model=tiny", "data.builder=leaves_a_mark:build", "data.n_train=70"]
    said = io.StringIO()
    assert finetune(words, True, True, Answer(said)) == 0
    bench([*words, "bench.methods=[kpool]", "bench.seeds=[0]"], True, True, Answer(said))
    assert not (tmp_path / "mark").exists()
    assert "70 training samples, as asked of leaves_a_mark:build: a dry run does not call it" in said.getvalue()
    with pytest.raises(DataError, match="raised ZeroDivisionError"):
        finetune(words, False, True, Answer(said))
    assert (tmp_path / "mark").exists()


def test_a_scorer_that_does_not_exist_is_said_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.scorer=no\.module:score: cannot be imported"):
        finetune(["model=tiny", "data.scorer=no.module:score"], False, True, Answer(io.StringIO()))
    assert not (tmp_path / "runs").exists()


def test_every_epoch_is_a_permutation_of_its_own():
    order = DataOrder(seed=3, n_train=20)
    first, second = [order(p) for p in range(20)], [order(p) for p in range(20, 40)]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first == [DataOrder(seed=3, n_train=20)(p) for p in range(20)]
