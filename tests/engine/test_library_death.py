"""A replica of a loop of one's own is killed: the others hear its connections close, and go on without it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest

from tests.library import config, digest, pooled_model, train
from tsugi_kpool import plesio_init

WAIT_S = 45.0
"""Less than a silent replica is given (session.SILENT_TIMEOUT_S): silence is not what tells."""
SETTINGS = {"trigger": "count", "count": 2, "min_micro": 1}
pytestmark = pytest.mark.timeout(200)


def victim(keys: str) -> None:
    """Trains until it has been in a round, does nothing for a while, and is gone."""
    settings = config(**SETTINGS)
    model = pooled_model(settings)
    handle = plesio_init(model, settings, replica=2, replicas=3, keys=keys)
    while handle.version < 2:
        train(model, 1, seed=2)
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_others_go_on_within_seconds(tmp_path, hooks_of_two_threads, caplog):
    keys = tmp_path / "keys"
    process = multiprocessing.get_context("spawn").Process(target=victim, args=(str(keys),))
    process.start()
    settings = config(**SETTINGS)
    models = [pooled_model(settings) for _ in range(2)]
    versions, errors = [0, 0], list[BaseException]()

    def replica(number: int) -> None:
        try:
            with plesio_init(models[number], settings, replica=number, replicas=3, keys=keys) as handle:
                until = time.monotonic() + 3 * WAIT_S
                while process.is_alive() and time.monotonic() < until:
                    train(models[number], 1, seed=number)
                    time.sleep(0.02)
                version, until = handle.version, time.monotonic() + WAIT_S
                while handle.version < version + 3 and time.monotonic() < until:
                    train(models[number], 1, seed=number)
                    time.sleep(0.02)
                versions[number] = handle.version - version
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=replica, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * WAIT_S)
        assert not thread.is_alive()
    process.join()
    assert errors == []
    assert process.exitcode == -signal.SIGKILL
    assert min(versions) >= 3, "rounds went on without it"
    assert digest(models[0]) == digest(models[1])
    assert "replica 2 has left, the others train on" in caplog.text
