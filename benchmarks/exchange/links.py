"""A round over the exchange against one over a gloo group, behind slow links: the hub's machine has one, too.

    python benchmarks/exchange/links.py --replicas 4 8 --rounds 6 --mbit 20 --rtt 40

Every replica and the hub are network namespaces with a cable of this rate each way to a switch, and this round trip
between any two. All ship the same payload of 1.2 MB, from a barrier, in turns by the group (everybody's part to
everybody) and by the exchange (one part to the hub's machine, the mean back). The figures are seconds until the
slowest member has the mean, medians over the rounds, beside what the bytes alone take. A two-stage round
(`kpool.reduce=scatter`) is not run here: its bytes are in `bytes_s` as well. `exchange, ahead` is the mean time from
one round to the next without the barrier: each member goes on when it has its result, as the hub lets it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.exchange.rounds import HUB, MEMBERS, NUMBERS, RUN, member
from benchmarks.harness import save
from tsugi_cli.bench.links.hosts import Here, fleet
from tsugi_cli.bench.spec import Scenario
from tsugi_cli.launch import exchange_process
from tsugi_cli.launch.exchange_process import ExchangeProcess
from tsugi_kpool.codec.coding import coded_bytes
from tsugi_kpool.core.settings import Payload
from tsugi_kpool.exchange.process import Orders

PORT = 51821
WAYS = ("group", "exchange")
AHEAD = 5
"""Rounds after which the exchange knows how to hand out results here (`tsugi_kpool.exchange.turns`)."""


class Told:
    """In place of a queue: what a member has found goes to its output."""

    def put(self, found: dict[str, Any]) -> None:
        print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--mbit", type=float, default=20.0)
    parser.add_argument("--rtt", type=float, default=40.0, help="ms between any two machines")
    parser.add_argument("--hub-trains", action="store_true", help="the first replica is on the hub's machine")
    parser.add_argument("--dry", action="store_true", help="print, write no result file")
    parser.add_argument("--member", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.member:
        rank, replicas, rounds, store, own, hub = arguments.member
        member(int(rank), int(replicas), PORT, int(rounds), store, Told(), own, hub, WAYS, 1, AHEAD)
        return
    runs = [run(replicas, arguments) for replicas in arguments.replicas]
    for each in runs:
        print(each, flush=True)
    if not arguments.dry:
        name = "exchange_links_hub_trains" if arguments.hub_trains else "exchange_links"
        save(name, {"payload_bytes": coded_bytes(NUMBERS, Payload.INT8), "runs": runs})


def run(replicas: int, given: argparse.Namespace) -> dict[str, Any]:
    scenario = Scenario(
        about="", emulate=False, slow=1.0, jitter=0.0, link="each", mbit_s=given.mbit, delay_ms=given.rtt / 4,
        delay_jitter_ms=0.0, loss=0.0,
    )  # fmt: skip
    apart = 0 if given.hub_trains else 1
    with fleet(scenario, replicas + apart) as hosts, tempfile.TemporaryDirectory() as folder:
        command, exchange_process.COMMAND = exchange_process.COMMAND, hosts.inside(0, exchange_process.COMMAND)
        orders = Orders(folder, replicas, HUB, MEMBERS, 1, RUN)
        exchange = ExchangeProcess(hosts.address(0), PORT, orders, print, lambda *_: None, print)
        exchange.start()
        exchange_process.COMMAND = command
        try:
            told = members(hosts, replicas, given.rounds, f"{folder}/store", apart)
        finally:
            exchange.stop()
    slowest = {way: np.max([each[way] for each in told], axis=0) for way in WAYS}
    payload_s = coded_bytes(NUMBERS, Payload.INT8) * 8 / (given.mbit * 1e6)
    far = replicas - 1 + apart
    return {
        "replicas": replicas,
        "mbit": given.mbit,
        "rtt_ms": given.rtt,
        "rounds": given.rounds,
        "s": {way: round(float(np.median(slowest[way])), 2) for way in WAYS}
        | {"exchange, ahead": round(max(float(np.mean(each["ahead"])) for each in told), 2)},
        "s_quartiles": {way: np.percentile(slowest[way], (25, 75)).round(2).tolist() for way in WAYS},
        "bytes_s": {
            "group": round((replicas - 1) * payload_s, 2),
            "scatter": round(2 * (replicas - 1) / replicas * payload_s, 2),
            "exchange": round(2 * far * payload_s, 2),
            "exchange, ahead": round((far + 1) * payload_s, 2),
            "exchange, a hub without a limit": round(2 * payload_s, 2),
        },
    }


def members(hosts: Here, replicas: int, rounds: int, store: str, first: int) -> list[dict[str, Any]]:
    """Run the members, each on its machine, the first one on this; what they have found."""
    made: list[subprocess.Popen[str]] = []
    try:
        for rank in range(replicas):
            words: Sequence[str] = (f"{rank}", f"{replicas}", f"{rounds}", store, hosts.address(rank + first))
            command = [sys.executable, __file__, "--member", *words, hosts.address(0)]
            made.append(subprocess.Popen(hosts.inside(rank + first, command), stdout=subprocess.PIPE, text=True))
        return [json.loads(each.communicate(timeout=900)[0]) for each in made]
    finally:
        for each in made:
            each.kill()


if __name__ == "__main__":
    main()
