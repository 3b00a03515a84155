"""Popen, which asks a fork server for those processes that it can make."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
MAX = 200_000
"""Bytes of one order: above all its environment."""
ANSWER_S, END_S = 90.0, 10.0
"""The first answer comes when the server has imported everything; it ends when nobody can ask any more."""
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
ROOT = Path(__file__).resolve().parents[2]
WORDS, VARIABLES = 4_096, 32_768
"""Bytes of the server's own arguments and variables: a fork writes its own over them, for /proc to show."""
USUAL = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
USUAL |= {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": ""}
"""The server's: it must have no thread, and libraries read some of these when they are imported."""
NSENTER = ("nsenter", "--target=", "--net", "--")
AS_USUAL = {"executable": None, "preexec_fn": None, "shell": False, "process_group": -1, "gid": None, "gids": None}
AS_USUAL |= {"uid": None, "umask": -1}
"""Options of Popen without which the server cannot do."""


class Client:
    """This process's end of the line to its fork server."""

    def __init__(self, line: socket.socket) -> None:
        self._line, self._lock = line, threading.Lock()
        line.settimeout(ANSWER_S)

    def fork(self, order: dict[str, Any], files: list[int]) -> int:
        """A new child of this process; its process id."""
        order["ignored"] = [int(each) for each in ENDING if signal.getsignal(each) is signal.SIG_IGN]
        with self._lock:
            # A handler that raises between question and answer would leave the answer to the next who asks.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            order["mask"] = [int(each) for each in before]
            # The server's grandchild becomes our child, because its parent ends while we take in orphans.
            take_in_orphans(True)
            try:
                socket.send_fds(self._line, [json.dumps(order).encode()], files)
                answer = self._line.recv(64)
            finally:
                take_in_orphans(False)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if not answer:
            raise RuntimeError("the fork server has ended")
        return int(answer)

    def close(self) -> None:
        self._line.close()


def take_in_orphans(on: bool) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)


@contextlib.contextmanager
def asking(client: Client) -> Iterator[None]:
    """Inside the block Popen asks the server."""
    original = subprocess.Popen._execute_child  # type: ignore[attr-defined]
    ask_from_now_on(client)
    try:
        yield
    finally:
        subprocess.Popen._execute_child = original  # type: ignore[attr-defined]


def ask_from_now_on(client: Client) -> None:
    """Popen of this process asks the server."""
    original = subprocess.Popen._execute_child  # type: ignore[attr-defined]
    subprocess.Popen._execute_child = _replaced(original, client)  # type: ignore[attr-defined]


def _replaced(original: Any, client: Client) -> Any:
    signature = inspect.signature(original)

    def execute_child(popen: Any, *args: Any) -> None:
        asked = signature.bind(popen, *args).arguments
        asked["args"], network = _outside(asked["args"])
        if not can_be_forked(asked):
            return original(popen, *args)
        files = [
            own if fd == -1 else fd for own, fd in enumerate(asked[n] for n in ("p2cread", "c2pwrite", "errwrite"))
        ]
        argv, env = [os.fspath(each) for each in asked["args"]], asked["env"]
        order = {"argv": argv, "env": dict(os.environ if env is None else env), "session": asked["start_new_session"]}
        order |= {"cwd": str(Path(asked["cwd"] or ".").resolve()), "network": network}
        popen.pid = client.fork(order, files)
        popen._child_created = True
        popen._close_pipe_fds(
            *(asked[n] for n in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"))
        )
        return None

    return execute_child


def can_be_forked(asked: dict[str, Any]) -> bool:
    """Whether it is `python -m MODULE` or `python SCRIPT`, without options that a fork has not."""
    words = asked["args"]
    if not isinstance(words, list | tuple) or os.fspath(words[0]) != sys.executable or asked["pass_fds"]:
        return False
    if any(asked.get(name, usual) != usual for name, usual in AS_USUAL.items()):
        return False
    first = next((str(each) for each in words[1:] if each != "-u"), "-")
    return first == "-m" or first.endswith(".py")


def _outside(words: Any) -> tuple[Any, str]:
    """A command without the `nsenter` that runs it in a network namespace, and the process whose namespace it is."""
    if (
        not isinstance(words, list | tuple)
        or len(words) <= len(NSENTER)
        or Path(os.fspath(words[0])).name != "nsenter"
    ):
        return words, ""
    target, *options = words[1 : len(NSENTER)]
    if not target.startswith(NSENTER[1]) or tuple(options) != NSENTER[2:]:
        return words, ""
    return words[len(NSENTER) :], target.removeprefix(NSENTER[1])


class Server:
    """A fork server, and the line to it; it ends when the line is closed."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.forked.server", str(theirs.fileno()), "-" * WORDS]
        env = {**os.environ, **USUAL, "TSUGI_TESTS_PADDING": "-" * VARIABLES}
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], cwd=ROOT, env=env,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        self.client = Client(ours)

    def stop(self) -> None:
        """Close the line, and wait for its end."""
        self.client.close()
        self._process.wait(END_S)
