"""Facts of a replica's process and machine: measurements only, no verdict."""

from __future__ import annotations

import msgspec

UNKNOWN = -1.0
"""Stands for a fact that this machine does not offer; no known fact is negative."""


class MachineFacts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One sample; shares and rates are over the time since the sample before it."""

    cpu_share: float = UNKNOWN
    """CPU seconds of the whole process per second: 1 is one core."""
    thread_share: float = UNKNOWN
    """CPU seconds of the training thread per second (0 to 1)."""
    queue_share: float = UNKNOWN
    """Share of the time in which the training thread was ready to run and waited for a core (0 to 1)."""
    quota_share: float = UNKNOWN
    """Share of the time in which the process was stopped because its group's CPU quota was used up (0 to 1)."""
    steal: float = UNKNOWN
    """CPU steal: share of the machine's CPU time that its host gave to others (0 to 1)."""
    busy: float = UNKNOWN
    """Share of the machine's CPU time that somebody used (0 to 1)."""
    load: float = UNKNOWN
    """Load average of one minute, per core."""
    memory_free: float = UNKNOWN
    """Share of the memory that is available (0 to 1)."""
    major_faults_per_s: float = UNKNOWN
    """Pages of this process that had to be read from disk."""
    swap_in_bytes_per_s: float = UNKNOWN
    """Bytes a second that the machine read back from swap."""
    gpu_clock: float = UNKNOWN
    """The GPU's present clock as a share of its highest (0 to 1)."""
    gpu_busy: float = UNKNOWN
    """Share of the time in which the GPU ran something (0 to 1)."""
    gpu_throttle: str = ""
    """Why the GPU's clock is held down, in words; empty when it is not."""
    resent_per_s: float = UNKNOWN
    """TCP segments that this machine (or its network namespace) sent again, of all its connections together."""
