"""How much of a core the exchange takes: many members of the Llama-3-8B protocol, against one real exchange.

    python benchmarks/exchange/core.py --replicas 10 100 --rounds 12

One process plays all members: each has a TLS connection of its own and sends a real part (r=16 on q and v, K=2 of
N=8, int8), all at once, and takes the result. The exchange's processor time is read from the system, so that other
work on the machine moves it little. A core's share follows from the rounds a minute that such a fleet makes in the
simulator (`benchmarks/results/scale.json`, scenario fast), to which the hub's own share is added.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.exchange.rounds import HUB, MEMBERS, RUN
from benchmarks.harness import RESULTS, save
from tsugi_cli.launch.exchange_process import ExchangeProcess
from tsugi_kpool.codec import header
from tsugi_kpool.codec.coding import coded_bytes, encode
from tsugi_kpool.core.hub.seats import seat_key
from tsugi_kpool.core.hub.tickets import Tickets
from tsugi_kpool.core.settings import Payload
from tsugi_kpool.exchange.certificates import member_context, member_credentials, server_credentials
from tsugi_kpool.exchange.client import ExchangeClient, Place
from tsugi_kpool.exchange.frames import Part
from tsugi_kpool.exchange.process import Orders

N, K = 8, 2
NUMBERS = 851_968
"""Of an adapter: rank 2 of 16 on q (4096 x 4096) and v (4096 x 1024) of 32 layers."""
WARM = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--dry", action="store_true", help="print, write no result file")
    arguments = parser.parse_args()
    runs = [run(replicas, arguments.rounds) for replicas in arguments.replicas]
    for each in runs:
        print(each, flush=True)
    if not arguments.dry:
        save("exchange_core", {"payload_bytes": coded_bytes(K * NUMBERS, Payload.INT8), "runs": runs})


def run(replicas: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        orders = Orders(folder, replicas, HUB, MEMBERS, N, RUN)
        exchange = ExchangeProcess("127.0.0.1", 0, orders, print, lambda *_: None, print)
        port = exchange.start()
        context = member_context(member_credentials(MEMBERS), server_credentials(HUB).certificate)
        clients = [
            ExchangeClient(Place("127.0.0.1", port, each, seat_key(HUB, each)), context, 300.0)
            for each in range(replicas)
        ]
        process = psutil.Process(exchange.pid)
        took: list[float] = []
        with ThreadPoolExecutor(replicas) as pool:
            for number in range(1, rounds + WARM + 1):
                before = sum(process.cpu_times()[:2])
                a_round(pool, clients, number)
                took.append(sum(process.cpu_times()[:2]) - before)
        peak = process.memory_info().rss
        exchange.stop()
    return {"replicas": replicas, "rounds": rounds, **share(replicas, took[WARM:]), "memory_mb": round(peak / 1e6)}


def a_round(pool: ThreadPoolExecutor, clients: list[ExchangeClient], number: int) -> None:
    members = tuple(range(len(clients)))
    adapters = tuple((K * number + row) % N for row in range(K))
    ticket = Tickets(RUN, HUB).of_round(1, number, number - 1, adapters, members, number - 1)
    part = Part(1, number, number - 1, adapters, members, NUMBERS, "int8", number - 1, ticket=ticket)
    values = np.random.default_rng(number).standard_normal((K, NUMBERS)).astype(np.float32)
    head = header.header([10] * K, [2] * K, [0.0] * K, 0.1)
    body = np.concatenate([head.reshape(-1).view(np.uint8), encode(values, Payload.INT8)]).data
    list(pool.map(lambda client: client.reduce_with(part, body, lambda *_: None), clients))


def share(replicas: int, cpu_s: list[float]) -> dict[str, Any]:
    """Return the exchange's and the hub's share of a core, where the simulator has had such a fleet."""
    low, median, high = np.percentile(cpu_s, (25, 50, 75)).round(3).tolist()
    found = {"cpu_s": median, "cpu_s_quartiles": [low, high], "load": round(os.getloadavg()[0], 1)}
    scale = json.loads((RESULTS / "scale.json").read_text())["runs"]
    for each in scale:
        if (each.get("scenario"), each.get("replicas")) == ("fast", replicas):
            a_minute = each["rounds"] / each["seconds"] * 60
            found |= {"rounds_a_minute": round(a_minute, 1), "exchange_core": round(median * a_minute / 60, 3)}
            found["hub_core"] = round(each["hub_cpu"], 3)
    return found


if __name__ == "__main__":
    main()
