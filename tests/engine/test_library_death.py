"""A replica of a loop of one's own is killed or frozen: the others notice within seconds, and go on without it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.library import config, digest, our_threads, pooled_model, train
from tests.support import forking
from tsugi_kpool import plesio_init
from tsugi_kpool.errors import SidebandError

WAIT_S = 45.0
"""Less than a silent replica is given (session.SILENT_TIMEOUT_S): silence is not what tells."""
SETTINGS = {"trigger": "count", "count": 2, "min_steps": 1}
pytestmark = pytest.mark.timeout(200)


def victim(keys: str, number: int, end: signal.Signals) -> None:
    """Trains until it has been in a round, does nothing for a while, and is gone, or stands still."""
    settings = config(**SETTINGS)
    model = pooled_model(settings)
    handle = plesio_init(model, settings, replica=number, replicas=3, keys=keys)
    while handle.version < 2:
        train(model, 1, seed=number)
        time.sleep(0.02)
    os.kill(os.getpid(), end)


@contextlib.contextmanager
def struck(keys: Path, number: int, end: signal.Signals) -> Iterator[Any]:
    """The process of a replica to which this happens."""
    process = forking().Process(target=victim, args=(str(keys), number, end))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def stands_still(pid: int) -> bool:
    """Whether a process is stopped, or has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZ"
    except OSError:
        return True


class Others:
    """Two replicas as threads, which train until the third has gone and some rounds or `WAIT_S` longer."""

    def __init__(self, keys: Path, process: Any, numbers: tuple[int, int]) -> None:
        self.settings, self.keys, self.process = config(**SETTINGS), keys, process
        self.models = {number: pooled_model(self.settings) for number in numbers}
        self.versions: dict[int, int] = {}
        self.errors: dict[int, BaseException] = {}

    def run(self) -> None:
        threads = [threading.Thread(target=self._replica, args=(number,)) for number in self.models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * WAIT_S)
            assert not thread.is_alive()

    def _replica(self, number: int) -> None:
        model = self.models[number]
        try:
            with plesio_init(model, self.settings, replica=number, replicas=3, keys=self.keys) as handle:
                until = time.monotonic() + 3 * WAIT_S
                while not stands_still(self.process.pid) and time.monotonic() < until:
                    train(model, 1, seed=number)
                    time.sleep(0.02)
                version, until = handle.version, time.monotonic() + WAIT_S
                while handle.version < version + 3 and time.monotonic() < until:
                    train(model, 1, seed=number)
                    time.sleep(0.02)
                self.versions[number] = handle.version - version
        except BaseException as error:  # noqa: BLE001
            self.errors[number] = error


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_the_others_go_on_within_seconds(tmp_path, hooks_of_two_threads, caplog, end):
    """A frozen process keeps its connections, but ZeroMQ's own threads do not answer any more, as a busy one's do."""
    keys = tmp_path / "keys"
    with struck(keys, 2, end) as process:
        others = Others(keys, process, (0, 1))
        others.run()
        assert stands_still(process.pid)
    assert others.errors == {}
    assert min(others.versions.values()) >= 3, "rounds went on without it"
    assert digest(others.models[0]) == digest(others.models[1])
    assert "replica 2 has left, the others train on" in caplog.text


def test_without_replica_0_the_others_end_within_seconds_and_keep_what_they_have_learnt(
    tmp_path, hooks_of_two_threads
):
    """It holds the hub, which nobody starts again."""
    keys = tmp_path / "keys"
    with struck(keys, 0, signal.SIGKILL) as process:
        others = Others(keys, process, (1, 2))
        begun = {number: digest(model) for number, model in others.models.items()}
        others.run()
    assert others.versions == {}
    for number, model in others.models.items():
        assert isinstance(others.errors[number], SidebandError)
        assert "replica 0's process has ended" in str(others.errors[number])
        assert digest(model) != begun[number]
        model.save_pretrained(tmp_path / f"adapter{number}")
    assert our_threads() == []
