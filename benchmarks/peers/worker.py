"""The jobs of one peer: a line of JSON in for each, a line of JSON out. Started by run.py in the peer's environment.

    python worker.py MODULE FUNCTION BASE < jobs

Every rank is a process of its own, forked from one that has imported torch. Nobody waits for anybody at the end: rank
0 is scored when its time is over, and then all are ended, wherever they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import workload

PRELOADED = ["torch", "torch.distributed", "transformers.models.llama.modeling_llama", "peft", "workload"]
INTERFACE = "cable"
"""Of a machine that is a namespace (tsugi_cli/bench/links)."""
CLONE_NEWNET, CLONE_NEWUTS = 0x40000000, 0x04000000
BEGIN_S, SCORE_S = 90.0, 90.0
"""Limits: until training begins, and from its end until rank 0 has been scored."""


def rank_main(
    module: str, function: str, job: workload.Job, rank: int, base: str, port: int, shared: str, meet: Any
) -> None:
    """One rank; leaves rank 0's result, or error{rank}, behind."""
    import torch

    os.setsid()  # with whatever a peer starts besides
    move(job.machines[rank] if job.machines else None, job.address(rank))
    multiprocessing.set_start_method("fork", force=True)  # what peers expect of Linux
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": job.address(0),
        "MASTER_PORT": str(port),
    }
    os.environ |= {"WORLD_SIZE": str(job.replicas), "LOCAL_WORLD_SIZE": str(job.replicas), "OMP_NUM_THREADS": "1"}
    if job.machines:  # each rank is alone on its own
        os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": INTERFACE}
    torch.set_num_threads(1)
    run = workload.Run(job, rank, Path(base), lambda: meet.wait(BEGIN_S), Path(shared))
    try:
        getattr(importlib.import_module(f"others.{module}"), function)(run)
        time.sleep(SCORE_S)
    except BaseException as error:  # noqa: BLE001  (a peer may fail in any way, and the reason is its result)
        run.post(f"error{rank}", f"rank {rank}: {type(error).__name__}: {error}\n{traceback.format_exc()[-800:]}")
    os._exit(0)  # what a peer would still wait for is not its training


def move(process: int | None, host: str = "") -> None:
    """Into the network namespace of a process, if there is one, under a host's name.

    torchft tells others its host's name: one that is an address leads to this namespace.
    """
    if process is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/proc/{process}/ns/net").open() as there:
        refused = libc.setns(there.fileno(), CLONE_NEWNET)
    if host and not refused:
        refused = libc.unshare(CLONE_NEWUTS) or libc.sethostname(host.encode(), len(host))
    if refused:
        raise OSError(ctypes.get_errno(), "this process may not enter the machine's namespace")


def perform(context: Any, module: str, function: str, base: str, job: workload.Job) -> dict[str, Any]:
    """One job: what rank 0 reached, or why it did not."""
    with tempfile.TemporaryDirectory() as shared, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        meet = context.Barrier(job.replicas)
        arguments = [(module, function, job, rank, base, port, shared, meet) for rank in range(job.replicas)]
        ranks = [context.Process(target=rank_main, args=each) for each in arguments]
        for process in ranks:
            process.start()
        try:
            found = wait(Path(shared), ranks, BEGIN_S + job.seconds + SCORE_S)
        finally:
            end(ranks)
        steps = [_number(Path(shared) / f"steps{rank}") for rank in range(job.replicas)]
    return {**asdict(job), "steps": steps, **found}


def end(ranks: list[Any]) -> None:
    """End the ranks and all that they have started."""
    for process in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join(10)


def wait(shared: Path, ranks: list[Any], limit_s: float) -> dict[str, Any]:
    """Rank 0's result, or the reason why there is none."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        if (shared / "result").exists():
            return {"failure": None, **json.loads((shared / "result").read_text())}
        if any(shared.glob("error?")):
            time.sleep(1.0)  # the other ranks' errors, too
            return {"failure": "; ".join(each.read_text() for each in sorted(shared.glob("error?")))}
        if not ranks[0].is_alive():
            return {"failure": f"rank 0 ended with exit code {ranks[0].exitcode}"}
        time.sleep(0.1)
    return {"failure": f"hung: no result {limit_s:.0f} s after it was started"}


def _number(path: Path) -> int:
    return int(path.read_text()) if path.exists() else 0


def main() -> None:
    module, function, base = sys.argv[1:4]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    for line in sys.stdin:
        answer = perform(context, module, function, base, workload.Job(**json.loads(line)))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
