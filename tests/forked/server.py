"""`python -m tests.forked.server FD`: has imported what a run needs, and has no thread; forks on demand."""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import sys

from tests.forked.become import Order, become, enter, run
from tests.forked.popen import MAX, Client, ask_from_now_on

LIBRARIES = ("torch", "torch._dynamo", "torch.distributed.run", "transformers", "peft", "accelerate", "hydra")
LIBRARIES += (
    "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend",
    "peft.utils.transformers_weight_conversion",
)
LIBRARIES += ("transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto")
"""Some of them are imported late: `torch._dynamo` by an optimizer's first step."""
OURS = ("tsugi_kpool", "tsugi_cli")
RUN_WHEN_IMPORTED = (".__main__",)


def preload() -> None:
    """Import what commands and replicas need."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for package in OURS:
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            if not module.name.endswith(RUN_WHEN_IMPORTED):
                importlib.import_module(module.name)
    threads = os.listdir("/proc/self/task")  # noqa: PTH208
    if len(threads) > 1:
        raise RuntimeError(f"a process of {len(threads)} threads cannot be forked safely")


def serve(line: socket.socket) -> tuple[Order, list[int]]:
    """Fork until nobody asks any more. Returns in each fork, with what it is to become."""
    while True:
        message, files, *_ = socket.recv_fds(line, MAX, 3)
        if not message:
            os._exit(0)
        forked = _fork(line)
        if forked is None:
            return Order(**json.loads(message)), files
        for file in files:
            os.close(file)
        line.send(str(forked).encode())


def _fork(line: socket.socket) -> int | None:
    """The process id of a grandchild whose parent has ended; None there, as soon as it has another parent."""
    told, tell = os.pipe()
    gate, held = os.pipe()
    parent = os.fork()
    if not parent:
        child = os.fork()
        if child:
            os.write(tell, str(child).encode())
            os._exit(0)
        os.close(held)
        os.read(gate, 1)  # until the parent has ended, and the server has seen it
        return None
    os.waitpid(parent, 0)
    pid = int(os.read(told, 32))
    for each in (told, tell, gate, held):
        os.close(each)
    return pid


def live(line: socket.socket) -> Order:
    """Serve; returns in a fork that has become what was ordered, and has a server of its own for what it starts."""
    order, files = serve(line)
    line.close()
    if order.session:
        os.setsid()
    if order.network:
        enter(order.network)  # before the server for what it starts: that is on the same machine
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        for each in files:
            os.close(each)
        ours.close()
        return live(theirs)
    theirs.close()
    become(order, files)
    ask_from_now_on(Client(ours))
    return order


def main() -> None:
    """Serve; in a fork, run what was ordered."""
    line = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    preload()
    gc.collect()
    gc.freeze()
    run(live(line))


if __name__ == "__main__":
    main()
