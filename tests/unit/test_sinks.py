"""Sinks: each is told everything, one that fails costs nobody else anything, and trackers get the fleet's figures."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from types import SimpleNamespace

import pytest

from tests.pictures import fleet
from tests.support import hub_plan
from tsugi_cli.config.compose import compose, to_tree
from tsugi_cli.record import track, tracking
from tsugi_cli.record.sinks import SinkError, Sinks
from tsugi_cli.record.track import Track, figures
from tsugi_kpool.core.events import SinkFailed
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.errors import ConfigError


class Heard:
    def __init__(self, name: str, fails: type[Exception] | None = None) -> None:
        self.name, self._fails, self.told = name, fails, []

    def _tell(self, what: object) -> None:
        self.told.append(what)
        if self._fails is not None:
            raise self._fails("the disk is full")

    def event(self, event):
        self._tell(event["event"])

    def status(self, status):
        self._tell(status.stage)

    def close(self):
        self._tell("closed")


@pytest.fixture
def status():
    return fleet_status(Hub(hub_plan(), 0.0), 1.0)


@pytest.mark.parametrize("fails", [OSError, SinkError])
def test_a_sink_that_fails_is_said_once_and_costs_the_others_nothing(status, fails):
    said: list[SinkFailed] = []
    first, broken, last = Heard("files"), Heard("a tracker", fails), Heard("the console")
    sinks = Sinks([first, broken], said.append)
    sinks.add(last)
    sinks.event({"event": "joined"})
    sinks.status(status)
    sinks.close()
    assert first.told == last.told == ["joined", "gathering", "closed"]
    assert broken.told == ["joined"]
    assert said == [SinkFailed("a tracker", "the disk is full")]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "logs").mkdir()
    return tmp_path


def test_trackers_get_settings_figures_and_evaluations(run, status, monkeypatch):
    """A process takes them; its tracker stands in for accelerate's."""
    program = (
        "import json, sys\nfrom pathlib import Path\nfrom tsugi_cli.record import tracking\n"
        "class Fake:\n"
        "    def log(self, values, step): out.write(json.dumps([step, values]) + chr(10))\n"
        "    def finish(self): out.write('finished' + chr(10)); out.close()\n"
        f"out = Path({str(run / 'told')!r}).open('w')\n"
        "def opened(name, first):\n"
        "    out.write(json.dumps([name, first['project'], first['config']['train']['lr']]) + chr(10))\n"
        "    return Fake()\n"
        "tracking.opened = opened\nsys.exit(tracking.main())\n"
    )
    real = track.subprocess.Popen
    monkeypatch.setattr(
        track.subprocess, "Popen", lambda command, **more: real([sys.executable, "-c", program], **more)
    )
    sink = Track(["tensorboard"], run, "mine", to_tree(compose(["model=tiny", "train.lr=3e-3"])))
    sink.start()
    sink.status(SimpleNamespace(elapsed_s=0.0, samples_done=7, loss=2.0, tokens=9, tokens_per_s=1.0, replicas=(),
                                version=1, goodput=None, tax_recovered=None))  # fmt: skip
    sink.event({"event": "fired"})
    for share in ({"loss_sum": 30.0, "loss_tokens": 10}, {"loss_sum": 10.0, "loss_tokens": 10}):
        sink.event({"event": "evaluated", "stage": "base", "sums": share})
    sink.close()
    lines = (run / "told").read_text().splitlines()
    assert json.loads(lines[0]) == ["tensorboard", "mine", 3e-3]
    assert json.loads(lines[1])[1]["train/loss"] == 2.0
    assert [json.loads(line) for line in lines[2:4]] == [
        [7, {"eval/base_loss": loss, "eval/base_perplexity": pytest.approx(math.exp(loss))}] for loss in (3.0, 2.0)
    ]
    assert lines[4:] == ["finished"]


def test_a_tracker_that_dies_is_said_with_its_last_words(run, status, monkeypatch):
    program = "import sys; sys.stdin.readline(); sys.exit('no network')"
    real = track.subprocess.Popen
    monkeypatch.setattr(
        track.subprocess, "Popen", lambda command, **more: real([sys.executable, "-c", program], **more)
    )
    sink = Track(["tensorboard"], run, "mine", {})
    sink.start()
    with pytest.raises(SinkError, match=r"no network \(log: .*tracking.log\)"):
        sink.close()


