"""`python -m tsugi_cli.finetune.prepare --run-dir DIR`: get the model ready before any replica starts.

A process of its own, because the launcher never imports torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from tsugi_cli.config.compose import read_resolved
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.signals import end_with_parent
from tsugi_kpool.errors import TsugiError

from .model import prepare
from .worker import quieten


def main() -> int:
    """Prints one line and returns the error's exit code when the model cannot be had."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    arguments = parser.parse_args()
    end_with_parent()
    quieten()
    return exit_code(lambda: prepare(read_resolved(RunPaths(arguments.run_dir)).model))


def exit_code(act: Callable[[], object]) -> int:
    """Of a process that does this for the launcher: 0, or an error's own, told in one line on stderr."""
    try:
        act()
    except TsugiError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
