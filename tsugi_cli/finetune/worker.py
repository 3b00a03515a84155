"""The process that torchrun starts: `python -m tsugi_cli.finetune.worker --run-dir DIR --replica I`.

It reads the resolved configuration, checks its hash, and tells the story. It never composes configuration.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from tsugi_cli.config.compose import read_resolved
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.record.worker_tag import sign
from tsugi_kpool import world
from tsugi_kpool.engine.inside import Inside, opened
from tsugi_kpool.errors import FencedError, QuarantinedError, SidebandError
from tsugi_kpool.system import end_with_parent
from tsugi_kpool.world import WorkerRank

from .model import quieten
from .story import finetune
from .workers import device_of


@record
def main() -> None:
    """Entry point; an exception is left for the launcher in torchrun's error file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--replica", type=int, required=True)
    arguments = parser.parse_args()
    end_with_parent()
    listen_to_agent()
    paths = RunPaths(arguments.run_dir)
    spec = read_resolved(paths)
    seat = world.worker_rank()
    own_log(paths, arguments.replica, seat)
    quieten()
    torch.set_num_threads(spec.topology.threads_per_worker)
    device = device_of(seat, arguments.replica, spec.topology.device)
    with signing(seat), opened(seat, device.type == "cuda") as inside:
        take_part(spec, paths, arguments.replica, inside, device)


def take_part(spec: RunSpec, paths: RunPaths, replica: int, inside: Inside, device: torch.device) -> None:
    """Tell the story; once more, as another incarnation, when the fleet has gone on without this one.

    Also, once, when the hub has been silent for `sideband.hub_timeout_s`: it may be us who were cut off.

    A launcher on this machine ends a process that was left behind and starts another. For a replica that `tsugi join`
    brought, a cut that has healed costs less so: the libraries are loaded, which takes longest.
    """
    again = spec.topology.max_restarts if paths.slot.exists() and inside.workers == 1 else 0
    while True:
        try:
            return finetune(spec, paths, replica, inside, device)
        except QuarantinedError:
            raise
        except (FencedError, SidebandError) as error:
            if not again:
                raise
            again = again - 1 if isinstance(error, FencedError) else 0
            sys.stderr.write(f"{error}; it joins again\n")
        gc.collect()  # the model that the error's frames held


def own_log(paths: RunPaths, replica: int, seat: WorkerRank) -> None:
    """Every worker but the first writes to a file of its own: worker 0's is the torchrun agent's output."""
    if seat.worker:
        with suppress(OSError), paths.log(replica, seat.worker).open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)


@contextmanager
def signing(seat: WorkerRank) -> Iterator[None]:
    """Wraps what may fail in one of several workers."""
    try:
        yield
    except BaseException as error:
        if seat.workers > 1:
            sign(error, seat.worker)
        raise


def listen_to_agent() -> None:
    """What torchrun ends its workers with must end us, whatever the launcher has inherited or blocked.

    SIGTERM is how it ends the others when one of several workers has failed; a single worker stays deaf to it.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if world.worker_rank().workers > 1:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


if __name__ == "__main__":
    main()
