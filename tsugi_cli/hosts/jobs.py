"""Job files for schedulers, as text. Pure: what they say is pinned by files in tests/unit/jobs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from .meeting import PORT, SECRET

WARNING_S = 120
"""So long before its time is up Slurm tells the job, which then ends in good order, with a checkpoint."""
RUNS = "/runs"
"""Where a pod keeps its run directories."""


@dataclass(frozen=True)
class Job:
    """What a job file is made of."""

    name: str
    words: tuple[str, ...]
    """What comes after `tsugi finetune`."""
    nodes: int
    gpus: int = 0
    """Of each node."""
    replicas: int = 1
    """Of each node."""
    program: str = "tsugi"
    time: str | None = None
    """Slurm's limit, such as 04:00:00."""
    partition: str | None = None
    image: str | None = None
    claim: str | None = None
    """Kubernetes' volume for run directories."""
    accelerator: str | None = None
    """SkyPilot's name of the GPUs, such as H100."""
    install: str = "pip install tsugi"

    def line(self, *more: str) -> str:
        """Return the command line that all tasks run."""
        here = [f"topology.here={self.replicas}"] if self.replicas > 1 else []
        words = [*self.words, "topology=hosts", *here, *more, "--plain"]
        return f"{shlex.quote(self.program)} finetune {shlex.join(words)}"


def slurm(job: Job) -> str:
    """Return a script for sbatch."""
    options = {
        "job-name": job.name,
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        "gpus-per-node": str(job.gpus) if job.gpus else None,
        "time": job.time,
        "partition": job.partition,
        "signal": f"USR1@{WARNING_S}",
        "output": f"{job.name}-%j.log",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value]
    return f"""#!/bin/bash
{_lines(lines)}

# One task on each node: the first launches the run, the others join it. They meet through a file of mode 0600 below
# runs_dir, which all nodes must share; where they do not, export {SECRET}=$(openssl rand -hex 32) before sbatch.
# The end of one node's task ends no other's.
srun --kill-on-bad-exit=0 {job.line()}
"""


def k8s(job: Job) -> str:
    """Return a manifest for kubectl: a service that gives the pods names, and an indexed job."""
    return f"""# Before the first time, the key that all pods share:
#   openssl rand -hex 32 | kubectl create secret generic {job.name} --from-file=secret=/dev/stdin
# Then: kubectl apply -f FILE
apiVersion: v1
kind: Service
metadata:
  name: {job.name}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    job-name: {job.name}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {job.name}
spec:
  completions: {job.nodes}
  parallelism: {job.nodes}
  completionMode: Indexed
  backoffLimitPerIndex: 3  # a pod that was lost is started again and joins; the others go on
  template:
    spec:
      subdomain: {job.name}
      restartPolicy: Never
      terminationGracePeriodSeconds: 60
      containers:
        - name: tsugi
          image: {json.dumps(job.image)}
          command: ["sh", "-c"]
          args:
            - {json.dumps("exec " + job.line(f"sideband.port={PORT}", f"runs_dir={RUNS}"))}
{_environment(job)}          ports:
            - containerPort: {PORT}
            - containerPort: {PORT + 1}
{_gpus(job)}          volumeMounts:
            - name: runs
              mountPath: {RUNS}
            - name: shared-memory
              mountPath: /dev/shm
      volumes:
        - name: runs
          {_volume(job)}
        - name: shared-memory
          emptyDir:
            medium: Memory
"""


def _environment(job: Job) -> str:
    """Return what says which task a pod is, and gives it the key."""
    return f"""          env:
            - name: RANK
              valueFrom:
                fieldRef:
                  fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
            - name: WORLD_SIZE
              value: "{job.nodes}"
            - name: MASTER_ADDR
              value: {job.name}-0.{job.name}
            - name: {SECRET}
              valueFrom:
                secretKeyRef:
                  name: {job.name}
                  key: secret
"""


def skypilot(job: Job) -> str:
    """Return a task for sky."""
    resources = [f"  accelerators: {job.accelerator}:{job.gpus}"] if job.accelerator else ["  cpus: 4+"]
    install = _lines([f"  {line}" for line in job.install.splitlines()])
    return f"""# {SECRET}=$(openssl rand -hex 32) sky launch -c {job.name} --secret {SECRET} FILE
name: {job.name}
num_nodes: {job.nodes}
workdir: .
resources:
{_lines(resources)}
secrets:
  {SECRET}: null
setup: |
{install}
run: |
  {job.line(f"sideband.port={PORT}")}
"""


WRITERS = {"slurm": (slurm, ".sbatch"), "k8s": (k8s, ".yaml"), "skypilot": (skypilot, ".yaml")}
"""Scheduler -> who writes its job file, and how the file's name ends."""


def submitted_by(scheduler: str, name: str, file: str) -> str:
    """Return the line that a user types to start a job."""
    quoted = shlex.quote(file)
    lines = {
        "slurm": f"sbatch {quoted}",
        "k8s": f"kubectl apply -f {quoted}",
        "skypilot": f"{SECRET}=$(openssl rand -hex 32) sky launch -c {name} --secret {SECRET} {quoted}",
    }
    return lines[scheduler]


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(lines)


def _gpus(job: Job) -> str:
    if not job.gpus:
        return ""
    return f"          resources:\n            limits:\n              nvidia.com/gpu: {job.gpus}\n"


def _volume(job: Job) -> str:
    if job.claim is None:
        return "emptyDir: {}  # the adapter goes with the pod; --claim NAME keeps it"
    return f"persistentVolumeClaim:\n            claimName: {job.claim}"
