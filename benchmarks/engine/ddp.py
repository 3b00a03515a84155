"""Synchronous training to compare with: DistributedDataParallel on the same data in the same order.

    torchrun --rdzv-backend=tsugi --nproc-per-node=2 benchmarks/engine/ddp.py --out FILE recipe=smollm2_tools ...

Takes the overrides of `tsugi finetune`; ../synchronous.py says what a step is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from synchronous import Place, Synchronous, place_of

from tsugi_cli.bench.compare.ddp import leave
from tsugi_cli.config.compose import compose
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.model import quieten
from tsugi_kpool import init_process_group


def train(spec: RunSpec, place: Place) -> dict[str, Any]:
    """One run of this rank; the same figures on all ranks."""
    run = Synchronous(spec, place)
    if run.left_over:
        raise SystemExit(f"{run.left_over} samples are left that fill no whole step of all replicas")
    before, started_s = run.loss("base"), time.monotonic()
    steps = run.train()
    trained_s = time.monotonic() - started_s
    samples, tokens = sum(step.samples for step in steps), sum(step.tokens for step in steps)
    loss = {"base": before, "trained": run.loss("trained")}
    return {"loss": loss, "samples": samples, "tokens": tokens, "trained_s": trained_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    quieten()
    spec = compose(arguments.overrides)
    torch.set_num_threads(spec.topology.threads_per_worker)
    place = place_of(spec)
    init_process_group(place.backend)
    figures = train(spec, place)
    if dist.get_rank() == 0:
        arguments.out.write_text(json.dumps(figures))
    leave()


if __name__ == "__main__":
    main()
