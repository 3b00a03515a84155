"""`tsugi doctor`: what this machine has and what a run would miss, each with what to do about it.

`gather` asks the machine; `examine` decides, and is pure. torch is asked in a process of its own.
"""

from __future__ import annotations

import json
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import psutil

from tsugi_cli.record.places import cache_folder, temporary_folder
from tsugi_kpool.errors import MachineError

from .limits import files_needed

Verdict = Literal["ok", "note", "problem"]
PACKAGES = ("tsugi", "torch", "transformers", "peft", "accelerate", "datasets", "pyzmq")
OPTIONAL = {
    "gguf": ("GGUF models, such as the default recipe's", "demo"),
    "prometheus-client": ("sideband.metrics_port", "metrics"),
    "nvidia-ml-py": ("clock and throttling of NVIDIA GPUs", "gpu"),
}
"""Package -> (what it is for, the extra of Tsugi's that brings it)."""
TORCH_TIMEOUT_S = 120
COMMAND_TIMEOUT_S = 10
GB = 1e9
LEAST_MEMORY, LEAST_DISK, LEAST_SHARED = 2 * GB, 2 * GB, 0.06 * GB
USUAL_REPLICAS = 8
ASK_TORCH = """
import json, torch
found = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "devices": []}
found["gloo"] = torch.distributed.is_available() and torch.distributed.is_gloo_available()
found["nccl"] = torch.distributed.is_available() and torch.distributed.is_nccl_available()
for at in range(torch.cuda.device_count()):
    facts = torch.cuda.get_device_properties(at)
    found["devices"].append([facts.name, facts.total_memory])
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what to do where something is missing."""

    what: str
    found: str
    verdict: Verdict = "ok"
    advice: str = ""


@dataclass(frozen=True)
class Facts:
    """What was asked of the machine; None: there was no answer."""

    python: tuple[int, ...]
    system: str
    packages: Mapping[str, str | None]
    torch: Mapping[str, Any] | None
    torch_error: str
    driver: str | None
    """NVIDIA's."""
    cores: int
    memory_free: float
    disks: Mapping[str, float | str]
    """What is kept there -> free bytes, or why nothing can be kept."""
    shared_free: float | None
    """Bytes in /dev/shm."""
    open_files: int
    loopback: bool
    """Whether a port can be listened on."""
    clock_synchronised: bool | None


def gather() -> Facts:
    """Ask the machine."""
    torch, error = _torch()
    return Facts(
        python=tuple(sys.version_info[:3]),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages={name: _version(name) for name in (*PACKAGES, *OPTIONAL)},
        torch=torch,
        torch_error=error,
        driver=_said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        cores=psutil.cpu_count() or 1,
        memory_free=float(psutil.virtual_memory().available),
        disks=_disks(),
        shared_free=_free(Path("/dev/shm")),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        loopback=_can_listen(),
        clock_synchronised={"yes": True, "no": False}.get(
            _said("timedatectl", "show", "-p", "NTPSynchronized", "--value") or ""
        ),
    )


def examine(facts: Facts) -> list[Finding]:
    """Decide what each fact means for a run. Pure."""
    return [
        Finding("python", ".".join(map(str, facts.python)) + f" on {facts.system}"),
        *_packages(facts),
        *_devices(facts),
        _enough("memory", facts.memory_free, LEAST_MEMORY, f"free, {facts.cores} cores", "take a smaller model"),
        *(_disk(name, found) for name, found in facts.disks.items()),
        *_limits(facts),
    ]


def _packages(facts: Facts) -> list[Finding]:
    found = []
    for name, has in facts.packages.items():
        if has is not None:
            found.append(Finding(name, has))
        elif name in OPTIONAL:
            use, extra = OPTIONAL[name]
            found.append(Finding(name, "not installed", "note", f"for {use}: pip install 'tsugi[{extra}]'"))
        else:
            found.append(Finding(name, "not installed", "problem", f"pip install {name}"))
    return found


