"""The same two faults elsewhere: SIGKILL and SIGSTOP of one of three workers under torchrun, torchft and hivemind.

    python benchmarks/chaos/peers.py --python VENV/bin/python    # a venv with torchft==0.2.0 and hivemind==1.1.12

Each worker trains a model of 4,096 parameters and notes when a joint step (torchrun, torchft: an all-reduce that
counted; hivemind: an epoch that was averaged) has ended. The figure is the longest pause of the two others after the
fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

STEP_S = 0.1
BEFORE_S, AFTER_S = 12.0, 60.0
TIMEOUT_S = 20.0
"""Of collectives, where a peer lets it be set: its default under gloo is half an hour."""
WORLD = 3


# --- workers: run by the other interpreter ----------------------------------------------------------------


def note(folder: str, who: str, step: int, **more: Any) -> None:
    with (Path(folder) / f"{who}-{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps({"at_s": time.monotonic(), "pid": os.getpid(), "step": step, **more}) + "\n")


def model_and_loss() -> tuple[Any, Any]:
    import torch

    model = torch.nn.Linear(64, 64, bias=False)
    return model, lambda: model(torch.randn(8, 64)).pow(2).mean()


def torchrun_worker(folder: str) -> None:
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT_S))
    rank, (model, loss) = dist.get_rank(), model_and_loss()
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(wrapped.parameters())
    for step in range(100_000):
        time.sleep(STEP_S)
        wrapped(torch.randn(8, 64)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        note(folder, str(rank), step)
    del loss


def torchft_worker(folder: str, rank: int) -> None:
    from datetime import timedelta

    import torch
    from torch.distributed import TCPStore
    from torchft import Manager, Optimizer, ProcessGroupGloo

    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    model, loss = model_and_loss()
    inner = torch.optim.AdamW(model.parameters())
    state = {"load": lambda s: (model.load_state_dict(s["model"]), inner.load_state_dict(s["inner"]))}
    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(seconds=TIMEOUT_S)), min_replica_size=2, load_state_dict=state["load"],
        state_dict=lambda: {"model": model.state_dict(), "inner": inner.state_dict()}, replica_id=f"r{rank}_",
        store_addr="localhost", store_port=store.port, rank=0, world_size=1, timeout=timedelta(seconds=TIMEOUT_S),
    )  # fmt: skip
    optimizer = Optimizer(manager, inner)
    while True:
        optimizer.zero_grad()
        time.sleep(STEP_S)
        loss().backward()
        for parameter in model.parameters():
            manager.allreduce(parameter.grad).wait()
        before = manager.current_step()
        optimizer.step()
        if manager.current_step() > before:
            note(folder, str(rank), manager.current_step(), members=manager.num_participants())


def hivemind_worker(folder: str, rank: int, peers: list[str]) -> None:
    import hivemind
    import torch

    dht = hivemind.DHT(initial_peers=peers, start=True)
    (Path(folder) / f"address-{rank}").write_text(str(dht.get_visible_maddrs()[0]))
    model, loss = model_and_loss()
    optimizer = hivemind.Optimizer(
        dht=dht, run_id="chaos", optimizer=torch.optim.AdamW(model.parameters()), batch_size_per_step=8,
        target_batch_size=240, use_local_updates=True, matchmaking_time=2.0, averaging_timeout=TIMEOUT_S,
    )  # fmt: skip
    epoch = 0
    while True:
        time.sleep(STEP_S)
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        note(folder, f"steps{rank}", epoch)
        if optimizer.local_epoch > epoch:
            epoch = optimizer.local_epoch
            note(folder, str(rank), epoch)


# --- the experiment ---------------------------------------------------------------------------------------


def lines(folder: Path, rank: int) -> list[dict[str, Any]]:
    found = [json.loads(line) for path in folder.glob(f"{rank}-*.jsonl") for line in path.read_text().splitlines()]
    return sorted(found, key=lambda each: each["at_s"])


@contextlib.contextmanager
def started(peer: str, python: str, folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The peer's processes, each in a group of its own; ended afterwards."""
    me, log = str(Path(__file__).resolve()), (folder / "log").open("wb")
    processes: list[subprocess.Popen[bytes]] = []

    def begin(*words: str, **env: str) -> None:
        processes.append(
            subprocess.Popen(
                [python, *words], env={**os.environ, "OMP_NUM_THREADS": "1", **env}, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )
        )  # fmt: skip

    try:
        if peer == "torchrun":
            run = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}", "--max-restarts=3")
            begin(*run, me, "--worker", peer, "--folder", str(folder))
        elif peer == "torchft":
            serve = (
                "import sys, time; from torchft.coordination import LighthouseServer as L; "
                "s = L(bind='[::]:0', min_replicas=2, join_timeout_ms=1000, heartbeat_timeout_ms=2000); "
                "open(sys.argv[1], 'w').write(s.address()); time.sleep(1e6)"
            )
            begin("-c", serve, str(folder / "lighthouse"))
            _await(folder / "lighthouse")
            for rank in range(WORLD):
                words = ("--worker", peer, "--folder", str(folder), "--rank", str(rank))
                begin(me, *words, TORCHFT_LIGHTHOUSE=(folder / "lighthouse").read_text())
        else:
            for rank in range(WORLD):
                known = [(folder / "address-0").read_text()] if rank else []
                begin(me, "--worker", peer, "--folder", str(folder), "--rank", str(rank), "--peers", *known)
                _await(folder / f"address-{rank}")
        yield processes
    finally:
        for process in processes:
            for pid in [*_descendants(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def experiment(peer: str, fault: signal.Signals, python: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        with started(peer, python, folder):
            ready_s = time.monotonic() + 240.0
            while any(len(lines(folder, rank)) < 3 for rank in range(WORLD)) and time.monotonic() < ready_s:
                time.sleep(0.2)
            time.sleep(BEFORE_S)
            before = {rank: lines(folder, rank) for rank in range(WORLD)}
            if any(not each for each in before.values()):
                return {"peer": peer, "fault": fault.name, "error": (folder / "log").read_text()[-600:]}
            victim, at_s = before[1][-1]["pid"], time.monotonic()
            os.kill(victim, fault)
            time.sleep(AFTER_S)
            end_s = time.monotonic()
            found = [_after(lines(folder, rank), at_s, end_s) for rank in (0, 2)]
        return {"peer": peer, "fault": fault.name, "usual_s": _usual(before[0]), "survivors": found}


def _after(noted: list[dict[str, Any]], at_s: float, end_s: float) -> dict[str, Any]:
    times = [each["at_s"] for each in noted if each["at_s"] >= at_s]
    steps, pids = [each["step"] for each in noted], {each["pid"] for each in noted}
    pauses = [after - before for before, after in zip([at_s, *times], [*times, end_s], strict=True)]
    return {
        "longest_pause_s": round(max(pauses), 2),
        "joint_steps_after": len(times),
        "to_the_end": bool(times) and end_s - times[-1] > AFTER_S / 2,
        "its_process_survived": len(pids) == 1,
        "steps_lost": max(0, max(steps) - steps[-1]) if len(pids) > 1 else 0,
    }


def _usual(noted: list[dict[str, Any]]) -> float:
    gaps = sorted(b["at_s"] - a["at_s"] for a, b in pairwise(noted))
    return round(gaps[len(gaps) // 2], 2) if gaps else 0.0


def _await(path: Path) -> None:
    until_s = time.monotonic() + 240.0
    while not (path.exists() and path.read_text()):
        if time.monotonic() > until_s:
            raise RuntimeError(f"{path.name}: not in time")
        time.sleep(0.1)


def _descendants(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        own = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [each for child in own for each in [*_descendants(child), child]]
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--peers", nargs="*", default=["torchrun", "torchft", "hivemind"])
    parser.add_argument("--worker")
    parser.add_argument("--folder")
    parser.add_argument("--rank", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.worker == "torchrun":
        torchrun_worker(arguments.folder)
    elif arguments.worker == "torchft":
        torchft_worker(arguments.folder, arguments.rank)
    elif arguments.worker == "hivemind":
        hivemind_worker(arguments.folder, arguments.rank, arguments.peers)
    else:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from harness import RESULTS, save

        path = RESULTS / "chaos_peers.json"
        runs = json.loads(path.read_text())["runs"] if path.exists() else []
        for peer in arguments.peers:
            for fault in (signal.SIGKILL, signal.SIGSTOP):
                found = experiment(peer, fault, arguments.python)
                print(found, flush=True)
                runs = [each for each in runs if (each["peer"], each["fault"]) != (peer, fault.name)] + [found]
                save("chaos_peers", {"runs": runs})


if __name__ == "__main__":
    main()
