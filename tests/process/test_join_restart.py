"""The hub dies under replicas that `tsugi join` brought from elsewhere, and another one goes on from its journal."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.test_finetune import TINY, WAIT_S, events, start
from tests.process.test_hub_away import committed_a_round
from tests.process.test_join import digest, join, run_dir
from tests.process.test_join import started as processes  # noqa: F401  (a fixture)
from tests.support import await_true, free_port
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.journal import parse
from tsugi_kpool.core.records import Joined, SlotGiven
from tsugi_kpool.errors import SidebandError
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.keys import Role
from tsugi_kpool.sideband.observer import ask_status

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]
SLOW = "fault.slow=[0:6.0,1:6.0]"


class Run:
    """A run whose hub and replicas are processes of this test, each in a directory of its own."""

    def __init__(self, root: Path, started: list[subprocess.Popen[str]], *settings: str) -> None:
        self._root, self._started = root, started
        # The next hub needs the port, which the system would hand out to others while there is no hub.
        port = f"sideband.port={free_port()}"
        self.hub = self._keep(start("hub", *TINY, *settings, port, cwd=self._folder("hub")))
        self.paths = RunPaths(run_dir(root / "hub", self.hub))
        keys = sideband_keys.load(self.paths.keys)
        self._address, self._secret = keys.address, token.write(keys, Role.MEMBER)

    def join(self, name: str) -> subprocess.Popen[str]:
        return self._keep(join(self._address, self._secret, cwd=self._folder(name)))

    def adapter(self, name: str) -> str:
        return digest((self._root / name / "runs" / "latest").resolve())

    def kill_hub(self) -> None:
        self.hub.kill()
        self.hub.communicate()

    def start_hub_again(self) -> None:
        self.hub = self._keep(start("hub", "--run", str(self.paths.root), cwd=self._root / "hub"))
        await_true(self._answers, "an answer of the next hub")

    def records(self) -> list:
        if not self.paths.journal.exists():
            return []
        return [entry.record for entry in parse(self.paths.journal.read_bytes()).entries]

    def await_record(self, kind: type, count: int) -> None:
        await_true(
            lambda: sum(isinstance(each, kind) for each in self.records()) >= count, f"{count} {kind.__name__}"
        )

    def _answers(self) -> bool:
        assert self.hub.poll() is None, self.hub.communicate()
        with contextlib.suppress(SidebandError):  # it is about to listen
            return ask_status(sideband_keys.load(self.paths.keys), 20.0) is not None
        return False

    def _folder(self, name: str) -> Path:
        (self._root / name).mkdir()
        return self._root / name

    def _keep(self, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        self._started.append(process)
        return process


@pytest.fixture
def begin(tmp_path, processes) -> Callable[..., Run]:  # noqa: F811
    return lambda *settings: Run(tmp_path, processes, *settings)


def ended(process: subprocess.Popen[str]) -> int:
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode in (0, 9, 130), out[-2000:] + err[-2000:]
    return process.returncode


def test_a_hub_that_is_killed_twice_finishes_with_the_same_replicas(begin):
    """While they gather, when one has joined and the other has a place and gets ready; and between two rounds."""
    run = begin("train.max_steps=80", SLOW, "evaluate.examples=0")
    first = run.join("a")
    run.await_record(Joined, 1)
    second = run.join("b")
    run.await_record(SlotGiven, 2)
    run.kill_hub()
    run.start_hub_again()
    await_true(lambda: committed_a_round(run.paths), "a round")
    run.kill_hub()
    time.sleep(2.0)  # the fault's length
    run.start_hub_again()
    assert [ended(each) for each in (first, second, run.hub)] == [0, 0, 0]
    assert run.adapter("a") == run.adapter("b")
    assert sorted(each.replica for each in run.records() if isinstance(each, SlotGiven)) == [0, 1]
    assert sum(isinstance(each, Joined) for each in run.records()) == 2, "nobody had to join again"
    assert json.loads(run.paths.summary.read_text())["samples"] == 160


def test_ctrl_c_frees_a_seat_before_the_run_begins_and_the_last_one_to_leave_ends_it_early(begin):
    """Who goes early leaves its seat to the next one. The next hub still knows the ticket, although its replica asks
    for no place any more. When the last one has gone, its work committed, the run says that it has not finished."""
    run = begin("train.max_steps=100000", SLOW)
    leaving = run.join("a")
    run.await_record(Joined, 1)
    leaving.send_signal(signal.SIGINT)
    assert ended(leaving) == 130
    joined = [run.join("b"), run.join("c")]
    await_true(lambda: committed_a_round(run.paths), "a round")
    run.kill_hub()
    run.start_hub_again()
    joined[0].send_signal(signal.SIGINT)
    assert ended(joined[0]) == 130
    joined[1].send_signal(signal.SIGINT)
    assert [ended(each) for each in (joined[1], run.hub)] == [130, 9]
    told = {event["event"] for event in events(run.paths.root)}
    assert {"seat_freed", "parting", "deserted"} <= told
    assert not {"interrupted", "finished"} & told, "nobody has stopped it, and its data are not used up"
    assert json.loads(run.paths.summary.read_text())["outcome"] == "interrupted"
