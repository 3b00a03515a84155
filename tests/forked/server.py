"""`python -m tests.forked.server FD`: has imported what a run needs, and has no thread; forks on demand."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pkgutil
import signal
import socket
import sys
from pathlib import Path

from tests.forked.popen import ANSWER_S, NETWORK, Client, ask_from_now_on
from tsugi_cli.preload.become import Order, become, run
from tsugi_cli.preload.server import serve

CLONE_NEWNET = 0x40000000
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
    gc.disable()  # it would look through a million new objects again and again, a quarter of the time
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


def live(line: socket.socket) -> Order:
    """Serve; returns in a fork that has become what was ordered, and has a server of its own for what it starts."""
    order, files = serve(line)
    line.close()
    if order.session:
        os.setsid()
    if network := order.env.pop(NETWORK, ""):
        enter(network)  # before the server for what it starts: that is on the same machine
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        for each in files:
            os.close(each)
        ours.close()
        return live(theirs)
    theirs.close()
    become(order, files)
    ask_from_now_on(Client(ours, ANSWER_S))
    return order


def enter(process: str) -> None:
    """Go into another process's network namespace, as `nsenter` does."""
    with Path(f"/proc/{process}/ns/net").open("rb") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to the network of process {process}")


def main() -> None:
    """Serve; in a fork, run what was ordered."""
    line = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    preload()
    gc.collect()
    gc.freeze()
    gc.enable()
    run(live(line))


if __name__ == "__main__":
    main()
