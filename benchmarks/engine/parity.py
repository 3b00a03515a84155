"""Loss parity: local mode with 2 and 4 replicas against synchronous DDP, at equal tokens.

    python benchmarks/engine/parity.py --recipes smollm2_tools smollm2_docstrings --replicas 2 4 --seeds 0 1 2

Both arms train a LoRA of the same total rank on the same samples in the same order, with the same micro-batches,
schedule and eval split: the arm `local` is `tsugi finetune`, the arm `ddp` is ddp.py under torchrun. Each run is
written to the result file as it ends, and a run that is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from harness import finetune, runs, save

SAMPLES = {"smollm2_tools": 240, "smollm2_docstrings": 160}
"""Trained on: divisible by what 4 replicas take in one step."""
QUIET = ("data.n_test=0", "data.scorer=null", "evaluate.examples=0")
"""No generation: eval loss is what is compared."""
Run = dict[str, Any]


def measure(recipe: str, replicas: int, seed: int, arm: str, scale: float) -> Run:
    """One run: what it is, and its eval loss before and after."""
    overrides = [f"recipe={recipe}", f"seed={seed}", f"data.n_train={SAMPLES[recipe]}", *QUIET]
    overrides += [f"topology.replicas={replicas}", f"topology.min_replicas={replicas}"]
    if scale != 1.0:
        overrides.append(f"train.lr={scale * base_lr(recipe):g}")
    figures = local(overrides) if arm == "local" else ddp(overrides, replicas)
    return {"recipe": recipe, "replicas": replicas, "seed": seed, "arm": arm, "lr_scale": scale, **figures}


def base_lr(recipe: str) -> float:
    from tsugi_cli.config.compose import compose

    return compose([f"recipe={recipe}"]).train.lr


def local(overrides: list[str]) -> Run:
    summary = finetune(*overrides)
    loss = {stage: measures["loss"] for stage, measures in summary["evaluation"].items()}
    kept = {key: summary[key] for key in ("samples", "tokens", "goodput", "rounds", "wall_s")}
    return {"loss": loss, "trained_s": max(each["trained_s"] for each in summary["replicas"]), **kept}


def ddp(overrides: list[str], replicas: int) -> Run:
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "figures.json"
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--rdzv-backend=tsugi",
            f"--nproc-per-node={replicas}",
        ]
        command += [str(Path(__file__).with_name("ddp.py")), "--out", str(out), *overrides]
        print("+ ddp.py", *overrides, flush=True)
        result = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
        if result.returncode:
            raise RuntimeError(result.stderr[-2000:])
        figures: Run = json.loads(out.read_text())
    return figures


def summarise(runs: list[Run]) -> list[dict[str, Any]]:
    """For each recipe, number of replicas and learning rate: by how much local mode's eval loss is higher."""
    cells: dict[tuple[str, int, float], dict[int, dict[str, float]]] = {}
    for run in runs:
        pairs = cells.setdefault((run["recipe"], run["replicas"], run["lr_scale"]), {})
        pairs.setdefault(run["seed"], {})[run["arm"]] = run["loss"]["trained"]
    rows = []
    for (recipe, replicas, scale), pairs in sorted(cells.items()):
        whole = {seed: pair for seed, pair in sorted(pairs.items()) if len(pair) == 2}
        if not whole:
            continue
        percent = [100 * (pair["local"] / pair["ddp"] - 1) for pair in whole.values()]
        rows.append(
            {
                "recipe": recipe,
                "replicas": replicas,
                "lr_scale": scale,
                "seeds": list(whole),
                "ddp": statistics.mean(pair["ddp"] for pair in whole.values()),
                "local": statistics.mean(pair["local"] for pair in whole.values()),
                "percent": percent,
                "mean_percent": statistics.mean(percent),
                "nats": statistics.mean(pair["local"] - pair["ddp"] for pair in whole.values()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(SAMPLES), choices=list(SAMPLES))
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr-scales", type=float, nargs="+", default=[1.0], help="of the recipe's learning rate")
    arguments = parser.parse_args()
    known = runs("parity")
    for seed, replicas, recipe, scale in product(
        arguments.seeds, arguments.replicas, arguments.recipes, arguments.lr_scales
    ):
        for arm in ("ddp", "local"):
            key = (recipe, replicas, seed, arm, scale)
            if any(tuple(run[k] for k in ("recipe", "replicas", "seed", "arm", "lr_scale")) == key for run in known):
                continue
            known.append(measure(*key))
            print(known[-1], flush=True)
            save("parity", {"samples": SAMPLES, "summary": summarise(known), "runs": known})


if __name__ == "__main__":
    main()
