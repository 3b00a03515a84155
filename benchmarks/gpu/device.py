"""The device that a check runs on; exit code 1 without one.

python benchmarks/gpu/device.py FIGURES.json [--cpu]
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import torch

NO_GPU = "torch finds no CUDA device here; --cpu runs the same program with small shapes"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def facts(cpu: bool) -> dict[str, Any]:
    """Name, memory and the packages that the figures depend on."""
    versions = {name: _version(name) for name in PACKAGES}
    if cpu:
        return {"device": "cpu", **versions}
    found = torch.cuda.get_device_properties(0)
    return {"device": found.name, "memory_bytes": found.total_memory, "cuda": torch.version.cuda, **versions}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> int:
    cpu = "--cpu" in sys.argv[2:]
    if not cpu and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 1
    Path(sys.argv[1]).write_text(json.dumps(facts(cpu)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
