"""Does a slow replica slow the fast one? Paired runs, with and without an injected 4x delay on replica 1.

    python benchmarks/straggler.py --seeds 0 1 2

The figure is replica 0's supervised tokens per second while it trains, as the ratio within a pair. Order within a
pair alternates. Evaluation is off: it is not what is measured.

Two settings, because they answer two questions:
  real       SmolLM2-135M on one core for each replica; the sleeping replica leaves its core idle meanwhile.
  emulated   the tiny model, both replicas padded by sleep (8x against 8x, then 8x against 32x): cores are nearly
             idle in both arms, so what differs is coordination alone.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from harness import finetune, save

QUIET = ("data.n_eval=0", "data.n_test=0", "data.scorer=null", "evaluate.examples=0")
SETTINGS = {
    "real": (("train.max_steps=96",), ("fault.slow=[]",), ("fault.slow=[1:4.0]",)),
    "emulated": (
        ("model=tiny", "train.max_steps=240"),
        ("fault.slow=[0:8.0,1:8.0]",),
        ("fault.slow=[0:8.0,1:32.0]",),
    ),
}


def fast_rate(*overrides: str) -> dict[str, Any]:
    """Replica 0's tokens per second, and how the work was shared."""
    summary = finetune(*QUIET, *overrides)
    fast, slow = summary["replicas"]
    return {
        "tokens_per_s": fast["tokens"] / fast["trained_s"],
        "samples": [fast["samples"], slow["samples"]],
        "goodput": summary["goodput"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=["real"])
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in arguments.settings:
        common, without, with_slow = SETTINGS[name]
        pairs = []
        for seed in arguments.seeds:
            arms = [("without", without), ("with", with_slow)]
            done = {arm: fast_rate(*common, *change, f"seed={seed}") for arm, change in (arms, arms[::-1])[seed % 2]}
            pairs.append(
                {"seed": seed, **done, "ratio": done["with"]["tokens_per_s"] / done["without"]["tokens_per_s"]}
            )
            print(name, seed, pairs[-1], flush=True)
        ratios = [pair["ratio"] for pair in pairs]
        figures[name] = {
            "overrides": {"common": common, "without": without, "with": with_slow},
            "pairs": pairs,
            "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        }
    save("straggler", {"settings": arguments.settings, **figures})


if __name__ == "__main__":
    main()