def test_a_tracker_that_is_behind_gets_whole_lines_later(run, monkeypatch):
    """More than a pipe holds, written while nobody reads: nobody waits, and no line is torn."""
    go, told = run / "go", run / "told"
    program = (
        "import json, sys, time\nfrom pathlib import Path\n"
        f"go, told = Path({str(go)!r}), Path({str(told)!r})\n"
        "while not go.exists(): time.sleep(0.01)\n"
        "told.write_text(json.dumps([json.loads(line).get('step') for line in sys.stdin]))\n"
    )
    real = track.subprocess.Popen
    monkeypatch.setattr(
        track.subprocess, "Popen", lambda command, **more: real([sys.executable, "-c", program], **more)
    )
    sink = Track(["tensorboard"], run, "mine", {})
    sink.start()
    for step in range(40):
        sink._tell({"step": step, "values": {"x" * 20_000: 1.0}})
    go.touch()
    sink.close()
    assert json.loads(told.read_text()) == [None, *range(40)]


def test_a_large_fleet_is_told_without_its_replicas():
    assert "replica_1/lag_s" in figures(fleet(2))
    assert not any(name.startswith("replica_") for name in figures(fleet(track.REPLICAS + 1)))


def test_tensorboard_reads_what_a_run_tells(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = {"trackers": ["tensorboard"], "run": str(run), "project": "mine", "config": {"a": {"b": [1]}, "c": None}}
    facts = [{"step": step, "values": {"train/loss": 3.0 - step}} for step in (1, 2)]
    lines = [json.dumps(each) + "\n" for each in (first, *facts)]
    import io

    assert tracking.main(io.StringIO("".join(lines))) == 0
    found = EventAccumulator(str(run / "tracking" / run.name))
    found.Reload()
    assert [(each.step, each.value) for each in found.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]


def test_figures_leave_out_what_is_not_known(status):
    assert "train/loss" not in figures(status)
    assert figures(status)["fleet/replicas"] == 0.0


def test_a_tracker_without_its_package_is_said_before_a_start(monkeypatch):
    monkeypatch.setattr("tsugi_cli.config.files.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"track=wandb needs one more package: pip install 'tsugi\[wandb\]'"):
        compose(["model=tiny", "track=wandb"])
    with pytest.raises(ConfigError, match=r"found .tensorbord., allowed: tensorboard, .*did you mean tensorboard"):
        compose(["model=tiny", "track=tensorbord"])


KEPT = {
    "trackio": (
        "trackio/mine.db",
        "select run_name, step, json_extract(metrics, '$.\"eval/loss\"') from metrics order by step",
    ),
    "mlflow": ("mlflow.db", "select name, step, value from metrics join runs using (run_uuid) order by step"),
}
"""The data base of a tracker without network -> what the figures of its runs are asked with."""


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_tracker_without_network_keeps_a_run_by_its_name(name, run, monkeypatch, tmp_path):
    """In a process of its own, as in a run: these libraries leave threads behind."""
    pytest.importorskip(name)
    first = {"trackers": [name], "run": str(run), "project": "mine", "config": {"a": {"b": [1]}, "c": None}}
    facts = [first, {"step": 1, "values": {"eval/loss": 2.5}}, {"step": 2, "values": {"eval/loss": 2.0}}]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    offline = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "tsugi_cli.record.tracking"], input="".join(json.dumps(each) + "\n" for each in facts),
        env={**os.environ, **offline}, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    if name == "wandb":
        assert list((run / "wandb").glob("offline-run-*/run-*.wandb"))
        return
    file, query = KEPT[name]
    with closing(sqlite3.connect(tmp_path / file)) as base:
        rows = base.execute(query).fetchall()
    assert [(named, step, value) for named, step, value in rows] == [
        (run.name, 1, 2.5), (run.name, 2, 2.0),
    ]  # fmt: skip
