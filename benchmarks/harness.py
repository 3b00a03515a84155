"""Run `tsugi finetune`, read its summary, write results with all that is needed to repeat them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def finetune(*overrides: str, timeout_s: float = 1800) -> dict[str, Any]:
    """One run in a scratch directory; its summary.json.

    Raises:
        RuntimeError: the run failed; the text ends with what it said.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "tsugi_cli.app", "finetune", "--plain", *overrides]
        print("+ tsugi finetune", *overrides, flush=True)
        result = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=timeout_s, check=False)
        if result.returncode:
            raise RuntimeError(result.stderr[-2000:])
        summary: dict[str, Any] = json.loads((Path(scratch) / "runs" / "latest" / "summary.json").read_text())
    return summary


def save(name: str, figures: dict[str, Any]) -> Path:
    """Write results/<name>.json."""
    record = {
        "command": "python " + " ".join([str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]]),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(),
        **figures,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")
    return path


def _commit() -> str:
    """The commit, marked when the code of the tree differs from it."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    code = ["tsugi_kpool", "tsugi_cli", "conf", "recipes"]
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *code], cwd=ROOT, check=False).returncode
    return commit.stdout.strip() + ("+changes" if changed else "")


def _machine() -> dict[str, Any]:
    from importlib.metadata import version

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = models[0] if models else cpu
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "torch": version("torch")}
