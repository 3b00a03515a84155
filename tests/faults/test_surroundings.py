"""What a run finds around it: umask, caches, temporary folders, another run that has the directory."""

from __future__ import annotations

import errno
import json
import os
import pwd
import resource
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from io import StringIO
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.support import await_no_process_of, await_true, kpool
from tsugi_cli import app
from tsugi_cli.config.spec import Model
from tsugi_cli.console.plain import PlainConsole
from tsugi_cli.finetune import kept as models
from tsugi_cli.launch import hub, run
from tsugi_cli.launch.checkpointing import Checkpoints
from tsugi_cli.launch.plan import Agent
from tsugi_cli.launch.request import RunRequest
from tsugi_cli.record import run_dir
from tsugi_cli.record.answer import Answer
from tsugi_cli.record.recorder import Recorder
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.record.run_lock import RunLock, holder
from tsugi_cli.signals import Signals
from tsugi_kpool.engine.aggregator import Aggregator
from tsugi_kpool.errors import ConfigError, ExitCode, MachineError, TrainingError, TsugiError

TINY = ("model=tiny", "data.n_train=8", "data.n_eval=2", "data.n_test=0", "data.scorer=null", "evaluate.examples=0")
MODEL = Model(source="tiny", path=None, package=None, file=None, dtype="float32")
HOLDS = """
import sys
from pathlib import Path
from tsugi_cli.record.run_lock import RunLock
from tsugi_cli.record.run_dir import RunPaths
RunLock(RunPaths(Path(sys.argv[1]))).take()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def begun(tmp_path: Path) -> RunPaths:
    """The directory of a run as it is before the first replica comes."""
    request = RunRequest.read([*TINY, f"runs_dir={tmp_path / 'runs'}"])
    paths = request.settle(datetime(2026, 11, 24))
    plan, recorder = request.plan(paths), Recorder(paths)
    checkpoints = Checkpoints(request, paths, plan.hub, recorder.tell)
    hub.serve(request.spec, paths, plan.hub, checkpoints.tell).stop()
    recorder.close()
    return paths


@pytest.mark.parametrize("given", [0o000, 0o007, 0o022, 0o077])
def test_others_can_write_to_nothing_of_a_run_and_secrets_are_its_owners(tmp_path, umask, monkeypatch, given, capsys):
    """The command line sets it, before anything is made; agents and workers inherit it."""
    os.umask(given)
    monkeypatch.setattr(sys, "argv", ["tsugi", "recipes"])
    with pytest.raises(SystemExit):
        app.main()
    paths = begun(tmp_path)
    modes = {path: path.lstat().st_mode for path in (tmp_path / "runs").rglob("*") if not path.is_symlink()}
    assert paths.keys in modes
    assert [path for path, mode in modes.items() if mode & stat.S_IWOTH] == []
    secret = {path: mode & 0o777 for path, mode in modes.items() if path.is_relative_to(paths.keys.parent)}
    assert secret.pop(paths.keys.parent) == 0o700
    assert set(secret.values()) == {0o600}, secret
    assert os.umask(0) == given | 0o002, "what the group may do is the user's decision"


def test_a_cache_that_cannot_be_is_named_before_anything_starts(tmp_path, monkeypatch):
    """A home that is read-only looks the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    for asks in (models.check_cache, models.prepare):
        with pytest.raises(MachineError, match=r"cannot keep the model in /dev/null/cache/.*XDG_CACHE_HOME=FOLDER"):
            asks(MODEL)


def test_a_user_without_a_home_is_told_and_gets_no_folder_called_tilde(tmp_path, monkeypatch):
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    run_dir.create(tmp_path / "runs", "x", datetime(2026, 11, 24))
    with pytest.raises(MachineError, match="no home directory; XDG_CACHE_HOME=FOLDER"):
        models.check_cache(MODEL)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    (tmp_path / "runs" / "latest").unlink()
    assert run_dir.find_run(None) is None, "`tsugi console` has nothing to show, and says so"


def test_a_cache_without_room_is_named(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(made: Path) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(models, "_make_tiny", full)
    with pytest.raises(MachineError, match=r"cannot keep the model in .*No space left on device"):
        models.prepare(MODEL)
    assert [path.name for path in (tmp_path / "tsugi" / "models").iterdir() if path.suffix != ".lock"] == []


def test_no_place_for_temporary_files_is_named(tmp_path, monkeypatch):
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/nowhere']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    for act in (
        lambda: run_dir.create(tmp_path / "runs", "x", datetime(2026, 11, 24)),
        lambda: RunRequest.read([*TINY]),
    ):
        with pytest.raises(MachineError, match="TMPDIR=FOLDER"):
            act()
    assert not (tmp_path / "runs").exists()


