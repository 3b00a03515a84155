"""torch's DistributedDataParallel, as every synchronous arm uses it: how a model is wrapped, how its process ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel


def wrapped(model: nn.Module, ready: Callable[[], None]) -> DistributedDataParallel:
    """The model as DDP trains it.

    Args:
        model: Its gradients become the mean of all ranks'.
        ready: Called in every backward pass before the last of the gradients is reduced: an emulated device waits
            there until it would have them.
    """
    forward = DistributedDataParallel(model)

    def reduce(state, bucket):  # type: ignore[no-untyped-def]
        if bucket.is_last():
            ready()
        return allreduce_hook(state, bucket)

    forward.register_comm_hook(None, reduce)
    return forward


def leave() -> None:
    """Destroy the default group and end this process with 0, without the interpreter's tear-down. Does not return.

    DDP keeps a reference to its group, so gloo's threads outlive `destroy_process_group` (torch 2.13). If one of them
    frees a tensor of ours while the interpreter ends, the process aborts (SIGABRT) after all its work was done.
    """
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