def _devices(facts: Facts) -> list[Finding]:
    torch = facts.torch
    if torch is None:
        return [Finding("torch", "cannot be imported", "problem", facts.torch_error)]
    found = []
    if not torch["gloo"]:
        found.append(Finding("torch.distributed", "has no gloo", "problem", "install a torch that has it"))
    for at, (name, memory) in enumerate(torch["devices"]):
        found.append(Finding(f"GPU {at}", f"{name}, {memory / GB:.0f} GB"))
    if torch["devices"]:
        build = f"CUDA {torch['cuda']}" if torch["cuda"] else f"ROCm {torch['hip']}"
        nccl = "NCCL is there" if torch["nccl"] else "without NCCL"
        found.append(Finding("torch's build", f"{build}, {nccl}"))
    elif facts.driver and not torch["cuda"]:
        advice = "pip install torch --index-url https://download.pytorch.org/whl/cu128 (or the CUDA of your driver)"
        found.append(Finding("GPU", f"driver {facts.driver}, but torch is a CPU build", "problem", advice))
    elif facts.driver:
        advice = f"torch was built for CUDA {torch['cuda']}: a newer driver, or a torch for an older CUDA"
        found.append(Finding("GPU", f"driver {facts.driver}, but torch sees no device", "problem", advice))
    else:
        found.append(Finding("GPU", "none: replicas train on the CPU", "note", "take a small model"))
    return found


def _enough(what: str, free: float, least: float, words: str, advice: str) -> Finding:
    text = f"{free / GB:.1f} GB {words}"
    return Finding(what, text) if free >= least else Finding(what, text, "note", advice)


def _disk(what: str, found: float | str) -> Finding:
    if isinstance(found, str):
        return Finding(what, "cannot be used", "problem", found)
    return _enough(what, found, LEAST_DISK, "free", "make room: a checkpoint that does not fit is given up")


def _limits(facts: Facts) -> list[Finding]:
    found = []
    unlimited = facts.open_files < 0
    needed = files_needed(USUAL_REPLICAS)
    text = "unlimited" if unlimited else str(facts.open_files)
    few = not unlimited and facts.open_files < needed
    found.append(Finding("open files", text, "problem" if few else "ok", f"ulimit -n {needed}" if few else ""))
    if facts.shared_free is not None:
        advice = "NCCL and data loaders use /dev/shm; in a container: --shm-size=1g"
        found.append(_enough("shared memory", facts.shared_free, LEAST_SHARED, "free in /dev/shm", advice))
    if not facts.loopback:
        advice = "something forbids sockets here: no run can start"
        found.append(Finding("ports", "none can be listened on at 127.0.0.1", "problem", advice))
    if facts.clock_synchronised is False:
        advice = "only times in logs of several machines are off; timedatectl set-ntp true"
        found.append(Finding("clock", "not synchronised", "note", advice))
    return found


def lines(found: Sequence[Finding]) -> list[str]:
    """Findings as a person reads them."""
    width = max(len(each.what) for each in found)
    marks = {"ok": " ", "note": "-", "problem": "!"}
    return [
        f"{marks[each.verdict]} {each.what:<{width}}  {each.found}{f'  -> {each.advice}' if each.advice else ''}"
        for each in found
    ]


def _torch() -> tuple[Mapping[str, Any] | None, str]:
    try:
        result = subprocess.run(
            [sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, check=False
        )
        return json.loads(result.stdout.splitlines()[-1]), ""
    except subprocess.TimeoutExpired:
        return None, f"importing it takes more than {TORCH_TIMEOUT_S} s"
    except (IndexError, ValueError):
        return None, (result.stderr.strip().splitlines() or ["it gives no reason"])[-1]


def _said(*command: str) -> str | None:
    """The first line of what a command says; None where it is not there or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(result.stdout.splitlines()), "").strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _disks() -> dict[str, float | str]:
    places = {"disk, run directories": lambda: Path(), "disk, models and data": cache_folder}
    places["disk, temporary files"] = lambda: Path(temporary_folder())
    found: dict[str, float | str] = {}
    for name, place in places.items():
        try:
            folder = place().absolute()
            there = next(each for each in (folder, *folder.parents) if each.exists())
            found[name] = float(shutil.disk_usage(there).free)
        except (OSError, MachineError) as error:
            found[name] = str(error)
    return found


def _free(path: Path) -> float | None:
    try:
        return float(shutil.disk_usage(path).free)
    except OSError:
        return None


def _can_listen() -> bool:
    try:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            one.listen(1)
            return True
    except OSError:
        return False
