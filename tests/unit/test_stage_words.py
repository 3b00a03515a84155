"""What the screen says while nobody trains, what the plan says of the rows, and which run is the newest."""

from __future__ import annotations

import io
from datetime import datetime
from types import SimpleNamespace

import pytest

from tests.pictures import fleet, replica, shown
from tsugi_cli.console import attach
from tsugi_cli.console.panels import doing
from tsugi_cli.console.plain import plain_line
from tsugi_cli.data.report import parts_words
from tsugi_cli.launch import checkpointing
from tsugi_cli.launch.checkpointing import Checkpoints
from tsugi_cli.record import run_dir
from tsugi_cli.record.answer import Answer
from tsugi_cli.record.run_dir import RunPaths, create, find_run
from tsugi_cli.record.run_lock import RunLock
from tsugi_kpool.errors import ExitCode


def at(*states: str, **changes: object):
    rows = tuple(replica(number, state=state) for number, state in enumerate(states))
    return fleet(replicas=rows, **changes)


@pytest.mark.parametrize(
    ("states", "version", "words"),
    [
        (("loading", "loading"), 0, "loading the model"),
        (("loading", "evaluating"), 0, "loading the model (1 of 2 replicas)"),
        (("evaluating", "evaluating"), 0, "evaluating the base model"),
        (("evaluating", "done"), 12, "evaluating the trained model"),
        (("exporting", "left"), 12, "writing the adapter"),
        (("evaluating", "training"), 3, ""),
        (("draining", "draining"), 3, ""),
        (("done", "done"), 3, ""),
    ],
)
def test_what_is_done_while_nobody_trains_stands_in_the_place_of_the_bar(states, version, words):
    status = at(*states, version=version, samples_done=0)
    assert doing(status) == words
    if words:
        assert words in shown(status)
        assert plain_line(status) == f"  {words}"
        assert "0%" not in plain_line(status)


@pytest.mark.parametrize(
    ("held_out", "words"),
    [(1_064, "evaluating the trained model, 1,064 samples"), (1, "evaluating the trained model, 1 sample")],
)
def test_an_evaluation_says_over_how_many_samples(held_out, words):
    assert doing(at("evaluating", "evaluating", version=12, held_out=held_out)) == words
    assert "sample" not in doing(at("loading", "loading", held_out=held_out))


def test_a_pool_that_is_full_is_ready():
    assert "ready (27, needs 8)" in shown(fleet(pooled=27, target=8.0))
    assert "7 of 8 steps" in shown(fleet(pooled=7, target=8.0))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"train": 136, "eval": 64}, "200 rows: 136 train, 64 eval (data.n_eval)"),
        (
            {"train": 6, "eval": 64, "test": 0},
            "70 rows: 6 train, 64 eval (data.n_eval); less than half is left to train on",
        ),
        ({"train": 9_000, "test": 10}, "9,010 rows: 9,000 train, 10 test (data.n_test)"),
        ({"train": 5, "left_out": 90}, "5 rows: 5 train"),
    ],
)
def test_the_plan_says_what_the_rows_are_cut_into(parts, words):
    assert parts_words(parts, "rows") == words


def test_a_run_whose_launcher_has_gone_says_so(tmp_path):
    paths = RunPaths(tmp_path)
    paths.keys.parent.mkdir()
    paths.events.write_text('{"time": "2026-10-05T14:03:07.123+02:00", "event": "drained"}\n', encoding="utf-8")

    def seen() -> str:
        out = io.StringIO()
        assert attach.show(str(tmp_path), None, True, Answer(out)) == ExitCode.OK
        return out.getvalue()

    lock = RunLock(paths)
    lock.take()
    assert "is there and its hub does not answer" in seen()
    lock.release()
    assert "the launcher has gone without an end" in seen()
    paths.checkpoints.mkdir()
    assert f"to go on: tsugi finetune resume={tmp_path}" in " ".join(seen().split())


def test_a_benchmarks_inner_run_is_nobodys_newest(tmp_path, monkeypatch):
    monkeypatch.setattr(run_dir, "_pointer", lambda: tmp_path / "cache" / "latest-run")
    now = datetime(2026, 11, 30)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    mine = create(tmp_path / "runs", "mine", now)
    bench = tmp_path / "runs" / "20261130-bench"
    inner = bench / "runs" / "kpool-seed0"
    inner.mkdir(parents=True)
    (bench / run_dir.BENCH).write_text("{}", encoding="utf-8")
    made = create(inner, "tiny", now)
    found = find_run(None)
    assert found is not None
    assert found.root == mine.root
    assert (inner / "latest").resolve() == made.root


def test_the_first_checkpoint_comes_after_a_minute(tmp_path, monkeypatch):
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: clock.now_s)
    every = SimpleNamespace(train=SimpleNamespace(checkpoint=SimpleNamespace(every_s=300.0, keep=2)))
    every.topology = SimpleNamespace(replicas=2, here=None)
    request = SimpleNamespace(spec=every, resumed=None)
    checkpoints = Checkpoints(request, RunPaths(tmp_path), None, lambda told: None)  # type: ignore[arg-type]
    ordered = []
    for clock.now_s in range(0, 700, 20):
        checkpoints.turn(lambda: ordered.append(clock.now_s))
    assert ordered == [60, 360, 660]
