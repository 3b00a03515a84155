"""`tsugi finetune` and `tsugi bench`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from .options import Debug, Json, Overrides


def finetune(
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, start nothing.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of the live console.")] = False,
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """Fine-tune a model with LoRA on several replicas, each at its own pace.

    Your own data and model: tsugi finetune data=mine.jsonl model=path/or/hub-id

    `tsugi settings [WORD]` lists the keys, and docs/configuration.md does; `tsugi recipes` lists ready runs.
    """
    from tsugi_cli.hosts.role import without_ranks
    from tsugi_cli.preload.client import ForkServer

    with ForkServer() as forks:
        if not dry_run:
            forks.start(without_ranks(os.environ))  # before the imports below, beside which it imports
        from tsugi_cli.launch.run import finetune as run
        from tsugi_cli.record.answer import Answer

        raise typer.Exit(run(overrides or [], dry_run, plain, Answer.of(json), forks))


def bench(
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and the time, start nothing.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of the progress bar.")] = False,
    json: Json = False,
    simulate: Annotated[
        bool,
        typer.Option("--simulate", help="Fleets in virtual time: replicas=1000, or replicas=[10,1000] churn=0.01"),
    ] = False,
    _debug: Debug = False,
) -> None:
    """Compare K-Pool with DDP, local SGD, DiLoCo and leaving the slowest out, on this fleet, under a scenario."""
    from tsugi_cli.record.answer import Answer

    if simulate:
        from tsugi_cli.bench.simulate.command import simulate as model

        raise typer.Exit(model(overrides or [], dry_run, plain, Answer.of(json)))
    from tsugi_cli.bench.compare.command import bench as compare

    raise typer.Exit(compare(overrides or [], dry_run, plain, Answer.of(json)))
