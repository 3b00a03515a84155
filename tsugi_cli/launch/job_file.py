"""`tsugi launch`: checks a run's settings and writes the job file that starts it on all machines of a scheduler."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from tsugi_cli.config.compose import compose
from tsugi_cli.config.schema import did_you_mean
from tsugi_cli.hosts.jobs import WRITERS, Job, submitted_by
from tsugi_cli.record.answer import Answer
from tsugi_kpool.errors import ConfigError, ExitCode, MachineError

ELSEWHERE = ("data=", "data.path=", "data.eval=", "data.test=", "data.mix=", "model=", "model.path=", "lora.from=")
"""What names files may name those of a container, which are not here."""
OURS = ("topology=", "topology.hosts=", "topology.here=", "topology.replicas=", "resume=")
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?")


def write_job(scheduler: str, job: Job, file: Path | None, dry_run: bool, out: Answer) -> int:
    """Write a job file, or print it; returns the exit code. Nothing is submitted.

    Args:
        scheduler: slurm, k8s or skypilot.
        job: What it is to do.
        file: Where to write it; None: beside us, by the job's name.
        dry_run: Print it.
        out: Where to print.

    Raises:
        ConfigError: the settings have mistakes, or the file is there already.
        MachineError: it cannot be written.
    """
    _check(scheduler, job)
    write, ending = WRITERS[scheduler]
    text = write(job)
    if dry_run:
        out.tell({"job": text}, text.removesuffix("\n"))
        return ExitCode.OK
    file = file or Path(f"{job.name}{ending}")
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError as error:
        raise ConfigError([f"{file} is there already; --out FILE names another"]) from error
    except OSError as error:
        raise MachineError(f"cannot write {file}: {error.strerror}") from error
    start = submitted_by(scheduler, job.name, str(file))
    out.tell({"file": file, "start": start}, [f"{file} is written; nothing was started. To start it:", start])
    return ExitCode.OK


def _check(scheduler: str, job: Job) -> None:
    """Raise ConfigError with everything that would end the job at once."""
    problems = []
    if scheduler not in WRITERS:
        raise ConfigError([f"{scheduler}: there are {', '.join(WRITERS)}{did_you_mean(scheduler, list(WRITERS))}"])
    if not _NAME.fullmatch(job.name):
        problems.append(f"--name {job.name}: small letters, digits and - only, a letter first, at most 52 characters")
    if scheduler == "k8s" and job.image is None:
        problems.append("--image IMAGE is needed: what the pods run; it must have tsugi in it")
    if scheduler == "skypilot" and job.gpus and job.accelerator is None:
        problems.append("--accelerator NAME is needed with --gpus, such as H100")
    problems += [f"{word}: the job file says that by itself" for word in job.words if word.startswith(OURS)]
    left_out = ELSEWHERE if scheduler == "k8s" else ()
    fleet = (
        f"topology.replicas={job.nodes * job.replicas}",
        f"topology.here={job.replicas}",
        "sideband.bind=0.0.0.0",
    )
    try:
        compose([*(word for word in job.words if not word.startswith((*left_out, *OURS))), *fleet])
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)


def job_of(job: Job, replicas: int | None, workers: int) -> Job:
    """Return the job with one replica for each GPU, or for each group of workers, unless the user says how many."""
    return replace(job, replicas=replicas or max(1, job.gpus // workers))
