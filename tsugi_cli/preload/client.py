"""The launcher's side of the fork server: started early, asked when it is ready, and never needed."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tsugi_cli.signals import deaf

from .become import PADDING, Order
from .forked import Forked
from .server import READY
from .spares import forkable

PR_SET_CHILD_SUBREAPER = 36
READY_S = 90.0
"""After this time replicas are started without it."""
ANSWER_S = 10.0
"""Timeout of a server that is ready: one that is frozen is not asked again."""
ROOM = 4_096
"""Bytes that its words, and its variables, may be longer in a fork than in itself."""
SINGLE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""The server's variables: it must have no thread. Workers set their number themselves."""
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Client:
    """This process's end of the line to a fork server.

    Args:
        line: A socket that keeps messages apart.
        answer_s: Timeout of an answer.
    """

    def __init__(self, line: socket.socket, answer_s: float = ANSWER_S) -> None:
        self._line, self._lock = line, threading.Lock()
        line.settimeout(answer_s)

    def fork(self, argv: Sequence[str], env: Mapping[str, str], files: Sequence[int], **more: Any) -> int:
        """Return the process id of a new child of this process.

        Args:
            argv: What it runs.
            env: Its environment.
            files: Its stdin, stdout and stderr.
            more: Further fields of `Order`.

        Raises:
            OSError: there is no server, or no child came of it.
        """
        ignored = [int(each) for each in ENDING if signal.getsignal(each) is signal.SIG_IGN]
        fields = {"argv": [os.fspath(each) for each in argv], "env": dict(env), "cwd": str(Path.cwd()), **more}
        fields["open_files"] = [*resource.getrlimit(resource.RLIMIT_NOFILE)]
        with self._lock:
            # A handler that raises between question and answer would leave the answer to the next who asks.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            fields |= {"parent": os.getpid(), "mask": [int(each) for each in before], "ignored": ignored}
            # The server's grandchild becomes our child, because its parent ends while we take in orphans.
            _take_in_orphans(True)
            try:
                socket.send_fds(self._line, [Order(**fields).packed()], list(files))
                pid = int(self._line.recv(64) or 0)
            except OSError:
                self._turn_back()
                raise
            finally:
                _take_in_orphans(False)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if not pid:
            raise ConnectionResetError("the fork server has ended")
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # raises where it is not ours
        return pid

    def _turn_back(self) -> None:
        """No answer came in time: one that comes now is of a child that nobody knows of, and another is about to be
        started in its place."""
        with suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)  # later than this none is sent, and then the fork ends by itself
            if pid := int(self._line.recv(64, socket.MSG_DONTWAIT) or 0):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # raises where it is not ours
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def close(self) -> None:
        self._line.close()


def _take_in_orphans(on: bool) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)


class ForkServer:
    """A process that has imported what replicas need, for as long as the block lasts. On Linux; elsewhere nothing."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._client: Client | None = None
        self._until_s = 0.0

    def start(self, env: Mapping[str, str]) -> None:
        """Start it: it begins to import, while the caller does other things.

        Args:
            env: The environment that its forks will have, but for what is told later.
        """
        if sys.platform != "linux" or self._process is not None:
            return
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tsugi_cli.preload.server", "-" * ROOM]
        with theirs, deaf(), suppress(OSError):
            self._process = subprocess.Popen(
                command,
                env={**env, **SINGLE, PADDING: "-" * ROOM},
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def tell(self, env: Mapping[str, str]) -> None:
        """Tell it the further variables that libraries read when they are imported: it goes on."""
        self._until_s = time.monotonic() + READY_S
        if self._line is not None:
            with suppress(OSError):  # it has ended: nothing will come of it
                self._line.send(json.dumps(dict(env)).encode())

    def importing(self) -> bool:
        """Return whether it will be ready soon, once it was told; false when it is, and when nothing comes of it."""
        if self._line is None or self._client is not None:
            return False
        if self._process is None or time.monotonic() > self._until_s:
            self.close()
            return False
        try:
            heard = self._line.recv(len(READY), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            heard = b""
        if heard == READY:
            self._client = Client(self._line)
        else:
            self.close()
        return False

    def fork(self, argv: Sequence[str], env: Mapping[str, str], output: int, workers: int) -> Forked | None:
        """Return a new child, the leader of its own session; None: start it anew.

        Args:
            argv: What it runs.
            env: Its environment.
            output: The file of its stdout and stderr.
            workers: How many processes it will start.
        """
        if self._client is None or not forkable(argv):
            return None
        nothing = os.open(os.devnull, os.O_RDWR)
        try:
            return Forked(self._client.fork(argv, env, (nothing, output, output), workers=workers), argv)
        except (OSError, ValueError):
            self.close()
            return None
        finally:
            os.close(nothing)

    def close(self) -> None:
        """End it. What was forked from it goes on."""
        if self._line is not None:
            self._line.close()
        self._line = self._client = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
