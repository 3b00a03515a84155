"""Tables of benchmarks/peers and benchmarks/llama3_8b_lora: from a result record to Markdown rows."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from scores import compared

ORDER = ("healthy", "straggler4x", "slow_link")
NEWEST = {"ours": "tsugi_fleet", "tuned_in": "straggler4x", "healthy": "healthy"}
Rows = list[list[str]]
Record = dict[str, Any]


def peers(record: Record) -> Rows:
    """Each peer at the learning rate that its first seed chose; steps are both replicas' steps."""
    target = f"seconds to {record['target']}"
    rows = [["scenario", "peer", "learning rate x", target, "loss at the end", "steps", "runs"], ["---"] * 7]
    for row in record["summary"]:
        losses, steps = row["final_loss"], row["steps"]
        reached = spread(row["to_target_s"], "{:.1f}")
        if row["missed"]:
            reached += f"; {row['missed']} not reached"
        runs = f"{len(row['seeds'])}" + (f", {row['failed']} failed" if row["failed"] else "")
        figures = [reached, spread(losses, "{:.2f}"), spread(steps, "{:.0f}"), runs]
        tried = [f"{each:g}" for each in row.get("tried", ())]
        rate = f"{row['lr_scale']:g}" + (f" of {', '.join(tried)}" if len(tried) > 1 else "")
        rows.append([row["scenario"], row["peer"], rate, *figures])
    return rows


def newest(record: Record) -> Rows:
    """The newest peers on four machines: times, and in pairs of a seed what they are of their own and of ours."""
    titles = [
        "scenario",
        "peer",
        "rate x",
        f"seconds to {record['target']:g}",
        "over its own healthy",
        "over Tsugi's",
    ]
    rows = [[*titles, "loss at the end", "steps", "MB sent", "runs"], ["---"] * 10]
    for row in sorted(compared(record["runs"], record["target"], **NEWEST), key=_soonest):
        reached = spread(row["to_target_s"], "{:.1f}") + (f"; {row['missed']} not reached" if row["missed"] else "")
        own = "" if row["scenario"] == "healthy" else spread(row["own_healthy"], "{:.2f}")
        ours = "" if row["peer"] == NEWEST["ours"] else spread(row["ours"], "{:.2f}")
        sent = spread([each / 1e6 for each in row["sent_bytes"]], "{:.2f}") if row["sent_bytes"] else ""
        runs = f"{len(row['seeds'])}" + (f", {row['failed']} failed" if row["failed"] else "")
        figures = [spread(row["final_loss"], "{:.2f}"), spread(row["steps"], "{:.0f}"), sent, runs]
        rows.append([row["scenario"], row["peer"], f"{row['lr_scale']:g}", reached, own, ours, *figures])
    return rows


def _soonest(row: Record) -> tuple[int, float]:
    times = row["to_target_s"] if not row["missed"] else []
    return ORDER.index(row["scenario"]), statistics.median(times) if times else float("inf")


def protocol(record: Record) -> Rows:
    """One row for each pair."""
    rows = [
        ["pair", "sync, tokens/s", "K-Pool, tokens/s", "uplift", "sync, final loss", "K-Pool, final loss"],
        ["---"] * 6,
    ]
    for name, arms in record["runs"].items():
        sync, kpool = arms["sync"], arms["kpool"]
        uplift = kpool["tokens_per_s"] / sync["tokens_per_s"] - 1
        rates = [f"{sync['tokens_per_s']:.0f}", f"{kpool['tokens_per_s']:.0f}", f"{uplift:+.0%}"]
        rows.append([name, *rates, f"{sync['final_loss']:.3f}", f"{kpool['final_loss']:.3f}"])
    gain = record["uplift"]
    whole = f"{record['verdict']}: mean {gain['mean']:.0%}, lower bound {gain['lower']:.0%}"
    rows.append(["all", "", "", whole, "", f"{record['loss_above']:+.3f}"])
    return rows


def spread(values: list[float], style: str) -> str:
    """Median, lowest and highest."""
    if not values:
        return "-"
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{style.format(middle)} ({style.format(low)} to {style.format(high)})"


TABLES: dict[str, tuple[str, Callable[[Record], Rows]]] = {
    "peers": ("peers", peers),
    "peers_newest": ("peers_newest", newest),
    "llama3_8b_scaled": ("llama3_8b_scaled", protocol),
    "llama3_8b_scaled_equal_rank": ("llama3_8b_scaled_equal_rank", protocol),
    "llama3_8b_one_gpu": ("llama3_8b_one_gpu", protocol),
}
"""Name of the marked block: (result file, its table)."""
