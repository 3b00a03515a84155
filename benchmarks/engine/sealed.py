"""What sealing costs: gloo's gather on loopback, plain and sealed in turns, between real processes.

    python benchmarks/engine/sealed.py --replicas 2 4 --pairs 60

Every process gathers one payload plain and then sealed, again and again. The figures are milliseconds of rank 0:
medians over the pairs. `seal` and `open` are those of one part in a process that does nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from torch.distributed import FileStore

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import save
from tsugi_kpool.engine.collective import GlooGroup
from tsugi_kpool.engine.sealed import Nonces, Seal, SealedGroup

KEY = bytes(range(32))
SIZES = (100_000, 1_200_000, 12_000_000)
WARM = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--dry", action="store_true", help="print, write no result file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    alone = [one_part(size, arguments.pairs) for size in SIZES]
    runs = [run(replicas, size, arguments.pairs) for replicas in arguments.replicas for size in SIZES]
    for each in [*alone, *runs]:
        print(each, flush=True)
    if not arguments.dry:
        save("sealed", {"parts": alone, "runs": runs})


def one_part(size: int, pairs: int) -> dict[str, Any]:
    ours, theirs = (Seal(KEY, 1, (0, 1), rank, Nonces()) for rank in range(2))
    part, room = torch.randint(0, 256, (size,), dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
    seals, opens = [], []
    for number in range(pairs):
        began_s = time.perf_counter()
        sealed = ours.seal(part, b"gath", number)
        sealed_s = time.perf_counter()
        theirs.open(sealed, room, b"gath", number, 0)
        seals.append((sealed_s - began_s) * 1000)
        opens.append((time.perf_counter() - sealed_s) * 1000)
    return {"bytes": size, "seal_ms": statistics.median(seals), "open_ms": statistics.median(opens)}


def timed(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return (time.perf_counter() - started_s) * 1000


def run(replicas: int, size: int, pairs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        told = Path(scratch) / "told.pt"
        words = (replicas, size, pairs, f"{scratch}/store", str(told))
        multiprocessing.spawn(member, words, nprocs=replicas)
        figures: dict[str, Any] = torch.load(told)
    return {"replicas": replicas, "bytes": size, **figures}


def member(rank: int, replicas: int, size: int, pairs: int, store: str, told: str) -> None:
    torch.set_num_threads(1)
    plain = GlooGroup(FileStore(store, replicas), rank, replicas, "127.0.0.1", 60.0)  # type: ignore[arg-type]
    sealed = SealedGroup(plain, Seal(KEY, 1, range(replicas), rank, Nonces()))
    part = torch.randint(0, 256, (size,), dtype=torch.uint8)
    took: dict[str, list[float]] = {"plain_ms": [], "sealed_ms": []}
    for _ in range(pairs + WARM):
        took["plain_ms"].append(timed(lambda: plain.gather(part)))
        took["sealed_ms"].append(timed(lambda: sealed.gather(part)))
    if rank == 0:
        torch.save({name: statistics.median(values[WARM:]) for name, values in took.items()}, told)
    plain.gather(torch.zeros(1, dtype=torch.uint8))  # nobody closes before all have ended


if __name__ == "__main__":
    main()
