"""The process that torchrun starts: `python -m tsugi_cli.finetune.worker --run-dir DIR --replica I`.

It reads the resolved configuration, checks its hash, and tells the story. It never composes configuration.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from tsugi_cli.compose import read_resolved
from tsugi_cli.run_dir import RunPaths

from .story import finetune

PR_SET_PDEATHSIG = 1


@record
def main() -> None:
    """Entry point; an exception is left for the launcher in torchrun's error file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--replica", type=int, required=True)
    arguments = parser.parse_args()
    end_with_parent()
    paths = RunPaths(arguments.run_dir)
    spec = read_resolved(paths)
    quieten()
    torch.set_num_threads(spec.topology.threads_per_worker)
    finetune(spec, paths, arguments.replica)


def end_with_parent() -> None:
    """Ask the kernel to end this process when its torchrun agent dies: no orphan trains on. Linux only."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):
        return


def quieten() -> None:
    """Libraries' progress bars would fill the log."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


if __name__ == "__main__":
    main()
