"""The exchange as a process of its own: started, counted, killed and started again, and ended with its owner."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from tests.exchange.support import HUB, MEMBERS, RUN, mean_of, member, part, round_of
from tests.support import await_true
from tsugi_cli.launch import exchange_process
from tsugi_cli.launch.exchange_process import ExchangeProcess
from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.errors import MachineError
from tsugi_kpool.exchange.process import Orders, Report

pytestmark = pytest.mark.timeout(120)


class Heard:
    """What an exchange's owner is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.refused: dict[Kind, int] = {}
        self.failed: list[str] = []

    def count(self, kind: Kind, times: int) -> None:
        self.refused[kind] = self.refused.get(kind, 0) + times


def orders(folder: Path) -> Orders:
    return Orders(str(folder), 3, HUB, MEMBERS, 8, RUN)


@pytest.fixture
def started():
    """Makes exchanges of this folder; all are ended with the test."""
    made: list[ExchangeProcess] = []

    def start(folder: Path, heard: Heard, port: int = 0) -> tuple[ExchangeProcess, int]:
        made.append(
            process := ExchangeProcess(
                "127.0.0.1", port, orders(folder), heard.said.append, heard.count, heard.failed.append
            )
        )
        return process, process.start()

    yield start
    for process in made:
        process.stop()


def test_killed_it_goes_on_at_the_same_port_from_its_books(
    tmp_path: Path, started: Callable[..., tuple[ExchangeProcess, int]]
) -> None:
    heard = Heard()
    exchange, port = started(tmp_path, heard)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    await_true(lambda: heard.refused == {Kind.HANDSHAKE: 1}, "a refusal that is reported")
    assert not any(HUB in word or MEMBERS in word for word in psutil.Process(exchange.pid).cmdline())
    clients = [member(port, replica) for replica in range(3)]
    first = round_of(clients, 1)
    await_true(lambda: exchange.report.rounds == 1, "a round that is reported")
    assert exchange.report.received > 3 * 600
    assert exchange.pid is not None
    before = exchange.pid
    os.kill(before, signal.SIGKILL)
    second = round_of(clients, 2)
    assert exchange.pid != before
    assert ["SIGKILL" in text for text in heard.said] == [True]
    assert not np.array_equal(mean_of(part(1), first[0]), mean_of(part(2), second[0]))
    exchange.stop()
    assert not psutil.pid_exists(exchange.pid)
    assert heard.failed == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_taken_port_and_a_folder_that_cannot_be_are_said_by_name(
    tmp_path: Path, started: Callable[..., tuple[ExchangeProcess, int]]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            started(tmp_path, Heard(), port)
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"cannot keep its rounds in .*file"):
        started(tmp_path / "file", Heard())


def test_a_process_that_never_listens_is_ended_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_process, "COMMAND", (sys.executable, "-c", "import time; time.sleep(600)"))
    monkeypatch.setattr(exchange_process, "START_S", 0.2)
    heard = Heard()
    exchange = ExchangeProcess("127.0.0.1", 0, orders(tmp_path), heard.said.append, heard.count, heard.failed.append)
    with pytest.raises(MachineError, match="did not start"):
        exchange.start()
    assert exchange.pid is not None
    assert not psutil.pid_exists(exchange.pid)


def test_one_that_is_just_being_started_again_ends_with_its_owner(
    tmp_path: Path, started: Callable[..., tuple[ExchangeProcess, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange, _ = started(tmp_path, Heard())
    again, begin = threading.Event(), exchange._begin

    def late() -> Report:
        again.set()
        exchange._stopping.wait(60)
        return begin()

    monkeypatch.setattr(exchange, "_begin", late)
    assert exchange.pid is not None
    first = exchange.pid
    os.kill(first, signal.SIGKILL)
    assert again.wait(60)
    exchange.stop()
    assert exchange.pid != first
    assert not psutil.pid_exists(exchange.pid)


FORGETFUL = """
import pathlib, sys
orders = sys.stdin.readline()
told = pathlib.Path(sys.argv[1])
life = len(list(told.iterdir()))
(told / str(life)).write_text(orders)
print('{"port":1}', flush=True)
if life == 0:
    print('{"port":1,"behind":"No space left on device","unwritten":{"2":[1,5]}}', flush=True)
    sys.exit(3)
sys.stdin.read()
"""


def test_what_was_on_no_disk_is_told_to_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else knows that members may have a result: the process that has made it says so before they do."""
    told = tmp_path / "lives"
    told.mkdir()
    monkeypatch.setattr(exchange_process, "COMMAND", (sys.executable, "-I", "-c", FORGETFUL, str(told)))
    heard = Heard()
    exchange = ExchangeProcess("127.0.0.1", 0, orders(tmp_path), heard.said.append, heard.count, heard.failed.append)
    exchange.start()
    try:
        await_true(lambda: (told / "1").exists() and (told / "1").read_text().endswith("\n"), "another process", 60)
    finally:
        exchange.stop()
    lives = [msgspec.json.decode((told / life).read_text(), type=Orders) for life in "01"]
    assert [each.lost for each in lives] == [{}, {2: (1, 5)}]
    assert heard.said[0].endswith("No space left on device")
    assert heard.said[2].startswith("the round that was going out, and what coding had lost of 1 adapters' means")
