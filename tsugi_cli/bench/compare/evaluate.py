"""`python -m tsugi_cli.bench.compare.evaluate --folder DIR`: eval loss of what finished runs have kept.

The code is the same for all methods. It runs between the runs, so that it takes no time from any of them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from tsugi_cli.config.compose import read_earlier
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.evaluate import Evaluator
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import load, quieten
from tsugi_cli.finetune.ready import opened
from tsugi_kpool.engine.pool import AdapterPool

from .folder import Folder


class Judge:
    """Evaluates adapters on the whole eval split. One model serves all runs whose LoRA has the same shape."""

    def __init__(self, spec: RunSpec) -> None:
        whole = replace(spec, topology=replace(spec.topology, replicas=1))
        base, tokenizer = load(spec.model)
        self._model = add_pool(base, spec.lora)
        self._pool = AdapterPool(self._model, spec.kpool.n)
        self._evaluator = Evaluator(whole, opened(spec), tokenizer, 0)

    def loss(self, adapters: torch.Tensor) -> float:
        """Return the mean eval loss per supervised token with these adapters ([N, P])."""
        self._pool.write(adapters)
        sums = self._evaluator.run(self._model, "trained", lambda: False).sums
        return sums["loss_sum"] / sums["loss_tokens"]


def judge(folder: Folder) -> None:
    """Evaluate every finished run that has no losses yet, and delete its adapters."""
    judges: dict[str, Judge] = {}
    for measured in sorted(folder.root.glob("runs/*/measured.json")):
        key = measured.parent.name
        if folder.losses(key).exists():
            continue
        paths = folder.paths(key)
        spec, _ = read_earlier(paths)
        torch.set_num_threads(spec.topology.threads_per_worker)  # more would wait for each other on a busy machine
        if (shape := shape_of(spec)) not in judges:
            judges[shape] = Judge(spec)
        kept = load_file(paths.snapshots)
        losses = [judges[shape].loss(kept[str(number)]) for number in range(len(kept))]
        folder.write(folder.losses(key), losses)
        paths.snapshots.unlink(missing_ok=True)


def shape_of(spec: RunSpec) -> str:
    """Return a key that is equal where one model serves."""
    return f"{spec.kpool.n} {spec.lora}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    quieten()
    judge(Folder(parser.parse_args().folder))


if __name__ == "__main__":
    main()
