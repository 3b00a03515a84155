"""`tsugi sideband status` as a process, against a real hub: its exit codes, --json, and --watch until Ctrl-C."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from tests.pictures import fleet
from tests.support import hub_plan
from tests.unit.test_messages import BEAT
from tests.unit.test_replay import stamp, write
from tsugi_cli.console import status as status_command
from tsugi_cli.console.status import Question
from tsugi_cli.record.answer import Answer
from tsugi_cli.record.atomic import write_json
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.record.status_log import compact
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.messages import Beat, Failed, Hello
from tsugi_kpool.errors import SidebandError
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import Role, RunKeys

WAIT_S = 60
STEPS = 30
SILENT_S = 30.0
COMMAND = [sys.executable, "-m", "tsugi_cli.entry", "sideband", "status"]


@pytest.fixture(autouse=True)
def _patience(monkeypatch) -> None:
    """A command takes long to start on a busy machine: meanwhile nobody falls silent who is not to."""
    monkeypatch.setattr("tsugi_kpool.core.hub.status.SILENT_S", SILENT_S)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A hub of two replicas whose keys lie in tmp_path, as a run directory has them."""
    server = HubServer(hub_plan(min_replicas=1), RunKeys.generate(), lambda told: None)
    (tmp_path / "sideband").mkdir()
    sideband_keys.save(server.start("127.0.0.1", 0), tmp_path / "sideband" / "keys.json")
    yield server
    server.stop()


def join(server: HubServer, silent_s: float = 0.0, slow: float = 1.0) -> None:
    """Two replicas have trained for a while; replica 1 has not been heard for so long, or is so many times slower."""

    def act(state: Hub) -> None:
        now_s = time.monotonic()
        began_s = now_s - STEPS * slow
        for replica in (0, 1):
            state.receive(Hello(1, replica, "i", f"node-{replica}", 1, "c0ffee", "l"), began_s)
        beats = [
            (step * pace, replica, step) for replica, pace in ((0, 1.0), (1, slow)) for step in range(1, STEPS + 1)
        ]
        for at_s, replica, step in sorted(beats):
            late_s = silent_s if replica else 0.0
            state.receive(stepped(replica, step, at_s), began_s + at_s - late_s)
            state.tick(began_s + at_s)
        state.receive(stepped(0, STEPS, STEPS * slow), now_s)

    server.ask(act)


def stepped(replica: int, step: int, at_s: float) -> Beat:
    """The beat after this step, which has ended `at_s` seconds after the beginning."""
    figures = {"steps": step, "tokens": 100 * step, "worked": 150 * step, "step_s": at_s / step}
    times = {"busy_s": at_s, "trained_s": at_s, "stepped_s": at_s}
    return msgspec.structs.replace(BEAT, replica=replica, incarnation="i", pooled=(0,) * 4, **figures, **times)


def status(run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "--run", str(run), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)


def test_healthy_is_0(hub, tmp_path):
    join(hub)
    result = status(tmp_path)
    assert result.returncode == 0, result.stderr
    assert "node-1" in result.stdout
    assert "degraded" not in result.stdout


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ({"silent_s": 2 * SILENT_S}, "replica 1 (node-1) is silent"),
        ({"slow": 4.0}, "replica 1 (node-1) is slow, 4.0x, cause: compute"),
    ],
)
def test_degraded_is_10_and_says_why(hub, tmp_path, trouble, reason):
    join(hub, **trouble)
    result = status(tmp_path)
    assert result.returncode == 10, result.stderr
    assert f"degraded  {reason}" in result.stdout


def test_failed_run_is_10(hub, tmp_path):
    join(hub)
    hub.ask(lambda state: state.receive(Failed(9, 1, "i", "out of memory"), time.monotonic()))
    result = status(tmp_path)
    assert result.returncode == 10, result.stderr
    assert "the run has failed: out of memory" in result.stdout


def test_no_quorum_is_7(tmp_path):
    server = HubServer(hub_plan(min_replicas=2), RunKeys.generate(), lambda told: None)
    (tmp_path / "sideband").mkdir()
    sideband_keys.save(server.start("127.0.0.1", 0), tmp_path / "sideband" / "keys.json")
    try:
        join(server, silent_s=2 * SILENT_S)
        result = status(tmp_path, "--json")
    finally:
        server.stop()
    assert result.returncode == 7, result.stderr
    fleet = json.loads(result.stdout)
    assert (fleet["health"], fleet["min_replicas"]) == ("no quorum", 2)
    assert fleet["health_reasons"][0] == "1 of at least 2 replicas are live"


