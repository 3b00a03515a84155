"""What breaks first when a fleet grows, and at what size? Simulated fleets, and what a simulation does not have.

    python benchmarks/scale.py --scenarios fast churn regions --replicas 10 100 300 1000 --minutes 10
    python benchmarks/scale.py --scenarios fast churn regions --replicas 10000 --minutes 1
    python benchmarks/scale.py --plane exchange --record scale_exchange --scenarios churn --replicas 1000 10000
    python benchmarks/scale.py --parts

As `tsugi bench --simulate` has them: steps of 2 s with 10 % jitter, one replica in ten takes four times as
long, adapters as large as those of the published Llama-3-8B protocol (r=16 on q and v, N=8, K=2, int8). `--parts`
measures what stands behind two of its figures: what gloo's rendezvous asks of the store, with real groups in one
process, and the processor time of combining a round.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
import threading
import time
from itertools import product
from typing import Any

import torch
from harness import add, made

from tsugi_cli.bench.simulate.command import Watch, as_json, one, uncollected
from tsugi_cli.bench.simulate.modelled import adapter_values
from tsugi_cli.bench.simulate.request import read
from tsugi_cli.signals import Signals
from tsugi_kpool.codec import header
from tsugi_kpool.codec.keeper import Keeper
from tsugi_kpool.codec.shards import Cut
from tsugi_kpool.core.replica.ledger import Shipment
from tsugi_kpool.core.settings import Payload, Reduce
from tsugi_kpool.engine import rounds
from tsugi_kpool.engine.collective import GlooGroup
from tsugi_kpool.engine.scattered import scattered
from tsugi_kpool.engine.sideband_store import SidebandStore
from tsugi_kpool.engine.ways import Place

LLAMA = 2 * 32 * ((4096 + 4096) + (4096 + 1024))
"""Numbers in one of 8 adapters of rank 2 on q and v of 32 layers."""
FLEET = ["slow_share=0.1", f"adapter_values={LLAMA}", "combine_ns=1.2"]
FLEET += ["bench.scenario.slow=4", "bench.scenario.jitter=0.1"]
REGIONS = ["scenario=cross_region", "bench.scenario.mbit_s=1000", "bench.scenario.delay_jitter_ms=0"]
SCENARIOS = {
    "fast": ["scenario=straggler4x"],
    "churn": ["scenario=straggler4x", "churn=0.01"],
    "regions": REGIONS,
    "regions, churn": [*REGIONS, "churn=0.01"],
}
PARTS = (2, 4, 8, 16, 32, 64)
"""Of a round that is combined here."""
SIZES = {"rendezvous": (2, 4, 8, 16, 32, 48), "combine": PARTS, "owned": PARTS}


def simulated(name: str, replicas: int, minutes: float, reduce: str, plane: str = "group") -> dict[str, Any]:
    """One fleet."""
    size = [f"replicas={replicas}", f"minutes={minutes}"]
    how = [f"kpool.reduce={reduce}", f"topology.data_plane={plane}"]
    asked = read([*SCENARIOS[name], *FLEET, *size, *how])
    values = adapter_values(asked.simulation, asked.spec)
    with Signals() as signals, Watch(sys.stderr, True, asked) as watch, uncollected():
        scale = one(asked, replicas, values, watch, signals)
    if scale is None:
        raise SystemExit(130)
    (fleet,) = as_json(asked, values, [scale])["fleets"]
    held = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )  # of this process so far: that of the largest fleet
    return {"scenario": name, "minutes": minutes, "plane": plane, "process_bytes": held, **fleet}


class _Store:
    """Counts what a rendezvous asks for; all members of a group share it."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.asked = self.carried = 0
        self._changed = threading.Condition()

    def store_put(self, key: str, value: bytes) -> None:
        with self._changed:
            self.values[key] = value
            self._changed.notify_all()


class _Member:
    """One member's link: a value that it has been told once is not asked for again (as sideband.link)."""

    def __init__(self, store: _Store) -> None:
        self._store, self._known = store, dict[str, bytes]()

    def store_put(self, key: str, value: bytes) -> None:
        self._store.store_put(key, value)

    def store_get(self, key: str, timeout_s: float) -> bytes | None:
        if key not in self._known:
            ends_s = time.monotonic() + timeout_s
            with self._store._changed:
                while key not in self._store.values:
                    if not self._store._changed.wait(max(0.0, ends_s - time.monotonic())):
                        return None
                self._known[key] = self._store.values[key]
                self._store.asked += 1
                self._store.carried += len(self._known[key])
        return self._known[key]


