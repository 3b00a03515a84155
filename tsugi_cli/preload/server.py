"""`python -m tsugi_cli.preload.server`, with a socket as stdin: imports what a replica needs, then forks on demand.

It has no thread and has not touched a GPU, or it ends: whoever asks then starts a process anew. It ends with its
caller. A fork is the caller's own child, so the end of the server is nothing to it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
from contextlib import suppress

from tsugi_kpool.system import end_with_parent

from .become import MAX, Order, become, run, show_words
from .spares import lend

AT_ONCE = ("torch",)
"""Imported before the run's settings are known: no variable of theirs is read by it."""
MODULES = (
    "torch._dynamo",  # by an optimizer's first step
    "torch.distributed.run",
    "torch.distributed.elastic.multiprocessing.errors",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "peft",
    "tsugi_kpool.engine.rendezvous",
    "tsugi_cli.finetune.worker",
    "tsugi_cli.finetune.export",
)
"""What agents and workers import; the rest of a model's family a worker imports itself."""
READY = b"ready"
GPU_FILES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


def main() -> None:
    """Serve; in a fork, run what was ordered."""
    end_with_parent()
    line = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    show_words([sys.executable, "-m", "tsugi_cli.preload.server"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    preload(line)
    if reason := unsafe():
        sys.exit(reason)
    line.send(READY)
    order, files = serve(line)
    line.close()
    if order.session:
        os.setsid()
    become(order, files)
    lend(order.workers)
    run(order)


def preload(line: socket.socket) -> None:
    """Import all, and keep what it is made of out of the garbage collector.

    It would look through a million new objects again and again, a quarter of the time; and a fork that it looks
    through the old ones in has to copy them.
    """
    gc.disable()
    for name in AT_ONCE:
        importlib.import_module(name)
    told = line.recv(MAX)  # the variables that the settings ask for
    if not told:
        sys.exit(0)
    os.environ.update(json.loads(told))
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    gc.enable()


def unsafe() -> str:
    """Return why this process must not be forked; "" where it may be."""
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    if threads > 1:
        return f"{threads} threads"
    if sys.modules["torch"].cuda.is_initialized() or any(each.startswith(GPU_FILES) for each in _open_files()):
        return "a GPU is in use"
    return ""


def _open_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))  # noqa: PTH115
    return found


def serve(line: socket.socket) -> tuple[Order, list[int]]:
    """Fork until nobody asks any more. Returns in each fork, with what it is to become and its three files."""
    while True:
        message, files, *_ = socket.recv_fds(line, MAX, 3)
        if not message:
            os._exit(0)
        gate, held = os.pipe()
        forked = _fork()
        if forked is None:
            os.close(held)
            order, told = Order.read(message), os.read(gate, 1)
            os.close(gate)
            if not told or os.getppid() != order.parent:
                os._exit(1)  # nobody knows of it, or orphans go elsewhere here: nobody would wait for it
            return order, files
        with suppress(OSError):  # nobody hears it: the fork ends
            line.send(str(forked).encode())
            os.write(held, b"1")
        for file in (*files, gate, held):
            os.close(file)


def _fork() -> int | None:
    """Return the process id of a grandchild whose parent has ended; None in it."""
    told, tell = os.pipe()
    between = os.fork()
    if not between:
        child = os.fork()
        if child:
            os.write(tell, str(child).encode())
            os._exit(0)
    else:
        os.waitpid(between, 0)
    pid = int(os.read(told, 32)) if between else None
    os.close(told)
    os.close(tell)
    return pid


if __name__ == "__main__":
    main()
