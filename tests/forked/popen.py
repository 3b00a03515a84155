"""Popen, which asks a fork server for those processes that it can make."""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tsugi_cli.preload.become import PADDING
from tsugi_cli.preload.client import Client

ANSWER_S, END_S = 200.0, 60.0
"""The first answer comes when the server has imported everything; it ends when nobody can ask any more."""
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
NETWORK = "TSUGI_TESTS_NETWORK"
"""Variable of an order: the id of a process whose network namespace the fork is to be in."""
NSENTER = ("nsenter", "--target=", "--net", "--")
AS_USUAL = {"executable": None, "preexec_fn": None, "shell": False, "process_group": -1, "gid": None, "gids": None}
AS_USUAL |= {"uid": None, "umask": -1}
"""Options of Popen without which the server cannot do."""


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
    signature, owner = inspect.signature(original), os.getpid()

    def execute_child(popen: Any, *args: Any) -> None:
        asked = signature.bind(popen, *args).arguments
        asked["args"], network = _outside(asked["args"])
        if os.getpid() != owner or not can_be_forked(asked):  # a fork has the line, and the server is not its own
            return original(popen, *args)
        files = [
            own if fd == -1 else fd for own, fd in enumerate(asked[n] for n in ("p2cread", "c2pwrite", "errwrite"))
        ]
        argv = [os.fspath(each) for each in asked["args"]]
        env = {**(os.environ if asked["env"] is None else asked["env"]), **({NETWORK: network} if network else {})}
        cwd, session = str(Path(asked["cwd"] or ".").resolve()), asked["start_new_session"]
        popen.pid = client.fork(argv, env, files, cwd=cwd, session=session)
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
        env = {**os.environ, **USUAL, PADDING: "-" * VARIABLES}
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], cwd=ROOT, env=env,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        self.client = Client(ours, ANSWER_S)

    def stop(self) -> None:
        """Close the line, and wait for its end: all tests are over, and it fails none any more."""
        self.client.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
