"""Rows of a run: packed or mixed when data are prepared, the same for everybody who opens them."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tsugi_cli.config.compose import compose, resolved_yaml
from tsugi_cli.data.report import lines
from tsugi_cli.finetune.data import DataOrder, group_of
from tsugi_cli.finetune.ready import opened, ready
from tsugi_kpool.errors import ConfigError

ROWS = 60


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A cache of this module's own, with the model in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield patch


def write(path, names):
    record = [
        {"prompt": f"Who is {name}?", "completion": f"It is {name}. " * (1 + at % 7)} for at, name in enumerate(names)
    ]
    path.write_text("".join(f"{json.dumps(each)}\n" for each in record))
    return path


@pytest.fixture
def words(home, tmp_path):
    path = write(tmp_path / "mine.jsonl", [f"Ada {at}" for at in range(ROWS)])
    return ["model=tiny", f"data={path}", "data.n_eval=4", "data.n_test=0", "data.max_tokens=300"]


def spans_of(row):
    """Each sample of a row: its ids, and the trained positions in it."""
    found, at = Counter(), 0
    for length in row.lengths:
        spans = tuple((start - at, stop - at) for start, stop in row.spans if at <= start < at + length)
        found[tuple(row.ids[at : at + length]), spans] += 1
        at += length
    return found


def test_packed_rows_have_the_same_samples_and_the_same_supervised_tokens(words):
    single, packed = opened(compose(words)).train, opened(compose([*words, "data.packing=true"])).train
    assert (single.packed, packed.packed) == (False, True)
    assert len(packed) < len(single) / 2
    apart = sum((spans_of(row) for row in single), Counter())
    assert sum((spans_of(row) for row in packed), Counter()) == apart
    assert sorted(each for row in packed for each in row.members) == list(range(len(single)))
    assert packed.tokens() == [row.tokens for row in packed]
    assert packed.lengths() == [len(row.ids) for row in packed]
    assert max(packed.lengths()) <= 300
    assert sum(packed.tokens()) == sum(single.tokens())
    assert packed[-1] == packed[len(packed) - 1]


def test_leases_count_rows_and_the_report_counts_samples(words):
    facts = ready(compose([*words, "data.packing=true"]))
    layout = facts.report["layout"]
    assert facts.n_train == layout["rows"] < layout["samples"] == facts.report["samples"]["train"]
    assert 0.8 < layout["filled"] <= 1
    (said,) = [line for line in lines(facts.report) if line.startswith("packing: ")]
    assert said.startswith(f"packing: {layout['samples']} samples share {facts.n_train} rows of 300 tokens, ")


def test_another_seed_is_other_rows_and_another_fingerprint(words):
    prints = {
        opened(compose([*words, *more])).fingerprint()
        for more in ([], ["data.packing=true"], ["data.packing=true", "data.seed=7"])
    }
    assert len(prints) == 3


def test_what_carries_a_state_is_refused_when_data_are_prepared(words, monkeypatch):
    from transformers import AutoConfig

    monkeypatch.setattr("tsugi_cli.finetune.ready.load_config", lambda model: AutoConfig.for_model("mamba"))
    with pytest.raises(ConfigError, match=r"data.packing=true: a model of the type mamba"):
        ready(compose([*words, "data.packing=true", "data.n_eval=3"]))


@pytest.mark.parametrize("packing", ["false", "true"])
def test_a_mixture_trains_on_shares_of_its_files(home, tmp_path, packing):
    many = write(tmp_path / "many.jsonl", [f"Bob {at}" for at in range(90)])
    few = write(tmp_path / "few.jsonl", [f"Cy {at}" for at in range(10)])
    words = [
        "model=tiny",
        f"data.mix=[{many}:0.5,{few}:0.5]",
        "data.n_eval=0",
        "data.n_test=0",
        "data.max_tokens=300",
    ]
    spec = compose([*words, f"data.packing={packing}"])
    data = opened(spec)
    times = Counter(member for row in data.train for member in row.members)
    assert sorted(times.values()) == [1] * 50 + [5] * 10
    assert [(each["there"], each["trained"]) for each in data.facts.report["layout"]["mix"]] == [(90, 50), (10, 50)]
    assert f"mix: 50 samples a pass from {few}, which has 10" in lines(data.facts.report)
    assert data.facts.n_train == len(data.train)


def test_the_order_by_length_is_a_new_permutation_for_every_epoch():
    lengths = [1 + at % 9 for at in range(50)]
    order = DataOrder(seed=3, n_train=50, lengths=lengths, group=4)
    first, second = ([order(epoch * 50 + at) for at in range(50)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first == [DataOrder(3, 50, lengths, 4)(at) for at in range(50)]
    assert [DataOrder(3, 50, lengths, 1)(at) for at in range(50)] == [DataOrder(3, 50)(at) for at in range(50)]


def test_a_resumed_run_keeps_its_order_with_another_micro_batch(tmp_path):
    """Positions of another order would be other rows: some twice, others never."""
    file = tmp_path / "run.yaml"
    file.write_text(resolved_yaml(compose(["model=tiny", "train.micro_batch=4"])), encoding="utf-8")
    assert group_of(compose([f"recipe={file}", "train.micro_batch=2"], resumes=True)) == 4
    earlier = "".join(line for line in file.read_text().splitlines(True) if "group_by_length" not in line)
    file.write_text(earlier, encoding="utf-8")
    assert group_of(compose([f"recipe={file}"], resumes=True)) == 1, "a run from before the setting had none"


def test_a_micro_batch_of_one_row_and_packed_rows_are_not_grouped():
    assert group_of(compose(["model=tiny", "train.micro_batch=1"])) == 1
    assert group_of(compose(["model=tiny", "train.micro_batch=4"])) == 4
    assert group_of(compose(["model=tiny", "train.micro_batch=4", "data.packing=true"])) == 1
