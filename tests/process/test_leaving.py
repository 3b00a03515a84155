"""A process that has used DistributedDataParallel ends with 0, however late gloo's threads let go of its tensors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

PROGRAM = """
import os, sys
from pathlib import Path

import torch
import torch.distributed as dist

from tsugi_cli.bench.compare.ddp import leave

torch.set_num_threads(1)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
dist.init_process_group("gloo", f"file://{sys.argv[1]}/store", rank=int(sys.argv[2]), world_size=2)
forward = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8))
forward(torch.ones(2, 8)).sum().backward()
for task in Path("/proc/self/task").iterdir():  # gloo's threads run when nobody else does
    if "gloo_runloop" in (task / "comm").read_text():
        os.sched_setscheduler(int(task.name), os.SCHED_IDLE, os.sched_param(0))
for _ in range(4):
    dist.all_reduce(torch.ones(8))
leave()
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="threads of lowest priority are Linux's")
def test_its_work_done_it_ends_with_0(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    errors = [rank.communicate(timeout=250)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
