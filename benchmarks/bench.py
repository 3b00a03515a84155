"""`tsugi bench` with the tiny model: all methods under several scenarios. Each benchmark is one entry of bench.json.

    python benchmarks/bench.py --scenarios straggler4x healthy jitter --replicas 2 4
    python benchmarks/bench.py --scenarios straggler4x --replicas 4 --settings bench.device_step_s=0.2
    python benchmarks/bench.py --collect runs/latest-bench      # put a finished benchmark's figures there, too

The emulated device leaves the cores idle most of the time; a busy machine shows in the column of late steps.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from harness import RESULTS, save

STEPS = {2: 240, 4: 480}


def command(scenario: str, replicas: int, settings: list[str]) -> list[str]:
    """What is typed for one benchmark; `settings` come last and win."""
    words = ["model=tiny", "train.lr=4e-3", f"topology.replicas={replicas}", f"bench.scenario={scenario}"]
    return [
        *words,
        f"bench.steps={STEPS.get(replicas, 120 * replicas)}",
        "bench.lr_scales=[0.5,1,2]",
        *settings,
    ]


def run(scenario: str, replicas: int, settings: list[str]) -> dict[str, Any]:
    """One benchmark in a scratch directory; its bench.json.

    Raises:
        RuntimeError: it failed; the text ends with what it said.
    """
    words = command(scenario, replicas, settings)
    print("+ tsugi bench", *words, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        whole = [sys.executable, "-m", "tsugi_cli.app", "bench", "--json", "--plain", *words]
        result = subprocess.run(whole, cwd=scratch, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{shlex.join(words)}: exit code {result.returncode}")
    return dict(json.loads(result.stdout))


def entry(found: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a bench.json: all of it, in fewer digits."""
    return dict(json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.5g}")))


def add(found: dict[str, Any]) -> None:
    """Put one benchmark into bench.json, in the place of an earlier one of the same scenario and size."""
    path = RESULTS / "bench.json"
    entries = json.loads(path.read_text())["entries"] if path.exists() else []
    key = (found["bench"]["name"], found["replicas"])
    entries = [each for each in entries if (each["bench"]["name"], each["replicas"]) != key]
    entries.append(entry(found))
    entries.sort(key=lambda each: (each["bench"]["name"], each["replicas"]))
    save("bench", {"entries": entries})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="*", default=[])
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--settings", nargs="+", default=[], help="more words for `tsugi bench`")
    parser.add_argument("--collect", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    for folder in arguments.collect:
        add(json.loads((folder / "bench.json").read_text()))
    for each in product(arguments.scenarios, arguments.replicas):
        add(run(*each, arguments.settings))


if __name__ == "__main__":
    main()
