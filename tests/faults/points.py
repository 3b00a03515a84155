"""Faults by name: what happens, to which replica, from which of its steps on, in which protocol state."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

HUB = -1
"""The hub's process, where a replica is named."""
FOLDER = "TSUGI_TEST_FAULTS"
"""Environment variable: the folder of the plan, of what has fired, and of the traces."""
PLAN, READY = "plan.json", "ready"


class Kind(StrEnum):
    """What happens. Those of INSIDE the process does to itself, the others somebody outside does when it says so."""

    KILL = "SIGKILL"
    STOP = "SIGSTOP"
    """SIGCONT after `for_s`."""
    HOLD = "interpreter held"
    """The GIL is held for `for_s`: nothing of Python runs, ZeroMQ's own threads answer on."""
    AGENT = "agent killed"
    CLOCK_BACK = "clock set back"
    """By an hour, for the rest of the process's life."""
    CLOCK_AHEAD = "clock set ahead"
    KILL_HUB = "hub killed"
    CUT = "cut"
    CUT_OUT = "cut one way"
    """What the replica sends is lost, what it is sent arrives."""
    DELAY = "delay"
    LOSS = "loss"
    DISK_FULL = "disk full"
    READ_ONLY = "disk read-only"
    DISK_BROKEN = "disk broken"
    UNMOUNTED = "disk unmounted"
    TORN = "torn checkpoint"
    """The newest one: a file of it has lost its end."""
    FLIPPED = "bit-flipped checkpoint"
    KILL_ALL = "everything killed"
    """Launcher, agents and workers."""
    FRAMES = "malformed frames"
    STRANGERS = "wrong keys"


INSIDE = frozenset({Kind.KILL, Kind.STOP, Kind.HOLD, Kind.AGENT, Kind.CLOCK_BACK, Kind.CLOCK_AHEAD})


class State(StrEnum):
    """Where a process is when it happens. Of a replica:"""

    STEP = "step"
    """A step has ended and is about to be reported. Training thread."""
    FORMING = "forming"
    """A generation's group is about to be formed."""
    FIRED = "fired"
    """A round was ordered; the collective has not begun here, and the others wait in it."""
    GATHERING = "gathering"
    """A millisecond after the collective has begun."""
    REDUCED = "reduced"
    """It has ended here, and nobody has been told."""
    REPORTED = "reported"
    COMMITTING = "committing"
    """The Commit has come and has not been applied."""
    COMMITTED = "committed"
    DRAINING = "draining"
    """There is no data left: the last round is waited for."""
    # Of the hub: a record is about to be written down, or has been and nothing has been sent on the strength of it.
    WRITING_JOINED, WRITTEN_JOINED = "writing Joined", "written Joined"
    WRITING_GENERATION, WRITTEN_GENERATION = "writing GenerationOpened", "written GenerationOpened"
    WRITING_LEASE, WRITTEN_LEASE = "writing Leased", "written Leased"
    WRITING_FIRE, WRITTEN_FIRE = "writing RoundFired", "written RoundFired"
    WRITING_REDUCED, WRITTEN_REDUCED = "writing RoundReduced", "written RoundReduced"
    WRITING_COMMIT, WRITTEN_COMMIT = "writing RoundCommitted", "written RoundCommitted"
    WRITING_LEFT, WRITTEN_LEFT = "writing Left", "written Left"
    WRITING_END, WRITTEN_END = "writing Finished", "written Finished"


@dataclass(frozen=True)
class Fault:
    """One fault, which happens once.

    Attributes:
        kind: What happens.
        replica: To whom; HUB for the hub.
        step: Not before so many of the replica's steps (of the hub: records of that kind) have ended.
        state: In which state.
        for_s: How long it lasts, where it ends by itself.
        when_ready: Not before its injector has found the run ready for it.
    """

    kind: Kind
    replica: int
    step: int
    state: State
    for_s: float = 0.0
    when_ready: bool = False

    def __str__(self) -> str:
        who = "hub" if self.replica == HUB else f"replica {self.replica}"
        return f"{self.kind} at ({who}, step {self.step}, {self.state})"


@dataclass(frozen=True)
class Fired:
    """A fault that has happened."""

    fault: Fault
    pid: int
    at_s: float
    """On this machine's monotonic clock, which all its processes share."""
    time_s: float
    """On its wall clock, as events are stamped."""


def write_plan(folder: Path, faults: tuple[Fault, ...]) -> None:
    (folder / PLAN).write_text(json.dumps([asdict(fault) for fault in faults]))


def read_plan(folder: Path) -> tuple[Fault, ...]:
    return tuple(_fault(each) for each in json.loads((folder / PLAN).read_text()))


def fired_in(folder: Path) -> dict[int, Fired]:
    """What has happened so far, by its place in the plan."""
    found = {}
    for number, fault in enumerate(read_plan(folder)):
        flag = folder / f"{number}.fired"
        if flag.exists() and (text := flag.read_text()):
            pid, at_s, time_s = json.loads(text)
            found[number] = Fired(fault, pid, at_s, time_s)
    return found


def _fault(facts: dict) -> Fault:
    return Fault(**{**facts, "kind": Kind(facts["kind"]), "state": State(facts["state"])})
