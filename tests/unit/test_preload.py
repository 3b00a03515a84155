"""When a preloaded process may be forked, and what is asked of it. How it forks: tests/process/test_preload.py."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tsugi_cli.launch.preloading import preload
from tsugi_cli.preload import become, client, server
from tsugi_cli.preload.become import MAX, Order
from tsugi_cli.preload.client import ForkServer
from tsugi_cli.preload.spares import forkable


def order(**changes) -> Order:
    values = {"argv": [sys.executable, "-m", "x"], "env": {}, "cwd": "/", "parent": 1, "mask": [], "ignored": []}
    values["open_files"] = [1024, 4096]
    return Order(**{**values, **changes})


@pytest.fixture
def torch(monkeypatch):
    """Says whether a GPU is in use; this process has other threads and files than the server's."""
    fake = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: fake.used), used=False)
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(server.os, "listdir", lambda path: ["1"])
    return fake


def test_a_process_whose_gpu_is_in_use_is_not_forked(torch, monkeypatch):
    assert server.unsafe() == ""
    torch.used = True
    assert server.unsafe() == "a GPU is in use"
    torch.used = False
    monkeypatch.setattr(server.os, "readlink", lambda path: "/dev/nvidia-uvm")
    assert server.unsafe() == "a GPU is in use", "its driver is, which nobody says"


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_process_with_threads_is_not_forked():
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert "threads" in server.unsafe()
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ("argv", "whether"),
    [
        ([sys.executable, "-m", "torch.distributed.run"], True),
        ([sys.executable, "-u", "-m", "tsugi_cli.finetune.worker"], True),
        ([sys.executable, "script.py"], False),
        ([sys.executable, "-c", "pass"], False),
        ([sys.executable], False),
        (["ip", "netns", "exec", "a", sys.executable, "-m", "x"], False),
        (["/another/python", "-m", "x"], False),
    ],
)
def test_only_a_module_of_this_interpreter_is_forked(argv, whether):
    assert forkable(argv) is whether


def test_an_order_is_one_message_and_a_longer_one_is_none():
    strange = os.fsdecode(b"\xff")  # no UTF-8, as a variable may be
    given = order(env={"A": strange, "B": "ü"}, workers=2)
    assert Order.read(given.packed()) == given
    with pytest.raises(OSError, match="too long"):
        order(env={"A": "x" * MAX}).packed()


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is preloaded elsewhere")
def test_a_fork_gets_the_limit_of_open_files_that_its_caller_has_now():
    """A launcher raises its own when the server has begun already."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] - 1, before[1]))
    try:
        with ours, theirs:
            theirs.send(b"1")  # no child of ours
            with pytest.raises(OSError, match="child"):
                client.Client(ours).fork(["python", "-m", "x"], {}, ())
            message, *_ = socket.recv_fds(theirs, MAX, 3)
        assert Order.read(message).open_files == [before[0] - 1, before[1]]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is preloaded elsewhere")
def test_a_fork_whose_answer_comes_too_late_does_not_run_beside_the_one_that_is_started_instead():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    class Late:
        """Answers between the timeout and the end of the line."""

        def __getattr__(self, name):
            return getattr(ours, name)

        def recv(self, *how):
            if len(how) == 2:
                return ours.recv(*how)
            theirs.send(str(child.pid).encode())
            raise TimeoutError("timed out")

    with ours, theirs, child:
        with pytest.raises(TimeoutError):
            client.Client(Late()).fork(["python", "-m", "x"], {}, ())
        with pytest.raises(ChildProcessError):
            os.waitpid(child.pid, os.WNOHANG)
        with pytest.raises(BrokenPipeError):
            theirs.send(b"1")


@pytest.mark.parametrize(("safe", "found"), [(False, ["/some/folder", "rest"]), (True, ["lib", "rest"])])
def test_a_fork_of_a_server_with_a_safe_path_takes_no_modules_from_its_folder(safe, found, monkeypatch):
    here = SimpleNamespace(path=["lib", "rest"], flags=SimpleNamespace(safe_path=safe))
    monkeypatch.setattr(become, "sys", here)
    become._stand_first("/some/folder")
    assert here.path == found


class Asked:
    """In place of a fork server: what it was told."""

    def __init__(self) -> None:
        self.told: dict[str, str] | None = None
        self.closed = False

    def tell(self, env: dict[str, str]) -> None:
        self.told = env

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("source", "here", "told"), [("tiny", None, "1"), ("hf", 2, None), ("tiny", 0, "nothing: it is ended")]
)
def test_the_server_is_told_what_libraries_read_when_they_are_imported(source, here, told):
    asked = Asked()
    preload(asked, SimpleNamespace(model=SimpleNamespace(source=source), topology=SimpleNamespace(here=here)))
    assert asked.closed == (here == 0)
    assert told == ("nothing: it is ended" if asked.told is None else asked.told.get("HF_HUB_OFFLINE"))


def test_where_there_is_no_linux_nothing_is_preloaded(monkeypatch):
    monkeypatch.setattr(client.sys, "platform", "darwin")
    with ForkServer() as forks:
        forks.start({})
        forks.tell({})
        assert not forks.importing()
        assert forks.fork([sys.executable, "-m", "x"], {}, 1, 1) is None


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is preloaded elsewhere")
def test_a_server_that_ends_while_it_imports_and_one_that_takes_too_long_are_given_up(monkeypatch):
    with ForkServer() as forks:
        forks.start(dict(os.environ))
        forks.tell({})
        assert forks._process is not None
        assert forks.importing()
        os.kill(forks._process.pid, signal.SIGKILL)
        forks._process.wait(60)
        assert not forks.importing()
    monkeypatch.setattr(client, "READY_S", -1.0)
    with ForkServer() as forks:
        forks.start(dict(os.environ))
        forks.tell({})
        assert forks._process is not None
        assert not forks.importing()
        assert forks._process.returncode == -signal.SIGKILL
        assert not Path(f"/proc/{forks._process.pid}").exists()
