"""The part of this process in a job that a scheduler has started on all machines with one line. Pure.

The first task is the launcher, with hub and replicas; the others join it. Slurm, SkyPilot and whoever sets torchrun's
variables (torchrun, Kubeflow, a Kubernetes Job) say which task this is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tsugi_kpool.errors import ConfigError

NO_SCHEDULER = (
    "topology.hosts=null takes the machines of a scheduler, and none has started this process (SLURM_PROCID, "
    "SKYPILOT_NODE_RANK, RANK and WORLD_SIZE are missing); name them: topology.hosts=[a,b]"
)

NO_STEP = "topology.hosts=null: Slurm has started this line once, not on all nodes; put srun before it"

_OF_A_TASK = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|(TORCHELASTIC|PET)_\w+")


@dataclass(frozen=True)
class Role:
    """One task among those that run the same line."""

    scheduler: str
    rank: int
    world: int
    job: str
    """Names the job, and its attempt, among all that share a folder."""
    master: str | None
    """The first task's machine; None: nobody says which."""

    @property
    def leads(self) -> bool:
        """Whether this is the launcher."""
        return self.rank == 0


def role_of(environ: Mapping[str, str]) -> Role | None:
    """Return this task's role; None when no scheduler has started it.

    Raises:
        ConfigError: what the scheduler says cannot be.
    """
    for find in (_slurm, _skypilot, _torchrun):
        role = find(environ)
        if role is not None:
            return role
    return None


def _slurm(environ: Mapping[str, str]) -> Role | None:
    if "SLURM_PROCID" not in environ:
        return None
    if "SLURM_STEP_NUM_TASKS" not in environ:
        # A batch script has SLURM_PROCID=0, too, and runs on the first node alone.
        raise ConfigError([NO_STEP])
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    job = "-".join(["slurm", *(environ.get(name, "0") for name in names)])
    master = environ.get("MASTER_ADDR") or first_of(nodes)
    return _checked("Slurm", environ, ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"), job, master)


def _skypilot(environ: Mapping[str, str]) -> Role | None:
    if "SKYPILOT_NODE_RANK" not in environ:
        return None
    job = f"skypilot-{environ.get('SKYPILOT_TASK_ID', '0')}"
    first = environ.get("SKYPILOT_NODE_IPS", "").split()[:1]
    return _checked("SkyPilot", environ, ("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"), job, "".join(first) or None)


def _torchrun(environ: Mapping[str, str]) -> Role | None:
    if "RANK" not in environ or "WORLD_SIZE" not in environ:
        return None
    master = environ.get("MASTER_ADDR")
    names = [environ.get("TORCHELASTIC_RUN_ID", "0"), master or "none", environ.get("MASTER_PORT", "0")]
    return _checked("RANK and WORLD_SIZE", environ, ("RANK", "WORLD_SIZE"), "-".join(["rank", *names]), master)


def _checked(
    scheduler: str, environ: Mapping[str, str], names: tuple[str, str], job: str, master: str | None
) -> Role:
    """Return the role if its numbers can be."""
    said = [environ.get(name, "") for name in names]
    rank, world = (int(text) if re.fullmatch(r"\d{1,6}", text) else -1 for text in said)
    if not 0 <= rank < world:
        shown = " and ".join(f"{name}={text[:20]!r}" for name, text in zip(names, said, strict=True))
        raise ConfigError([f"{scheduler} says {shown}, which is no task's number and a number of tasks"])
    return Role(scheduler, rank, world, re.sub(r"[^A-Za-z0-9._-]+", "_", job)[:150], master or None)


def without_ranks(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for processes of ours: what a scheduler says of its own tasks is not said of them.

    torchrun would take its options from there (PET_*), and libraries would look for a process group.
    """
    return {name: value for name, value in environ.items() if not _OF_A_TASK.fullmatch(name)}


def first_of(nodes: str) -> str | None:
    """Return the first machine of a node list as Slurm writes it, such as gpu[07,12-20],cpu1: gpu07."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([0-9]+)[^\]]*\]", r"\1", found[0]) if found else None
