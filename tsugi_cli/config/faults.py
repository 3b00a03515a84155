"""Injected faults: written "replica:value", "replica:value@20s" or "replica:value@30", and what is wrong with one."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

_NUMBER = r"\d{1,18}(?:\.\d{0,18})?"
_FAULT = re.compile(
    rf"(\d{{1,9}}):({_NUMBER}(?:[eE][-+]?\d{{1,2}})?)(?:@(\d{{1,9}}(?:\.\d{{1,18}})?)(s?))?", re.ASCII
)

MOST_FAULT = 1_000_000
FAULTS = {
    "fault.slow": "replica:factor, such as 1:4.0 or 1:4.0@20s",
    "fault.data_wait": "replica:seconds, such as 1:0.5 or 1:0.5@20s",
    "fault.nan": "replica:steps, such as 1:1@20",
    "fault.flip": "replica:times, such as 1:1@20",
    "fault.step_s": "replica:seconds, such as 1:0.4 or 1:0.4@20s",
}
"""Key -> how one of its entries is written."""


@dataclass(frozen=True)
class FaultEntry:
    """From some moment on, something of one replica has this value."""

    replica: int
    value: float
    after_s: float = 0.0
    """Seconds of its training after which it begins."""
    after_steps: int = 0
    """Steps of the replica after which it begins."""

    def begun(self, trained_s: float, steps: int) -> bool:
        """Whether the moment has come."""
        return trained_s >= self.after_s and steps >= self.after_steps


def parse(text: str) -> FaultEntry | None:
    """One entry, or None when it is not written as it should be."""
    match = _FAULT.fullmatch(text)
    if match is None:
        return None
    replica, value, moment, unit = int(match[1]), float(match[2]), match[3], match[4]
    if moment is None:
        return FaultEntry(replica, value)
    if unit:
        return FaultEntry(replica, value, after_s=float(moment))
    return FaultEntry(replica, value, after_steps=int(moment)) if moment.isdigit() else None


def of_replica(entries: Iterable[str], replica: int) -> list[FaultEntry]:
    """The entries of one replica, in the order in which they are written."""
    faults = [fault for text in entries if (fault := parse(text)) is not None]
    return [fault for fault in faults if fault.replica == replica]


def present(faults: Iterable[FaultEntry], trained_s: float, steps: int, usual: float) -> float:
    """The value that holds now: the last entry whose moment has come, or the usual one before any."""
    value = usual
    for fault in faults:
        if fault.begun(trained_s, steps):
            value = fault.value
    return value


def jitters(sigma: float, seed: int, replica: int) -> Iterator[float]:
    """Factors of a replica's steps: lognormal with mean 1; the same ones for the same seed, whoever asks."""
    source = random.Random(f"jitter:{seed}:{replica}")
    while True:
        yield math.exp(source.gauss(0.0, 1.0) * sigma - sigma * sigma / 2) if sigma else 1.0


def _slow(slow: list[str]) -> list[str]:
    parsed = [(entry, parse(entry)) for entry in slow]
    return [f"fault.slow: {entry!r} has a factor below 1" for entry, fault in parsed if fault and fault.value < 1]


def _faults(key: str, written: str, entries: list[str], replicas: int) -> list[str]:
    found = []
    for entry in entries:
        fault = parse(entry)
        if fault is None:
            found.append(f"{key}: {entry!r} is not {written}")
        elif fault.replica >= replicas >= 1:
            found.append(f"{key}: {entry!r} names replica {fault.replica}; replicas are 0 to {replicas - 1}")
        elif max(fault.value, fault.after_s) > MOST_FAULT:
            found.append(f"{key}: {entry!r} has a number above {MOST_FAULT:,}: seconds, factors and counts end there")
    return found


FAULT_RULES: tuple[tuple[tuple[str, ...], Callable[..., list[str]]], ...] = (
    (("fault.slow",), _slow),
    *(((key, "topology.replicas"), partial(_faults, key, written)) for key, written in FAULTS.items()),
)
"""The settings that a rule reads, and the rule: a text for everything that is wrong."""
