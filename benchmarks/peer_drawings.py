"""Pictures of benchmarks/peers: the same workload by others' software."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from charts import Bar, Drawing, Picture, bars, spread
from peer_tables import NEWEST, compared

Record = dict[str, Any]
PEERS = {
    "no_sync": ("one replica alone", "no_sync"),
    "torch_ddp": ("torch DDP", "ddp"),
    "accelerate_local_sgd": ("accelerate LocalSGD", "local_sgd"),
    "torchft_local_sgd": ("torchft LocalSGD", "local_sgd"),
    "torchft_diloco": ("torchft DiLoCo", "diloco"),
    "hivemind": ("hivemind", "hivemind"),
    "tsugi_kpool_013_fires": ("tsugi-kpool 0.1.3", "tsugi_kpool_013"),
    "tsugi": ("Tsugi", "kpool"),
}
"""A peer of the results -> its name, and whose colour it has. `tsugi_kpool_013` alone trains nothing."""


def reached(scenario: str, title: str) -> Callable[[Record], Picture]:
    """Seconds to the target; those that have not got there say so."""

    def draw(record: Record) -> Picture:
        found = {row["peer"]: row for row in record["summary"] if row["scenario"] == scenario}
        rows: list[Bar | str] = []
        for peer, (name, method) in PEERS.items():
            times = found[peer]["to_target_s"] if peer in found else []
            if times:
                words = f"{statistics.median(times):.1f} s"
                rows.append(Bar(name, spread(times, statistics.median), words, method))
            elif peer in found:
                rows.append(Bar(name, None, "not within the run", method))
        return bars(rows, title)

    return draw


def newest(scenario: str, title: str) -> Callable[[Record], Picture]:
    """Seconds to the target of the newest peers."""

    def draw(record: Record) -> Picture:
        found = {
            row["peer"]: row
            for row in compared(record["runs"], record["target"], **NEWEST)
            if row["scenario"] == scenario
        }
        rows: list[Bar | str] = []
        for peer, (name, method, *variant) in NEWEST_PEERS.items():
            row = found.get(peer)
            if row is not None and row["to_target_s"] and not row["missed"]:
                words = f"{statistics.median(row['to_target_s']):.1f} s"
                time = spread(row["to_target_s"], statistics.median)
                rows.append(Bar(name, time, words, method, bool(variant)))
            elif row is not None:
                there = len(row["to_target_s"])
                rows.append(Bar(name, None, f"{there} of {len(row['seeds'])} runs get there", method))
        return bars(rows, title)

    return draw


NEWEST_PEERS: dict[str, tuple[Any, ...]] = {
    "no_sync": ("one fast replica alone", "no_sync"),
    "torch_ddp": ("torch DDP", "ddp"),
    "torchft_local_sgd_own": ("torchft LocalSGD, own sync_every", "local_sgd"),
    "torchft_diloco_own": ("torchft DiLoCo, own sync_every", "diloco"),
    "hivemind": ("hivemind", "hivemind"),
    "gradientmail_carry": ("gradientmail, Carry", "diloco", True),
    "onepool": ("onepool, rounds by speed", "local_sgd", True),
    "tsugi_fleet": ("Tsugi", "kpool"),
}
CAPTION = (
    "Two replicas on two CPU cores, a tiny model, an emulated device; medians of three seeds, whiskers from the "
    "lowest to the highest, each at its best learning rate. One replica's data is nearly enough for this task, so "
    "that leaving the slow one out would lose little."
)
NEWEST_CAPTION = (
    "Four replicas, a LoRA of rank 64 on a tiny model, an emulated device; medians of two seeds, whiskers from the "
    "lower to the higher. The machine was busy with other work. "
)
DRAWINGS: dict[str, Drawing] = {
    "figure-newest-straggler": Drawing(
        ("peers_newest",),
        newest("straggler4x", "seconds to a loss of 2.0, one of four 4x slower"),
        NEWEST_CAPTION + "torchft is told how much slower the slow machine is, onepool measures it.",
    ),
    "figure-newest-slow-link": Drawing(
        ("peers_newest",),
        newest("slow_link", "seconds to a loss of 2.0, equal machines, 1 Mbit/s"),
        NEWEST_CAPTION + "Namespaces with shaped cables; gradientmail's store is behind a fast one.",
    ),
    "figure-peers": Drawing(
        ("peers",), reached("straggler4x", "seconds to a loss of 2.8, one of two 4x slower"), CAPTION
    ),
    "figure-peers-healthy": Drawing(
        ("peers",), reached("healthy", "seconds to a loss of 2.8, nobody is slow"), CAPTION
    ),
}
"""Name of the picture -> how it is drawn."""
