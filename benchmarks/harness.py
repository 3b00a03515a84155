"""Run `tsugi finetune`, read its summary, write results with all that is needed to repeat them."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def _check_package() -> None:
    """Refuse to measure another checkout's package under this one's commit: a script's folder is on the path, not the
    repository.

    Raises:
        SystemExit: with the way out.
    """
    found = importlib.util.find_spec("tsugi_kpool")
    there = Path(found.origin).parent if found is not None and found.origin else None
    if there is not None and not there.is_relative_to(ROOT):
        raise SystemExit(f"this would measure {there}: set PYTHONPATH={ROOT}, or pip install -e {ROOT}")


_check_package()


def finetune(*overrides: str, timeout_s: float = 1800) -> dict[str, Any]:
    """One run in a scratch directory; its summary.json, with the lines of events.jsonl as "events".

    Raises:
        RuntimeError: the run failed; the text ends with what it said.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "tsugi_cli.app", "finetune", "--plain", *overrides]
        print("+ tsugi finetune", *overrides, flush=True)
        result = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=timeout_s, check=False)
        if result.returncode:
            raise RuntimeError(result.stderr[-2000:])
        latest = Path(scratch) / "runs" / "latest"
        summary: dict[str, Any] = json.loads((latest / "summary.json").read_text())
        events = (latest / "events.jsonl").read_text().splitlines()
        summary["events"] = [json.loads(line) for line in events]
    return summary


def save(name: str, figures: dict[str, Any], run_per_line: bool = False) -> Path:
    """Write results/<name>.json, each run on a line of its own when there are many."""
    return _write(name, {**_facts(), **figures}, run_per_line)


def save_part(name: str, part: str, figures: dict[str, Any]) -> Path:
    """Write one part of results/<name>.json, with its own command and machine; all else there stays."""
    path = RESULTS / f"{name}.json"
    there = json.loads(path.read_text()) if path.exists() else {}
    return _write(name, there | {part: {**_facts(), **figures}})


def kept(name: str, part: str) -> dict[str, Any]:
    """The part of results/<name>.json that another command has written, if it is there."""
    path = RESULTS / f"{name}.json"
    there = json.loads(path.read_text()) if path.exists() else {}
    return {part: there[part]} if part in there else {}


def _facts() -> dict[str, Any]:
    """All that is needed to repeat a measurement."""
    return {
        "command": "python " + " ".join([str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]]),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(),
    }


def _write(name: str, record: dict[str, Any], run_per_line: bool = False) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(_text(record, run_per_line) + "\n")
    print(f"wrote {path.relative_to(ROOT)}", flush=True)
    return path


def made(name: str, **key: Any) -> bool:
    """Whether results/<name>.json has a run with these values already."""
    return any(all(run.get(field) == value for field, value in key.items()) for run in runs(name))


def runs(name: str) -> list[dict[str, Any]]:
    """The runs in results/<name>.json, if it is there."""
    path = RESULTS / f"{name}.json"
    return list(json.loads(path.read_text())["runs"]) if path.exists() else []


def add(name: str, run: dict[str, Any], **facts: Any) -> None:
    """Add one run to results/<name>.json. Several processes may do so at once."""
    RESULTS.mkdir(exist_ok=True)
    with FileLock(Path(tempfile.gettempdir()) / f"benchmark-{name}.lock"):
        save(name, {**facts, "runs": [*runs(name), run]}, run_per_line=True)


def _text(record: dict[str, Any], run_per_line: bool) -> str:
    if not run_per_line:
        return json.dumps(record, indent=2)
    head = json.dumps({**record, "runs": []}, indent=2)
    return head.replace('"runs": []', '"runs": [\n' + ",\n".join(json.dumps(run) for run in record["runs"]) + "\n  ]")


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