def test_too_few_open_files_are_told_before_anything_is_made(tmp_path, monkeypatch):
    """What is allowed is taken first: the usual soft limit is far below the hard one."""
    held = {"limits": (16, 39)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: held["limits"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: held.update(limits=limits))
    request = RunRequest.read([*TINY, f"runs_dir={tmp_path / 'runs'}"])
    with pytest.raises(MachineError, match=r"2 replicas take up to 40 open files.* may have 39: ulimit -n 40"):
        request.settle(datetime(2026, 11, 24))
    assert not (tmp_path / "runs").exists()
    held["limits"] = (16, 40)
    paths = request.settle(datetime(2026, 11, 24))
    assert held["limits"] == (40, 40)
    held["limits"] = (16, 39)
    with pytest.raises(MachineError, match="ulimit -n 40"):
        RunRequest.of(paths)


def test_a_disk_that_is_full_when_the_keys_are_written_is_named_and_leaves_no_hub(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hub.sideband_keys, "save", full)
    before = set(threading.enumerate())
    with pytest.raises(MachineError, match=r"cannot write .*keys.json: No space left on device"):
        begun(tmp_path)
    assert set(threading.enumerate()) <= before, "one of an earlier test may have ended meanwhile"


def test_two_runs_that_begin_in_one_folder_at_once_have_a_directory_each(tmp_path):
    now = datetime(2026, 11, 24)
    first, second = (run_dir.create(tmp_path / "runs", "x", now) for _ in range(2))
    assert first.root != second.root
    assert (tmp_path / "runs" / "latest").resolve() == second.root


def test_a_run_that_goes_on_is_neither_resumed_nor_served_a_second_time(tmp_path):
    """Its launcher may be frozen: it answers nothing, and has the directory all the same."""
    paths = begun(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(paths.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        said = rf"{paths.root} is still running: process {process.pid} has it"
        with pytest.raises(ConfigError, match=f"resume: {said}"):
            RunRequest.read([f"resume={paths.root}"])
        with pytest.raises(ConfigError, match=said):
            Recorder(paths)
        with pytest.raises(ConfigError, match=said):
            run.hub_alone([], paths.root, True, Answer.of(False))
    finally:
        process.kill()
        process.communicate()
    await_true(lambda: holder(paths) is None, "a dead process holds nothing")
    with pytest.raises(ConfigError, match="has no checkpoint"):
        RunRequest.read([f"resume={paths.root}"])
    Recorder(paths).close()


def test_a_lock_is_had_once_and_given_back(tmp_path):
    paths = RunPaths(tmp_path)
    paths.lock.parent.mkdir()
    first, second = RunLock(paths), RunLock(paths)
    first.take()
    with pytest.raises(ConfigError, match=f"process {os.getpid()} has it"):
        second.take()
    assert holder(paths) == f"process {os.getpid()}"
    first.release()
    assert holder(paths) is None
    second.take()
    second.release()


def test_a_disk_without_room_for_a_lock_costs_no_run(tmp_path):
    paths = RunPaths(tmp_path / "gone")
    hold = RunLock(paths)
    hold.take()
    hold.release()
    assert holder(paths) is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("[enforce fail at gloo/common/linux.cc:78] Cannot allocate memory"), ExitCode.TRAINING),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), ExitCode.TRAINING),
        (MemoryError(), ExitCode.TRAINING),
        (KeyError("a bug"), ExitCode.INTERNAL),
    ],
)
def test_rounds_that_this_machine_has_no_room_for_are_no_bug_of_ours(error, code):
    uplink = Mock()
    uplink.next_order.side_effect = error
    rounds = Aggregator(Mock(), kpool(), uplink, Mock())
    rounds.start()
    await_true(lambda: rounds.flags.error, "the thread's end")
    rounds.stop()
    with pytest.raises(TsugiError) as raised:
        rounds.flags.check()
    assert raised.value.exit_code == code


def test_a_replica_that_never_comes_up_ends_the_run_with_its_own_words(tmp_path, monkeypatch):
    """As under `ulimit -v`, where libraries cannot be loaded: nobody waits for it, and nothing "finishes"."""
    request = RunRequest.read([*TINY, f"runs_dir={tmp_path / 'runs'}"])
    paths = request.settle(datetime(2026, 11, 24))
    broken = "raise ImportError('libtorch_cpu.so: failed to map segment from shared object')"
    plan = request.plan(paths)
    agents = tuple(Agent(each.replica, (sys.executable, "-c", broken), {}) for each in plan.agents)
    with Signals() as signals, pytest.raises(TrainingError, match="failed to map segment") as raised:
        run._run(request, paths, replace(plan, agents=agents), PlainConsole(StringIO()), signals)
    assert raised.value.exit_code == ExitCode.LAUNCH
    assert json.loads(paths.summary.read_text())["outcome"] == "failed"
    await_no_process_of(paths.root)
