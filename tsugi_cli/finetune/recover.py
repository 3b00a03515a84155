"""`python -m tsugi_cli.finetune.recover --run-dir DIR --checkpoint NAME`: the adapter of a checkpoint's anchors.

For a run that could not write one at its end. A process of its own, because the launcher never imports torch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tsugi_cli.config.compose import read_resolved
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.signals import end_with_parent
from tsugi_kpool.core.checkpoint import ANCHORS
from tsugi_kpool.engine.checkpoint import read
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.engine.state import ANCHOR
from tsugi_kpool.errors import LaunchError

from .export import export
from .model import add_pool, load, quieten
from .prepare import exit_code


def recover(paths: RunPaths, checkpoint: str) -> None:
    """Write the adapter of a checkpoint that has been verified to where a run's is.

    Raises:
        TsugiError: the model cannot be had, the anchors are none of it, or the disk takes no adapter.
    """
    spec = read_resolved(paths)
    base, _ = load(spec.model)
    model = add_pool(base, spec.kpool)
    pool, anchor = AdapterPool(model, spec.kpool.n), read(paths.checkpoints / checkpoint / ANCHORS).get(ANCHOR)
    if anchor is None or anchor.shape != (pool.n, pool.size):
        raise LaunchError(f"{checkpoint} has no anchors of this model's pool")
    pool.write(anchor)
    export(model, paths.adapter)


def main() -> int:
    """Prints one line and returns the error's exit code when there is no adapter."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--checkpoint", required=True)
    arguments = parser.parse_args()
    end_with_parent()
    quieten()
    return exit_code(lambda: recover(RunPaths(arguments.run_dir), arguments.checkpoint))


if __name__ == "__main__":
    sys.exit(main())
