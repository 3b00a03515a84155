"""How long it takes until data are ready, and what launcher and worker hold of them.

    python benchmarks/data.py
    python benchmarks/data.py --rows 200000 --model smollm2_135m

Conversations of made-up words, about 1.5 kB a row, prepared as `tsugi finetune` does it: in a fresh process, with an
empty cache and then with a full one. Memory is what a process holds for itself when it has read every sample once,
above what the same process holds with ten rows; what it has mapped of the cache besides is shared by all workers, and
the system takes it back when it needs it ("peak_mb" has that in it).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import save

TEN = 10
EVAL = 4


def write(path: Path, rows: int) -> None:
    """Conversations that repeat nothing."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            size = rng.randint(60, 160)
            asked, answer = (" ".join(rng.choices(words, k=size)) for _ in range(2))
            turns = [{"role": "user", "content": f"{row} {asked}"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")


def process(role: str, words: list[str], cache: Path) -> dict[str, Any]:
    """What a fresh process of this role measures of itself, and how long it took from its start."""
    started_s = time.monotonic()
    command = [sys.executable, __file__, "--role", role, *words]
    env = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    result = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if result.returncode:
        raise SystemExit(result.stderr[-2000:])
    return {"wall_s": round(time.monotonic() - started_s, 2), **json.loads(result.stdout.splitlines()[-1])}


def play(role: str, words: list[str]) -> dict[str, Any]:
    """In the fresh process: the launcher's part, or a worker's that reads every sample once."""
    from tsugi_cli.launch.request import RunRequest

    if role == "launcher":
        request = RunRequest.read(words)
        found: dict[str, Any] = {"samples": request.n_train}
    else:
        import torch  # noqa: F401  (a worker has it; part of its base)

        from tsugi_cli.config.compose import compose
        from tsugi_cli.finetune.ready import opened

        samples = opened(compose(words)).train
        counts = samples.tokens()
        found = {"tokens": sum(len(samples[at].ids) for at in range(len(samples))), "supervised": sum(counts)}
    return {**found, "own_mb": own_mb(), "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def own_mb() -> int:
    """What this process holds for itself now; not the pages of files that it has mapped, which all workers share."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) // 1024


def measure(rows: int, model: str) -> dict[str, Any]:
    """All figures of one size."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cache = folder / "cache"
        figures: dict[str, Any] = {"rows": rows, "model": model}
        for name, size in (("few", TEN + EVAL), ("all", rows)):
            path = folder / f"{name}.jsonl"
            write(path, size)
            words = [f"model={model}", f"data={path}", f"data.n_eval={EVAL}", "data.max_tokens=2048"]
            first, again = process("launcher", words, cache), process("launcher", words, cache)
            worker = process("worker", words, cache)
            figures[name] = {
                "mb": round(path.stat().st_size / 1e6, 1),
                "first": first,
                "again": again,
                "worker": worker,
            }
        few, everything = figures["few"], figures["all"]
        figures["ready_s"], figures["again_s"] = everything["first"]["wall_s"], everything["again"]["wall_s"]
        figures["launcher_above_base_mb"] = everything["first"]["own_mb"] - few["first"]["own_mb"]
        figures["worker_above_base_mb"] = everything["worker"]["own_mb"] - few["worker"]["own_mb"]
        figures["worker_peak_above_base_mb"] = everything["worker"]["peak_mb"] - few["worker"]["peak_mb"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--role", choices=["launcher", "worker"], help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        print(json.dumps(play(arguments.role, arguments.words)))
        return
    save("data", measure(arguments.rows, arguments.model))


if __name__ == "__main__":
    main()
