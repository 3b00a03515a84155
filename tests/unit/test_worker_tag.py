"""A failure is shown with the worker whose it was."""

from __future__ import annotations

import sys
import traceback

import pytest

from tsugi_cli.launch.plan import Agent
from tsugi_cli.launch.supervisor import Supervisor
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.record.worker_tag import sign, signed


def traceback_of(error: Exception, worker: int | None) -> str:
    try:
        if worker is not None:
            sign(error, worker)
        raise error
    except ValueError:
        return traceback.format_exc()


def test_a_signed_traceback_gives_its_worker_and_keeps_its_last_line():
    text, worker = signed(traceback_of(ValueError("spilt\nmilk"), 3))
    assert worker == 3
    assert text.splitlines()[-2:] == ["ValueError: spilt", "milk"]


def test_a_replica_of_one_worker_signs_nothing():
    text, worker = signed(traceback_of(ValueError("spilt"), None))
    assert worker is None
    assert text.splitlines()[-1] == "ValueError: spilt"


@pytest.mark.parametrize(
    ("note", "who", "log"),
    [
        ("\\n(worker 1 of its replica)", "replica 0, worker 1,", "replica0.worker1.log"),
        ("", "replica 0", "replica0.worker0.log"),
    ],
)
def test_the_failure_names_the_worker_and_its_log(tmp_path, note, who, log):
    paths = RunPaths(tmp_path)
    paths.logs.mkdir()
    write = f"import sys; open(sys.argv[1], 'w').write('{{\"message\": \"DataError: bad{note}\"}}'); sys.exit(1)"
    agent = Agent(0, (sys.executable, "-c", write.replace("\\n", "\\\\n"), str(paths.error(0))), {})
    supervisor = Supervisor((agent,), paths)
    supervisor.start()
    assert supervisor.wait(60)
    failure = supervisor.failure()
    supervisor.stop()
    assert failure is not None
    assert failure.who == who
    assert failure.log.name == log
    assert failure.text == "DataError: bad"
