"""`tsugi launch`: job files for schedulers."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Debug, Json, Overrides


def launch(
    scheduler: Annotated[str, typer.Argument(metavar="slurm|k8s|skypilot", help="Whose job file it is to be.")],
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, max=10_000, help="Machines.")] = 2,
    gpus: Annotated[int, typer.Option("--gpus", min=0, max=64, help="Of each machine.")] = 0,
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=1, max=64, help="Of each machine; default: one for each GPU.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Of the job.")] = "tsugi",
    time: Annotated[str | None, typer.Option("--time", help="Slurm: limit of the job, such as 04:00:00.")] = None,
    partition: Annotated[str | None, typer.Option("--partition", help="Slurm.")] = None,
    image: Annotated[str | None, typer.Option("--image", help="Kubernetes: the container image.")] = None,
    claim: Annotated[
        str | None, typer.Option("--claim", help="Kubernetes: volume claim that keeps the runs.")
    ] = None,
    accelerator: Annotated[str | None, typer.Option("--accelerator", help="SkyPilot: such as H100.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The new file; default: NAME.sbatch or NAME.yaml.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job file, write nothing.")] = False,
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """Write the job file that runs `tsugi finetune` on several machines. You submit it; nothing is started here."""
    from tsugi_cli.hosts.jobs import Job
    from tsugi_cli.launch.job_file import job_of, write_job
    from tsugi_cli.record.answer import Answer

    words = tuple(overrides or ())
    found = [re.fullmatch(r"topology\.workers=(\d{1,4})", word) for word in words]
    workers = next((int(each[1]) for each in reversed(found) if each), 1)
    program = str(Path(sys.executable).with_name("tsugi")) if scheduler == "slurm" else "tsugi"
    job = Job(name, words, nodes, gpus, 1, program, time, partition, image, claim, accelerator)
    raise typer.Exit(write_job(scheduler, job_of(job, replicas, max(1, workers)), out, dry_run, Answer.of(json)))
