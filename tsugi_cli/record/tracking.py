"""`python -m tsugi_cli.record.tracking`: reads JSON lines from its input and passes them to accelerate's trackers.

The first line names the trackers and holds the run's settings; the others are figures. It ends with its input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from tsugi_kpool.errors import MachineError

FOLDERS = ("tensorboard",)
"""Trackers that write into a folder of the run."""
NAMES = {"wandb": ("name", "dir"), "mlflow": ("run_name",), "trackio": ("name",)}
"""What a tracker wants to know of the run: what it calls its name, and where wandb keeps what it has not sent."""


def main(source: TextIO = sys.stdin) -> int:
    """Pass on all input; returns 0."""
    first = json.loads(source.readline() or "null")
    if first is None:
        return 0
    trackers = [opened(name, first) for name in first["trackers"]]
    for line in source:
        if not line.endswith("\n"):
            break  # torn: the launcher was killed
        fact = json.loads(line)
        for tracker in trackers:
            tracker.log(fact["values"], step=fact["step"])
    for tracker in trackers:
        tracker.finish()
    return 0


def opened(name: str, first: Mapping[str, Any]) -> Any:
    """Return a started tracker of accelerate's.

    Raises:
        MachineError: its package is not installed, or is too old.
    """
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState(cpu=True)
    run = Path(first["run"])
    try:
        if name in FOLDERS:
            tracker = LOGGER_TYPE_TO_CLASS[name](run.name, str(run / "tracking"))
        else:
            named = {key: str(run) if key == "dir" else run.name for key in NAMES.get(name, ())}
            tracker = LOGGER_TYPE_TO_CLASS[name](first["project"], **named)
        tracker.start()
    except ImportError as error:
        raise MachineError(f"track={name} needs one more package: pip install 'tsugi[{name}]'") from error
    tracker.store_init_configuration(flat(first["config"]))
    return tracker


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings as dotted keys, with values that every tracker takes."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, bool | int | float | str):
            found[f"{prefix}{name}"] = "null" if value is None else value
        else:
            found[f"{prefix}{name}"] = json.dumps(value, default=str)
    return found


if __name__ == "__main__":
    sys.exit(main())