def test_address_and_token_are_all_that_another_machine_needs(hub, tmp_path):
    join(hub)
    keys = sideband_keys.load(tmp_path / "sideband" / "keys.json")
    asked = [*COMMAND, "--json", "--addr", str(keys.address), "--token", token.write(keys, Role.OBSERVER)]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = subprocess.run(asked, capture_output=True, text=True, timeout=WAIT_S, check=False, cwd=elsewhere)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["joined"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--addr", "tcp://h:1"], "go together"),
        (["--addr", "tcp://h:1", "--token", "tsugi1-x"], "token: mistyped"),
        (["--addr", "h", "--token", "tsugi1-x"], "expected the hub's address"),
    ],
)
def test_wrong_address_or_token_is_one_line_and_2(arguments, said):
    for more in ([], ["--watch"]):
        command = [*COMMAND, *arguments, *more]
        result = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert result.returncode == 2
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_unreachable_is_11(hub, tmp_path):
    hub.stop()
    result = status(tmp_path, "--timeout", "0.3")
    assert result.returncode == 11
    assert "no hub answers" in result.stderr
    assert "nobody listens there" in result.stderr


def ended(run: Path, stage: str, **changes: object) -> None:
    """The files of a run that has ended so, as its launcher leaves them."""
    paths = RunPaths(run)
    reasons = ("replica 1 (node-1) is silent",)
    last = fleet(stage=stage, health="degraded", health_reasons=reasons, **changes)
    for status in (fleet(health="degraded"), last):
        write(paths.status, {"time": stamp(0), **compact(status)})
    write_json(paths.summary, {"outcome": stage})


@pytest.mark.parametrize(
    ("stage", "code", "health"),
    [("finished", 0, "healthy"), ("interrupted", 0, "healthy"), ("failed", 10, "degraded")],
)
def test_a_run_that_has_ended_answers_from_its_directory(tmp_path, stage, code, health):
    ended(tmp_path, stage, samples_done=448)
    people, lines = io.StringIO(), io.StringIO()
    for ask in (status_command.show, status_command.watch):  # which ends by itself
        assert ask(Question(tmp_path, 0.3), Answer(people, lines)) == code
    for answer in map(json.loads, lines.getvalue().splitlines()):
        assert (answer["stage"], answer["health"], answer["samples_done"]) == (stage, health, 448)
    assert status_command.show(Question(tmp_path, 0.3), Answer(people)) == code
    assert stage in people.getvalue()
    assert "the run has ended" in people.getvalue()


def test_a_run_without_a_recorded_end_is_unreachable(tmp_path):
    ended(tmp_path, "training")
    with pytest.raises(SidebandError, match="does not listen yet, or never did"):
        status_command.show(Question(tmp_path, 0.3), Answer(io.StringIO()))


def test_watch_prints_json_lines_until_ctrl_c_and_exits_as_the_last_answer(hub, tmp_path):
    join(hub)
    command = [*COMMAND, "--run", str(tmp_path), "--watch", "--json", "--timeout", "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["health"] == "healthy"
        join_silent = time.monotonic() - 2 * SILENT_S
        hub.ask(lambda state: setattr(state.members[1], "heard_s", join_silent))
        answers = (json.loads(process.stdout.readline()) for _ in range(WAIT_S))
        assert any(answer["health"] == "degraded" for answer in answers)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 10
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_watch_waits_for_a_run_that_is_not_there_yet(tmp_path, monkeypatch):
    run, lines = tmp_path / "later", io.StringIO()

    def begins_and_ends(_pause_s: float) -> None:
        if not run.exists():
            run.mkdir()
            ended(run, "finished")

    clock = SimpleNamespace(sleep=begins_and_ends, monotonic=time.monotonic)
    monkeypatch.setattr(status_command, "time", clock)
    assert status_command.watch(Question(run, 0.3), Answer(io.StringIO(), lines)) == 0
    assert [json.loads(line)["health"] for line in lines.getvalue().splitlines()] == ["unreachable", "healthy"]


def test_watch_waits_for_a_hub_that_is_not_there(tmp_path):
    RunPaths(tmp_path).config.touch()
    command = [*COMMAND, "--run", str(tmp_path), "--watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["health"] == "unreachable"
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 11
