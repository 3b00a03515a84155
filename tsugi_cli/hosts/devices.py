"""Which GPUs of a machine each of its replicas gets. Pure, but for the question how many there are."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from tsugi_kpool.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""ROCm's torch reads it, too."""
ASK_S = 20.0


def shares(devices: Sequence[str], replicas: int, workers: int, named: bool = False) -> list[tuple[str, ...]] | None:
    """Return the devices of each replica; None: there are none to share, and nothing is said about them.

    Args:
        devices: All that they may use.
        replicas: How many there are.
        workers: Of each: so many devices it needs.
        named: The user has named them; then every worker has one of its own.

    Raises:
        ConfigError: too few were named.
    """
    wanted = replicas * workers
    if named and len(devices) < wanted:
        need = f"{replicas} replicas of {workers} workers need {wanted}"
        raise ConfigError([f"--devices names {len(devices)}, but {need}"])
    if not devices or (workers > 1 and len(devices) < wanted):
        return None  # a worker says by itself what it lacks
    at = [[(replica * workers + worker) % len(devices) for worker in range(workers)] for replica in range(replicas)]
    return [tuple(devices[each] for each in own) for own in at]


def named(text: str | None) -> list[str] | None:
    """Return the devices that a user has named with commas between them; None: none were named.

    Raises:
        ConfigError: this names none, or one twice.
    """
    if text is None:
        return None
    found = [each.strip() for each in text.split(",") if each.strip()]
    if not found or len(set(found)) < len(found):
        raise ConfigError([f"--devices {text}: expected numbers or names of GPUs, each once, such as 0,1,2,3"])
    return found


def use(devices: Sequence[str] | None, workers: int) -> None:
    """Let this process and those that it starts see these devices alone; None: all that there are.

    Raises:
        ConfigError: they are too few.
    """
    if devices is not None:
        shares(devices, 1, workers, named=True)
        os.environ[VISIBLE] = ",".join(devices)


def visible(environ: Mapping[str, str]) -> list[str]:
    """Return the GPUs that a process with this environment may use, by number or name."""
    said = environ.get(VISIBLE)
    if said is not None:
        return [each.strip() for each in said.split(",") if each.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(at) for at, line in enumerate(each for each in asked.stdout.splitlines() if each.startswith("GPU "))]
