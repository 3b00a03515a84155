"""Pictures of benchmarks/peers: the same workload by others' software."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from charts import Bar, Drawing, Picture, bars, spread

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


CAPTION = (
    "Two replicas on two CPU cores, a tiny model, an emulated device; medians of three seeds, whiskers from the "
    "lowest to the highest, each at its best learning rate. One replica's data is nearly enough for this task, so "
    "that leaving the slow one out would lose little."
)
DRAWINGS: dict[str, Drawing] = {
    "figure-peers": Drawing(
        ("peers",), reached("straggler4x", "seconds to a loss of 2.8, one of two 4x slower"), CAPTION
    ),
    "figure-peers-healthy": Drawing(
        ("peers",), reached("healthy", "seconds to a loss of 2.8, nobody is slow"), CAPTION
    ),
}
"""Name of the picture -> how it is drawn."""
