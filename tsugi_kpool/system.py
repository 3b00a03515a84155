"""What is asked of the operating system: /proc, prctl, device files. Each question has an answer where none is there.

Linux answers all of them. Elsewhere psutil answers for other processes, what only Linux counts is unknown, and a
process whose parent dies is not ended with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path

import psutil

GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/nvhost-ctrl")
"""Device files of NVIDIA's, AMD's and WSL's drivers, and of Jetson boards."""
DESCRIPTORS = ("/proc/self/fd", "/dev/fd")
"""Where a system shows a process its own file descriptors: Linux, and others."""
SNMP = Path("/proc/self/net/snmp")
"""Counters of this machine's TCP."""
_PR_SET_PDEATHSIG = 1


def has_gpu() -> bool:
    """Whether a driver of a GPU is loaded that this process may see. Asks no library: the launcher has no torch."""
    hidden = any(os.environ.get(name) in ("", "-1") for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"))
    return not hidden and sys.platform != "darwin" and any(Path(each).exists() for each in GPU_DEVICES)


def end_with_parent() -> None:
    """Ask the kernel to end this process when its parent dies: no orphan trains on. Linux only.

    SIGKILL, because whoever has started us has made us deaf to SIGTERM (`tsugi_cli.signals.deaf`).
    """
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return


def own_descriptors() -> list[int] | None:
    """Numbers of this process's open files, one of which may be closed again; None: the system shows none."""
    for folder in DESCRIPTORS:
        try:
            return [int(name) for name in os.listdir(folder) if name.isdigit()]  # noqa: PTH208
        except OSError:
            continue
    return None


def children_of(pid: int) -> list[int]:
    """The processes that this one has started and that still are; none where it is gone."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (OSError, ValueError):
        pass  # not Linux, a kernel that was built without that file, or no such process
    try:
        return [each.pid for each in psutil.Process(pid).children()]
    except psutil.Error:
        return []


def environment_of(pid: int) -> list[bytes] | None:
    """A process's variables, NAME=VALUE each, as it was started; None where that cannot be seen."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        pass
    try:
        return [os.fsencode(f"{name}={value}") for name, value in psutil.Process(pid).environ().items()]
    except psutil.Error:
        return None


def ended_by(pid: int) -> int | None:
    """The signal that has ended a process whose parent has not asked about it yet; 0: itself. None: nobody knows."""
    try:
        state, *_, code = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return int(code) & 0x7F if state == "Z" else None


def schedule_of_this_thread() -> Path:
    """The file in which Linux counts the calling thread's nanoseconds on a core, and ready without one."""
    return Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
