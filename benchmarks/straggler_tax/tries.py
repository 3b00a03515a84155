"""K-Pool with any settings in the scenarios of run.py, against the arms that are there: what was tried for a goal.

    python benchmarks/straggler_tax/tries.py --scenarios straggler healthy --lr-scales 4 --try mode=gradient k=8

Each try is one run, written as it ends and not made again. Settings are those of `kpool.*`, without that prefix.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
import torch
from harness import add, made, runs
from methods import Setting, kpool
from run import LEARNING_RATES, MODELS, laboratory
from scenarios import SCENARIOS
from training import Course
from verdicts import Cell, faster, fewer_bytes, loss_percent, rate_of

from tsugi_cli.config.schema import hints_of, read_leaf
from tsugi_cli.finetune.model import quieten
from tsugi_kpool.core.settings import KPool
from tsugi_kpool.errors import ConfigError

AGAINST = ("ddp", "drop_slowest", "balanced", "hivemind")
"""Arms of straggler_tax.json that a try is compared with, where they have been run."""


def parsed(texts: list[str]) -> dict[str, Any]:
    """`key=value` as KPool's fields want it.

    Raises:
        ConfigError: one is no value of its field.
    """
    kinds, found, problems = hints_of(KPool), dict[str, Any](), list[str]()
    for key, _, text in (each.partition("=") for each in texts):
        read_leaf(key, kinds[key], text, found, problems, typed=False)
    if problems:
        raise ConfigError(problems)
    return found


def against(key: dict[str, Any], run: dict[str, Any]) -> dict[str, float]:
    """The try's figures as the goals count them, from the runs of the same seed."""
    own = {name: key[name] for name in ("model", "replicas", "scenario", "seed")}
    rates = LEARNING_RATES[key["model"]]
    cell: Cell = {"try": run}
    for each in runs("straggler_tax"):
        if all(each[name] == value for name, value in own.items()) and each["lr_scale"] == rate_of(
            rates, each["arm"]
        ):
            cell[each["arm"]] = each
    figures = {f"{arm} / try": faster("try", arm)(cell) for arm in AGAINST if arm in cell}
    return {**figures, "loss_percent": loss_percent("try")(cell), "bytes": fewer_bytes("try")(cell)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pretrained", choices=list(MODELS))
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--scenarios", nargs="+", default=["straggler"], choices=list(SCENARIOS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--lr-scales", type=float, nargs="+", default=[4.0])
    parser.add_argument("--try", dest="tries", nargs="*", action="append", required=True, metavar="KEY=VALUE")
    arguments = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    model, replicas = arguments.model, arguments.replicas
    for seed, scale in product(arguments.seeds, arguments.lr_scales):
        lab = None
        for texts, name in product(arguments.tries, arguments.scenarios):
            key = {"model": model, "replicas": replicas, "scenario": name, "seed": seed, "lr_scale": scale}
            key["settings"] = " ".join(texts)
            if made("straggler_tries", **key):
                continue
            if lab is None:
                spec, lab = laboratory(model, replicas, seed, scale)
            course = Course(spec, lab, MODELS[model]["every"])
            run = kpool(*parsed(texts).items())(Setting(SCENARIOS[name], spec, lab, course, MODELS[model]["every"]))
            figures = {**against(key, run), **{name: run[name] for name in ("rounds", "goodput")}}
            figures = {name: round(value, 3) for name, value in figures.items()}
            print({**key, **figures}, flush=True)
            add("straggler_tries", {**key, **figures})


if __name__ == "__main__":
    main()
