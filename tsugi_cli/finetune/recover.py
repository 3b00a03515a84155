"""`python -m tsugi_cli.finetune.recover --run-dir DIR --checkpoint NAME`: the adapter of a checkpoint's anchors.

For a run that could not write one at its end. A process of its own, because the launcher never imports torch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tsugi_cli.config.compose import read_resolved
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.checkpoints import read_manifest
from tsugi_kpool.core.checkpoint import ANCHORS
from tsugi_kpool.engine.checkpoint import read
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.engine.state import ANCHOR
from tsugi_kpool.errors import LaunchError
from tsugi_kpool.system import end_with_parent

from .export import beside, export
from .lora import add_pool, unchanged
from .model import load, on_cpu, quieten
from .prepare import exit_code
from .start import on_its_own_weights


def recover(paths: RunPaths, checkpoint: str) -> None:
    """Write the adapter of a checkpoint that has been verified to where a run's is.

    Raises:
        TsugiError: the model cannot be had, the anchors are none of it, or the disk takes no adapter.
    """
    spec = read_resolved(paths)
    base, tokenizer = load(on_cpu(spec.model))
    model = at_checkpoint(base, spec, paths, paths.checkpoints / checkpoint)
    told = beside(spec, model, tokenizer, read_manifest(paths.checkpoints / checkpoint).fingerprint)
    export(model, paths.adapter, told)


def at_checkpoint(base: Any, spec: RunSpec, paths: RunPaths, checkpoint: Path) -> Any:
    """The base model, unchanged, with the adapters as a verified checkpoint of the run has them.

    Raises:
        TsugiError: the anchors cannot be read, or are another model's.
    """
    model = add_pool(base, unchanged(spec.lora))
    pool, anchor = AdapterPool(model, spec.kpool.n), read(checkpoint / ANCHORS).get(ANCHOR)
    if anchor is None or anchor.shape != (pool.n, pool.size):
        raise LaunchError(f"{checkpoint.name} has no anchors of this model's pool")
    pool.write(anchor)
    return on_its_own_weights(model, spec.lora, paths.lora_start) if spec.lora.changes_base else model


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
