"""A run that was recorded is shown again; torn, missing and strange files are one clear message or left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.pictures import NAN, event, fleet, replica
from tsugi_cli.console.plain import PlainConsole
from tsugi_cli.console.replay import Frame, Records, moments, replay
from tsugi_cli.record.recorder import Recorder
from tsugi_cli.record.records import Tail
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.record.status_log import BYTES_PER_S, EVERY_S, ROWS, StatusPacing, compact, restore
from tsugi_kpool.core.messages import FleetStatus, Slowness
from tsugi_kpool.errors import ConfigError

BEGAN = datetime(2026, 10, 5, 14, 0, 0, tzinfo=timezone(timedelta(hours=2)))


def stamp(second: float) -> str:
    return (BEGAN + timedelta(seconds=second)).isoformat(timespec="milliseconds")


def write(path: Path, *records: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    """Sixty seconds of a run: a status every ten, a step every second, a round every five."""
    paths = RunPaths(tmp_path)
    for second in range(0, 61, 10):
        status = fleet(elapsed_s=float(second), samples_done=second * 2, version=second // 5)
        write(paths.status, {"time": stamp(second), **compact(status)})
    for second in range(61):
        micro = {"replica": 0, "steps": 101 + second, "samples": 201 + second, "tokens": 8000, "loss": 1.0}
        write(paths.metrics, {"time": stamp(second + 0.5), **micro, "step_s": 0.4})
        if second % 5 == 0:
            write(paths.events, {**event("fired", round=second // 5 + 1, reason="count"), "time": stamp(second)})
            done = event("committed", round=second // 5 + 1, version=second // 5 + 1, seconds=0.3)
            write(paths.events, {**done, "time": stamp(second + 0.7)})
    write(paths.events, {**event("finished", version=13), "time": stamp(61.7)})
    return paths


def frames(paths: RunPaths, frame_s: float = 1.0) -> list[FleetStatus]:
    found = moments(Records(paths), "run", frame_s)
    return [moment.status for moment in found if isinstance(moment, Frame)]


# --- status.jsonl -----------------------------------------------------------------------------------------


def test_a_status_comes_back_as_it_was_but_for_rounding() -> None:
    slowness = Slowness(3.8123456, 61.0, 0.41, 1.56, "step", "compute", ("CPU steal 62 %",))
    rows = (replica(0), replica(1, slowness=slowness, drift=-0.7412345, lag_s=44.612345))
    status = fleet(replicas=rows, health="degraded", health_reasons=("x",), eps=0.02, variance=0.03241, joined=2)
    record = json.loads(json.dumps(compact(status)))
    again = restore(record)
    assert again is not None
    assert again.replicas[1].slowness is not None
    assert again.replicas[1].slowness.cause == "compute"
    assert again.replicas[1].lag_s == pytest.approx(44.61)
    flat = {"replicas": ()}
    assert msgspec.structs.replace(again, **flat) == msgspec.structs.replace(status, **flat)


def test_what_is_no_number_is_null_and_costs_nothing_else() -> None:
    status = fleet(loss=NAN, tokens_per_s=float("inf"), replicas=(replica(0, tokens_per_s=NAN, host="node-a"),))
    record = json.loads(json.dumps(compact(status), allow_nan=False))
    again = restore(record)
    assert again is not None
    assert (again.loss, again.tokens_per_s) == (None, 0.0)
    assert (again.replicas[0].host, again.replicas[0].tokens_per_s) == ("node-a", 0.0)


def test_records_of_other_versions_are_read_as_far_as_they_go() -> None:
    record = compact(fleet())
    record["new_in_a_later_version"] = 1
    record["replicas"][0]["and_this"] = [2]
    del record["rounds"]
    assert restore(record) is not None
    assert restore({"replicas": [{}]}) is None
    assert restore({"replicas": 3, "stage": 7}) is None
    assert restore({"replicas": ["x"]}) is None


@pytest.mark.parametrize("replicas", [2, 8, 64, 1000])
def test_an_hour_takes_at_most_its_budget(replicas: int, tmp_path: Path) -> None:
    pace, size, records = StatusPacing(), 0, 0
    status = fleet(replicas)
    for turn in range(3600 * 4):
        now = msgspec.structs.replace(status, elapsed_s=turn / 4)
        if pace.due(now):
            line = json.dumps({"time": stamp(turn / 4), **compact(now)}) + "\n"
            pace.written(now, len(line))
            size, records = size + len(line), records + 1
    assert size <= BYTES_PER_S * 3600 * 1.01
    assert records <= 3600 / EVERY_S
    assert records >= 3600 / 60, "one a minute at least"


def test_of_a_large_fleet_the_interesting_replicas_are_kept_and_all_are_counted() -> None:
    rows = [replica(i) for i in range(1000)]
    rows[777] = replica(777, state="silent", silent_s=9.0)
    again = restore(compact(fleet(replicas=tuple(rows))))
    assert again is not None
    assert (len(again.replicas), again.joined) == (ROWS, 1000)
    assert 777 in [row.replica for row in again.replicas]


def test_the_recorder_keeps_a_status_every_few_seconds_and_each_new_stage(tmp_path: Path) -> None:
    recorder = Recorder(RunPaths(tmp_path))
    for turn in range(40):
        recorder.status(fleet(elapsed_s=turn / 4, stage="training" if turn < 39 else "draining"))
    recorder.close()
    kept = [restore(record) for record in Tail(tmp_path / "status.jsonl").read()]
    times = [status.elapsed_s for status in kept if status]
    assert times[0] == 0.0
    assert times[-1] == pytest.approx(9.75)
    assert all(b - a >= EVERY_S for a, b in pairwise(times[:-1]))


# --- reading ----------------------------------------------------------------------------------------------


def test_a_tail_reads_on_where_it_ended_and_leaves_a_torn_line_for_later(tmp_path: Path) -> None:
    path, tail = tmp_path / "x.jsonl", Tail(tmp_path / "x.jsonl")
    assert list(tail.read()) == []
    path.write_bytes(b'{"a": 1}\n\xff\xfe\n[2]\n\n{"b"')
    assert list(tail.read()) == [{"a": 1}]
    assert (tail.unreadable, tail.torn) == (2, True)
    with path.open("ab") as file:
        file.write(b": 2}\n")
    assert list(tail.read()) == [{"b": 2}]
    assert not tail.torn


# --- replay -----------------------------------------------------------------------------------------------


def test_between_two_records_steps_and_rounds_go_on(run: RunPaths) -> None:
    shown = frames(run)
    assert [status.elapsed_s for status in shown] == sorted(status.elapsed_s for status in shown)
    assert len(shown) > 50
    steps = [status.replicas[0].steps for status in shown]
    assert len(set(steps)) > 50
    assert {status.version for status in shown} == set(range(1, 14))
    assert (shown[-1].stage, shown[-1].loss) == ("finished", 1.0)


def test_without_status_jsonl_the_rest_says_what_it_can(run: RunPaths) -> None:
    run.status.unlink()
    write(run.root / "first.jsonl", {**event("joined", replica=0, host="node-a", pid=1), "time": stamp(-1)})
    run.events.write_text((run.root / "first.jsonl").read_text() + run.events.read_text())
    last = frames(run)[-1]
    assert (last.stage, last.version, last.replicas[0].host) == ("finished", 13, "node-a")
    assert last.replicas[0].steps == 161
    assert last.elapsed_s == pytest.approx(62.7)


def test_a_pipe_gets_plain_lines_and_nobody_sleeps(run: RunPaths) -> None:
    out = StringIO()
    with PlainConsole(out) as console:
        lost = replay(run, console, None, False, lambda seconds: pytest.fail("slept"))
    lines = out.getvalue().splitlines()
    assert lost == ""
    assert sum("/448 samples" in line for line in lines) >= 6
    assert "finished at version 13" in out.getvalue()


def test_speed_says_how_long_it_takes(run: RunPaths) -> None:
    for speed, seconds in ((10.0, 6.17), (1.0, 61.7), (None, 6.0)):
        slept: list[float] = []
        replay(run, PlainConsole(StringIO()), speed, True, slept.append)
        assert sum(slept) == pytest.approx(seconds, rel=0.05)


def test_torn_and_strange_lines_are_left_out_and_counted(run: RunPaths) -> None:
    with run.status.open("a") as file:
        file.write('{"time": "2026-10-05T14:00:59+02:00", "stage": 5}\nnonsense\n{"time": "2026')
    write(run.metrics, {"replica": "x"}, {"time": "never"}, {"replica": 0, "steps": None})
    with run.events.open("a") as file:
        file.write('{"event"')
    lost = replay(run, PlainConsole(StringIO()), None, False, lambda seconds: None)
    assert lost.startswith("3 lines of")


def test_nothing_to_show_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds none of status\.jsonl, events\.jsonl, metrics\.jsonl"):
        replay(RunPaths(tmp_path), PlainConsole(StringIO()), None, False, lambda seconds: None)
    (tmp_path / "events.jsonl").touch()
    with pytest.raises(ConfigError, match="nothing has been recorded yet"):
        replay(RunPaths(tmp_path), PlainConsole(StringIO()), None, False, lambda seconds: None)


def test_no_record_raises(run: RunPaths) -> None:
    strange = [{}, {"event": "joined"}, {"event": ["x"]}, {"replica": 0}, {"replicas": None}, {"event": None}]
    for path in (run.status, run.events, run.metrics):
        write(path, *({"time": stamp(62), **record} for record in strange))
    assert frames(run)[-1].stage == "finished"
    out = StringIO()
    replay(run, PlainConsole(out), None, False, lambda seconds: None)
    assert "finished at version 13" in out.getvalue()
