"""What a fleet survives, in figures: faults by name against real runs, with the budgets that they are held to.

    python benchmarks/chaos/run.py --counts pr                        # about half an hour on two cores
    python benchmarks/chaos/run.py --counts pr --parts killed cut     # these only; the others' figures stay

Every part holds the rules with zero tolerance (tests/faults/books.py): versions count up by one with one digest on
all members, every position of the data is durable once, tokens committed + buffered + discarded = produced, every
checkpoint that can be seen verifies, no process is left. A fault that has not fired is an error.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sideband"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fleets
import swarm
from harness import RESULTS, save

from tests.sim.test_faults import a_faulty_run

COUNTS = {
    "pr": {
        "killed": 10, "frozen": 3, "without_hub": 8, "cut": [1.0, 10.0, 60.0], "cut_one_way": [10.0],
        "frames": 100_000, "seeds": 2_000, "soak_s": 180, "undisturbed": 3, "formed_again": 1_000,
    },
    "nightly": {
        "killed": 200, "frozen": 50, "without_hub": 80, "cut": [1.0, 10.0, 60.0] * 3, "cut_one_way": [10.0] * 3,
        "frames": 1_000_000, "seeds": 100_000, "soak_s": 3_600, "undisturbed": 5, "formed_again": 1_000,
    },
}  # fmt: skip


def simulated(seeds: int) -> dict[str, Any]:
    """Fleets in virtual time whose replicas die, freeze and are cut off; every rule after every run."""
    started_s = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(max(1, (os.cpu_count() or 2) // 2)) as pool:
        found = pool.map(_one_seed, range(seeds), chunksize=50)
    failed = {seed: error for seed, (_, error) in enumerate(found) if error}
    took_s = round(time.monotonic() - started_s)
    return {"seeds": seeds, "faults": sum(count for count, _ in found), "failed": failed, "took_s": took_s}


def _one_seed(seed: int) -> tuple[int, str]:
    try:
        return a_faulty_run(seed), ""
    except AssertionError as error:
        return 0, repr(error)[:200]


def fuzzed(frames: int) -> dict[str, Any]:
    import fuzz

    return fuzz.decoder(frames)


def soaked(seconds: int, runs: int) -> dict[str, Any]:
    """One run with kills, and the same work a few times without: its loss must lie among theirs."""
    disturbed = swarm.soak(seconds, seed=0)
    print("soak", disturbed, flush=True)
    calm = [swarm.undisturbed(int(disturbed["samples"])) for _ in range(runs)]
    return {"disturbed": disturbed, "undisturbed": calm}


def parts(counts: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    return {
        "killed": lambda: fleets.killed(counts["killed"]),
        "frozen": lambda: fleets.frozen(counts["frozen"]),
        "without_hub": lambda: fleets.without_hub(counts["without_hub"]),
        "cut": lambda: fleets.cut(counts["cut"]),
        "cut_one_way": lambda: fleets.cut(counts["cut_one_way"], one_way=True),
        "frames": lambda: fuzzed(counts["frames"]),
        "simulated": lambda: simulated(counts["seeds"]),
        "soak": lambda: soaked(counts["soak_s"], counts["undisturbed"]),
        "formed_again": lambda: swarm.formed_again(counts["formed_again"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", choices=list(COUNTS), default="pr")
    parser.add_argument("--parts", nargs="+", choices=list(parts(COUNTS["pr"])))
    arguments = parser.parse_args()
    failed = []
    for name, measure in parts(COUNTS[arguments.counts]).items():
        if arguments.parts and name not in arguments.parts:
            continue
        try:
            found = measure()
        except Exception as error:  # noqa: BLE001  (the other parts' figures are worth having)
            failed.append(name)
            print(name, "failed:", repr(error)[:3000], flush=True)
            continue
        known = json.loads(path.read_text()) if (path := RESULTS / "chaos.json").exists() else {}
        load = round(os.getloadavg()[0], 1)
        figures = {**known.get("parts", {}), name: {**found, "counts": arguments.counts, "load": load}}
        save("chaos", {"parts": figures})
        print(name, json.dumps(found, default=str)[:2000], flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
