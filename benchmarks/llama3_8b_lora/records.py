"""From a run to the record that verdict.py reads.

    python benchmarks/llama3_8b_lora/records.py RUN_DIR RUNS/seed0/kpool.json    a run of `tsugi finetune`

sync.py writes its own. A record: `failure` (null or why), `tokens_per_s` from 5 % to 95 % of the samples (the
protocol throws 100 of 2,000 steps away at each end), `checkpoints` (the mean training loss of the 5 % of the samples
before each matched checkpoint), `final_loss` (eval loss), and `equal`: what both arms must have in common.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tsugi_cli.config.compose import read_resolved, to_tree
from tsugi_cli.record.run_dir import RunPaths

TRIMMED = 0.05
CHECKPOINTS = (0.05, 0.125, 0.25, 0.5, 0.75, 1.0)
"""Steps 100, 250, 500, 1,000, 1,500 and 2,000 of 2,000, as shares of the run."""


@dataclass(frozen=True)
class Point:
    """Some steps have ended."""

    time_s: float
    samples: int
    """In them, of the whole fleet; so are the tokens."""
    tokens: int
    loss: float | None
    """Mean training loss per token in them; None: several steps were reported together, and theirs is not known."""


def summarise(points: Sequence[Point]) -> dict[str, Any]:
    """Throughput and checkpoints; throughput is None where the run is too short for a window."""
    total = sum(point.samples for point in points)
    done, share = 0, []
    for point in points:
        done += point.samples
        share.append(done / total)
    inside = [point for point, at in zip(points, share, strict=True) if TRIMMED <= at <= 1 - TRIMMED]
    seconds = inside[-1].time_s - inside[0].time_s if inside else 0.0
    tokens = sum(point.tokens for point in inside[1:])  # the first one's were trained before the window
    return {
        "samples": total,
        "tokens": sum(point.tokens for point in points),
        "tokens_per_s": tokens / seconds if seconds > 0 else None,
        "checkpoints": [_loss_at(points, share, at) for at in CHECKPOINTS],
    }


def _loss_at(points: Sequence[Point], share: Sequence[float], at: float) -> float | None:
    """Token-weighted mean over the window that ends at a checkpoint; None when it is not a number.

    Where steps were reported together and none falls into the window, the next one stands for it, or the last.
    """
    known = [(s, p.loss, p.tokens) for p, s in zip(points, share, strict=True) if p.loss is not None]
    window = [each for each in known if at - TRIMMED < each[0] <= at + 1e-9]
    window = window or [each for each in known if each[0] >= at][:1] or known[-1:]
    weight = sum(tokens for _, _, tokens in window)
    mean = sum(loss * tokens for _, loss, tokens in window) / weight if weight else math.nan
    return mean if math.isfinite(mean) else None


def of_finetune(run: Path) -> dict[str, Any]:
    """The record of a run of `tsugi finetune`."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    spec = to_tree(read_resolved(RunPaths(run)))
    outcome = summary["outcome"]
    return {
        "arm": "kpool",
        "failure": None if outcome == "finished" else outcome,
        **summarise(points_of(run / "metrics.jsonl")),
        "final_loss": summary["evaluation"].get("trained", {}).get("loss"),
        "trained_s": max(each["trained_s"] for each in summary["replicas"]),
        "goodput": summary["goodput"],
        "rounds": summary["rounds"],
        "sent_bytes": sum(each["sent_bytes"] for each in summary["replicas"]),
        "equal": equal(spec),
        "config_hash": summary["config_hash"],
    }


def points_of(metrics: Path) -> list[Point]:
    """metrics.jsonl as points; its counts are each replica's own, so far."""
    before: dict[int, tuple[int, int]] = {}
    points = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        seen = json.loads(line)
        samples, tokens = before.get(seen["replica"], (0, 0))
        before[seen["replica"]] = seen["samples"], seen["tokens"]
        time_s = datetime.fromisoformat(seen["time"]).timestamp()
        points.append(Point(time_s, seen["samples"] - samples, seen["tokens"] - tokens, _loss_of(seen)))
    return points


def _loss_of(seen: dict[str, Any]) -> float | None:
    """A step's loss that was no number spoils the mean of all steps, too; one that was replaced does not."""
    loss: float | None = seen["loss"]
    return math.nan if loss is None and seen.get("loss_mean", 0.0) is None else loss


def equal(spec: dict[str, Any]) -> dict[str, Any]:
    """What both arms must have in common, out of a resolved configuration."""
    train, data = spec["train"], spec["data"]
    named = {key: train[key] for key in ("epochs", "max_steps", "micro_batch", "lr", "warmup", "final_lr")}
    places = {key: spec["topology"][key] for key in ("replicas", "workers")}
    model = {key: spec["model"][key] for key in ("source", "path", "dtype")}
    return {"seed": spec["seed"], **named, **places, "model": model, "data": data, "fault": spec["fault"]}


def failed(name: str, reason: str) -> dict[str, Any]:
    """The record of a run that did not finish."""
    return {"arm": name, "failure": reason}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    write(arguments.out, of_finetune(arguments.run_dir))


def write(path: Path, record: dict[str, Any]) -> None:
    """Put a record where verdict.py finds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
