"""Facts of this process and its machine (core.messages.facts), read from Linux, psutil and NVML."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import psutil

from .core.messages.facts import MachineFacts
from .system import SNMP, schedule_of_this_thread

_QUOTA = (
    (Path("/sys/fs/cgroup/cpu.stat"), "throttled_usec", 1e-6),
    (Path("/sys/fs/cgroup/cpu/cpu.stat"), "throttled_time", 1e-9),
)
_THROTTLES = {
    "nvmlClocksThrottleReasonSwPowerCap": "power limit",
    "nvmlClocksThrottleReasonHwSlowdown": "hardware slow-down",
    "nvmlClocksThrottleReasonSwThermalSlowdown": "heat",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "heat",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power brake",
}

T = TypeVar("T")
Totals = dict[str, float]
"""Name -> total that only grows."""


class Probe:
    """Samples facts. Made in the training thread, called in the link thread. Never raises: what fails is unknown.

    Args:
        gpu: Our device's index among the visible ones.
    """

    def __init__(self, gpu: int = 0) -> None:
        self._process = psutil.Process()
        self._thread = schedule_of_this_thread()
        self._gpu = _never(lambda: Gpu(gpu))
        self._before: tuple[float, Totals] | None = None

    def sample(self) -> MachineFacts:
        """Return the facts since the last call; rates are unknown the first time."""
        facts = _never(self._sample)
        return MachineFacts() if facts is None else facts

    def _sample(self) -> MachineFacts:
        now_s, totals = time.monotonic(), self._totals()
        before_s, before = self._before or (now_s, {})
        self._before = (now_s, totals)
        span_s = now_s - before_s
        grown = {name: totals[name] - before[name] for name in totals.keys() & before.keys()} if span_s > 0 else {}
        known: dict[str, Any] = {**_rates(grown, span_s), **(_never(_levels) or {})}
        if self._gpu is not None:
            known |= _never(self._gpu.read) or {}
        return MachineFacts(**known)

    def _totals(self) -> Totals:
        sources: tuple[Callable[[], Totals], ...] = (
            self._process_totals,
            self._thread_totals,
            _machine,
            _quota,
            _network,
        )
        return {name: value for source in sources for name, value in (_never(source) or {}).items()}

    def _process_totals(self) -> Totals:
        used = self._process.cpu_times()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        return {"cpu_share": used.user + used.system, "major_faults_per_s": float(faults)}

    def _thread_totals(self) -> Totals:
        """Return the training thread's seconds on a core, and those ready but without one (Linux counts
        nanoseconds)."""
        ran_ns, queued_ns = map(int, self._thread.read_text(encoding="ascii").split()[:2])
        return {"thread_share": ran_ns / 1e9, "queue_share": queued_ns / 1e9}


class Gpu:
    """Reads a GPU's facts through NVML; needs nvidia-ml-py (extra `gpu`) and a driver.

    Raises:
        Exception: whatever is missing.
    """

    def __init__(self, index: int) -> None:
        pynvml: Any = import_module("pynvml")  # not an import statement: who checks types need not have it
        self._nvml = pynvml
        pynvml.nvmlInit()
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        name = visible[index].strip() if visible else str(index)
        by_index, by_uuid = pynvml.nvmlDeviceGetHandleByIndex, pynvml.nvmlDeviceGetHandleByUUID
        self._handle = by_index(int(name)) if name.isdigit() else by_uuid(name)
        self._top_mhz = float(pynvml.nvmlDeviceGetMaxClockInfo(self._handle, pynvml.NVML_CLOCK_SM))

    def read(self) -> dict[str, Any]:
        """Return the GPU's clock, its utilisation, and why its clock is held down."""
        nvml, handle = self._nvml, self._handle
        reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        words = {text: None for name, text in _THROTTLES.items() if reasons & getattr(nvml, name, 0)}
        return {
            "gpu_clock": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) / self._top_mhz,
            "gpu_busy": nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "gpu_throttle": ", ".join(words),
        }


def _rates(grown: Totals, span_s: float) -> dict[str, float]:
    """Return the growth per second; for the machine's CPU time, shares of all of it."""
    grown = {name: max(0.0, value) for name, value in grown.items()}
    available = grown.pop("cpu_total", 0.0)
    shares = [name for name in ("busy", "steal") if name in grown and available > 0]
    rates = {name: min(1.0, grown.pop(name) / available) for name in shares}  # sums of floats: a hair above 1
    return rates | {name: value / span_s for name, value in grown.items()}


def _machine() -> Totals:
    """Return the CPU time of all cores, and bytes read back from swap."""
    cpu = psutil.cpu_times()
    idle = cpu.idle + getattr(cpu, "iowait", 0.0)
    steal = getattr(cpu, "steal", None)
    used = cpu.user + cpu.system + sum(getattr(cpu, name, 0.0) for name in ("nice", "irq", "softirq"))
    totals = {"busy": used, "cpu_total": used + idle + (steal or 0.0)}
    if steal is not None:
        totals["steal"] = steal
    return totals | {"swap_in_bytes_per_s": float(psutil.swap_memory().sin)}


def _quota() -> Totals:
    """Return the seconds for which our control group was stopped because its CPU quota was used up."""
    for path, name, scale in _QUOTA:
        if path.exists():
            lines = dict(line.split() for line in path.read_text(encoding="ascii").splitlines())
            if name in lines:
                return {"quota_share": int(lines[name]) * scale}
    return {}


def _network() -> Totals:
    """TCP segments sent again by all connections of our network namespace: Linux tells no more without the sockets,
    which ZeroMQ and gloo keep to themselves."""
    names, values = (line.split()[1:] for line in SNMP.read_text(encoding="ascii").splitlines() if line[:4] == "Tcp:")
    return {"resent_per_s": float(values[names.index("RetransSegs")])}


def _levels() -> Mapping[str, float]:
    memory = psutil.virtual_memory()
    return {
        "load": psutil.getloadavg()[0] / (psutil.cpu_count() or 1),
        "memory_free": memory.available / memory.total,
    }


def _never(read: Callable[[], T]) -> T | None:
    """Return what `read` returns, or None: a machine that lacks a fact must not stop a run."""
    try:
        return read()
    except Exception:  # noqa: BLE001  (telemetry never raises into training)
        return None