def rendezvous(members: int) -> dict[str, Any]:
    """Form one real gloo group on loopback; what it took from the store."""
    store, groups = _Store(), [None] * members

    def form(rank: int) -> None:
        uplink: Any = _Member(store)
        groups[rank] = GlooGroup(SidebandStore(uplink, "1/", 20.0), rank, members, "127.0.0.1", 30.0)  # type: ignore[call-overload]

    threads = [threading.Thread(target=form, args=(rank,)) for rank in range(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    address = max(map(len, store.values.values()))
    return {"part": "rendezvous", "members": members, "questions": store.asked, "address_bytes": address}


class _Mean:
    """Only the sum that every update rule begins with."""

    def shares(self, headers: Any) -> Any:
        return header.shares(headers)

    def combine(self, pooled: Any) -> Any:
        return type("Combined", (), {"norms": [float(each.norm()) for each in pooled.mean], "digest": ""})


def combined(members: int) -> dict[str, Any]:
    """Decode, check and average a round of K=2 of the Llama adapters; processor time for each number of a member."""
    shipment = Shipment((0, 1), (100, 100), (4, 4), 0)
    delta = torch.randn(2, LLAMA) * 1e-3
    mine = rounds.Contribution(shipment, delta, torch.zeros(2, dtype=torch.float64), 1e-3)
    parts = [rounds.pack(mine, Payload.INT8) for _ in range(members)]
    best_s = 1e9
    for _ in range(3):
        began_s = time.process_time()
        rounds.combine(parts, 0, mine, _Mean(), Payload.INT8, True)  # type: ignore[arg-type]
        best_s = min(best_s, time.process_time() - began_s)
    return {
        "part": "combine",
        "members": members,
        "cpu_s": best_s,
        "ns_per_number": best_s / members / 2 / LLAMA * 1e9,
    }


def owned(members: int) -> dict[str, Any]:
    """A member's part of a two-stage round of the same adapters: code shards, average its own, decode all means."""
    shipment = Shipment((0, 1), (100, 100), (4, 4), 0)
    delta = torch.randn(2, LLAMA) * 1e-3
    mine = rounds.Contribution(shipment, delta, torch.zeros(2, dtype=torch.float64), 1e-3)
    cut, keeper = Cut(LLAMA, members, Payload.INT8), Keeper(2, LLAMA, Payload.INT8)
    keeper.begin(cut, 0)
    place = Place(0, members, _Mean(), Payload.INT8, True)  # type: ignore[arg-type]
    best_s = 1e9
    for _ in range(3):
        began_s = time.process_time()
        way = scattered(place, keeper, cut, mine, [])
        first = next(way)
        second = way.send([first.parts[0]] * members)  # type: ignore[union-attr]
        answers = [torch.zeros(size, dtype=torch.uint8) for size in second.receives]  # type: ignore[union-attr]
        with contextlib.suppress(StopIteration):
            way.send([second.parts[0], *answers[1:]])  # type: ignore[union-attr]
        best_s = min(best_s, time.process_time() - began_s)
    return {"part": "owned", "members": members, "cpu_s": best_s, "ns_per_number": best_s / 2 / LLAMA * 1e9}


MEASURED = {"rendezvous": rendezvous, "combine": combined, "owned": owned}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", choices=list(SCENARIOS), default=["fast", "churn", "regions"])
    parser.add_argument("--replicas", type=int, nargs="+", default=[10, 100, 300, 1000])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--record", default="scale_ways", help="file of benchmarks/results that the runs go to")
    parser.add_argument("--reduce", nargs="+", choices=list(Reduce), default=["auto"], help="kpool.reduce")
    parser.add_argument("--plane", choices=["group", "exchange"], default="group", help="topology.data_plane")
    parser.add_argument("--parts", nargs="+", choices=list(MEASURED), help="only what a simulation does not have")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.parts:
        for run in (MEASURED[part](members) for part in given.parts for members in SIZES[part]):
            print(run, flush=True)
            add(given.record, run)
        return
    for replicas, name, reduce in product(given.replicas, given.scenarios, given.reduce):
        if not made(given.record, scenario=name, replicas=replicas, reduce=reduce):
            run = {"reduce": reduce, **simulated(name, replicas, given.minutes, reduce, given.plane)}
            print(run, flush=True)
            add(given.record, run)


if __name__ == "__main__":
    main()
