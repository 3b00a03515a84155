"""From Enter to the first step: `tsugi finetune model=tiny`, forked from a preloaded process or started anew.

    python benchmarks/start.py --pairs 5
    python benchmarks/start.py --pairs 3 --set topology.replicas=4

Both ways in turns, so that others who use the machine disturb both alike; compare the ratios of the pairs. Processor
seconds are of the whole run, of all its processes, and hardly depend on others.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from harness import save

RUN = ["finetune", "--plain", "model=tiny", "train.max_steps=8", "data.n_eval=4", "data.n_test=0"]
ANEW = "from tsugi_cli.preload.client import ForkServer; ForkServer.start = lambda *_: None; "
COMMAND = "from tsugi_cli.entry import main; main()"
WAYS = {"anew": ANEW + COMMAND, "forked": COMMAND}
SHOWN = ("first_line_s", "joined_s", "first_step_s", "processor_s")


def measure(way: str, overrides: list[str], timeout_s: float = 600) -> dict[str, float]:
    """Seconds from Enter to the first line, the last replica's joining and the first step; processor seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        before, start_s = _processor_s(), time.time()
        command = [sys.executable, "-c", WAYS[way], *RUN, *overrides]
        with subprocess.Popen(command, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
            stdout = run.stdout or sys.stdin.buffer
            stdout.readline()
            first_line_s = time.time() - start_s
            said = stdout.read()
            if run.wait(timeout_s):
                raise RuntimeError(said.decode()[-2000:])
        latest = Path(scratch) / "runs" / "latest"
        joined = [each for each in _lines(latest / "events.jsonl") if each["event"] == "joined"]
        first = _lines(latest / "metrics.jsonl")[0]
        return {
            "first_line_s": round(first_line_s, 2),
            "joined_s": round(_at_s(joined[-1]) - start_s, 2),
            "first_step_s": round(_at_s(first) - start_s, 2),
            "processor_s": round(_processor_s() - before, 2),
        }


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _at_s(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure in turns, print medians, write results/start.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of the runs")
    arguments = parser.parse_args()
    measure("forked", arguments.set)  # model and data are prepared once; that run is not counted
    pairs = []
    for number in range(arguments.pairs):
        order = list(WAYS) if number % 2 else list(reversed(WAYS))
        load = round(os.getloadavg()[0], 1)
        pairs.append({way: measure(way, arguments.set) for way in order} | {"load": load})
        print(json.dumps(pairs[-1]), flush=True)
    medians = {way: {each: statistics.median(p[way][each] for p in pairs) for each in SHOWN} for way in WAYS}
    ratios = {each: round(statistics.median(p["forked"][each] / p["anew"][each] for p in pairs), 2) for each in SHOWN}
    print(json.dumps({"medians": medians, "ratios": ratios}, indent=2))
    figures = {"settings": RUN[2:] + arguments.set, "medians": medians, "ratios": ratios, "pairs": pairs}
    save("start", figures)


if __name__ == "__main__":
    main()
