"""What a fork does to be as a fresh interpreter is: files, environment, signals, name; then the module or script."""

from __future__ import annotations

import atexit
import ctypes
import errno
import json
import os
import resource
import runpy
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

HOOK = "sitecustomize.py"
PADDING = "TSUGI_PADDING"
"""Variable of the server that makes room for longer ones of its forks, where /proc shows them."""
MAX = 200_000
"""Bytes of one order: above all its environment."""


@dataclass(frozen=True)
class Order:
    """What is to run, and what a child inherits from the thread that asks for it."""

    argv: list[str]
    """`PYTHON [-u] -m MODULE ...`, or `PYTHON [-u] SCRIPT ...`."""
    env: dict[str, str]
    cwd: str
    parent: int
    """Process id of the caller, whose child the fork will be."""
    mask: list[int]
    ignored: list[int]
    open_files: list[int]
    """The limits of open files, soft and hard: the caller may have raised its own since the server began."""
    session: bool = True
    workers: int = 0
    """Forks that it takes along, for the processes that it will start."""

    def packed(self) -> bytes:
        """Return it as one message.

        Raises:
            OSError: it is too long.
        """
        found = json.dumps(asdict(self)).encode()
        if len(found) > MAX:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        return found

    @staticmethod
    def read(message: bytes) -> Order:
        """Return the order of a message."""
        return Order(**json.loads(message))

    @property
    def words(self) -> list[str]:
        """Without the interpreter and `-u`: module and arguments behind `-m`, or a script's."""
        return [each for number, each in enumerate(self.argv) if number and (number > 1 or each != "-u")]


def become(order: Order, files: list[int]) -> None:
    """Take over files, folder, environment, signals and streams: all but running it.

    Args:
        order: What is to run.
        files: They become stdin, stdout and stderr; without them those stay.
    """
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(order.cwd)
    with suppress(OSError, ValueError):  # a hard limit is not raised again
        resource.setrlimit(resource.RLIMIT_NOFILE, (order.open_files[0], order.open_files[1]))
    _take_environment(order)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for each in order.ignored:
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, order.mask)
    _open_streams("-u" in order.argv[1:2])
    tempfile.tempdir = None  # the server's own TMPDIR, which it has looked up already
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # what is drawn from it before anybody seeds it differs in each process


def run(order: Order) -> NoReturn:
    """Run the module or the script, as `python` would, and end with its exit code.

    Threads are joined and exit functions called. Modules are not taken down one by one, which costs 0.3 s.
    """
    try:
        _run(order)
        code: object = 0
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _show(error)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:  # noqa: BLE001  (whatever it is, an interpreter shows it and ends)
        _show(error)
        code = 1
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(int(code or 0) & 0xFF)


def _show(error: BaseException) -> None:
    """As an interpreter does; exit functions find it in `sys`."""
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    sys.last_exc = error  # type: ignore[attr-defined,unused-ignore]
    sys.excepthook(type(error), error, error.__traceback__)


def _run(order: Order) -> None:
    words = order.words
    sys.orig_argv = list(order.argv)
    _import_hooks(order.env.get("PYTHONPATH", ""))
    if words[0] == "-m":
        _stand_first(order.cwd)
        sys.argv = words[1:]
        sys.modules.pop(words[1], None)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        _stand_first(str(Path(words[0]).resolve().parent))
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def _stand_first(folder: str) -> None:
    """In the module path in place of the server's own folder; under PYTHONSAFEPATH there is none, and none comes."""
    if not sys.flags.safe_path:
        sys.path[0] = folder


def _take_environment(order: Order) -> None:
    """Also where /proc shows it: the strings that the kernel laid there for the server are overwritten."""
    here = {name: value for name, value in order.env.items() if name != PADDING}
    for name in [each for each in os.environ if each not in here]:
        del os.environ[name]
    os.environ.update(here)  # copies of its own: nobody points to the old strings any more
    show_words(order.argv)
    _lay(2, [f"{name}={value}" for name, value in here.items()])


def show_words(words: list[str]) -> None:
    """Overwrite this process's command line, as /proc and `ps` show it."""
    _lay(0, words)


def _lay(place: int, words: list[str]) -> None:
    """Write over what the kernel has laid down for /proc: 0, the command line; 2, the variables."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, stop = (int(each) for each in fields[45 + place : 47 + place])
    text = b"\0".join(os.fsencode(each) for each in words)[: stop - start - 1]
    ctypes.memset(start, 0, stop - start)
    ctypes.memmove(start, text, len(text))


def _open_streams(unbuffered: bool) -> None:
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = open(number, "w", closefd=False)  # noqa: SIM115
        stream.reconfigure(
            line_buffering=number == 2 or stream.isatty(),
            write_through=unbuffered,
            errors="backslashreplace" if number == 2 else "strict",
        )
        setattr(sys, name, stream)


def _import_hooks(path: str) -> None:
    """What `site` does with PYTHONPATH when an interpreter begins."""
    for folder in filter(None, path.split(os.pathsep)):
        if folder not in sys.path:
            sys.path.insert(1, folder)
        if (Path(folder) / HOOK).exists():
            runpy.run_path(str(Path(folder) / HOOK))
            return
