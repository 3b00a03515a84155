"""The watch over a running fleet: who works, who has died and is started again, and what has ended the run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from tsugi_cli.console.console import Console
from tsugi_cli.record.recorder import Recorder
from tsugi_cli.record.sinks import Sinks
from tsugi_cli.signals import Signals
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.events import Restarted
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.errors import QuorumError, TrainingError, TsugiError
from tsugi_kpool.sideband.hub.server import HubServer

from .checkpointing import Checkpoints
from .failure import Failure, failure_of
from .others import Nobody, Others, lost_while_gathering
from .process_watch import ProcessWatch
from .restarts import Restarts
from .supervisor import Supervisor

TURN_S = 0.25
"""Period of redrawing the console and of noticing failures."""
STARTING_TURN_S = 0.05
"""The same while agents are about to be started."""
PARTING_S = 60.0
"""After the end, replicas on other machines that are silent for this long are not waited for."""
OVER = (FleetStage.FINISHED, FleetStage.INTERRUPTED)
"""Stages in which no replica can join any more."""
GONE = ("done", "left", "quarantined")
"""States of replicas that are not waited for."""
TELLING_S = 1.5
"""After a failure the hub runs this much longer, so that replicas on other machines hear of it."""


@dataclass
class RunningFleet:
    """The parts of a running fleet."""

    hub: HubServer
    supervisor: Supervisor
    recorder: Recorder
    console: Console
    checkpoints: Checkpoints
    sinks: Sinks
    """Console, files and trackers: everything that takes events and statuses."""
    grace_s: float
    """Time after Ctrl-C in which replicas end their step, ship what they have and write a checkpoint."""
    elsewhere: int = 0
    """Replicas whose processes are on other machines."""

    others: Others = field(default_factory=Nobody)
    """Who starts the replicas of other machines."""

    restarts: Restarts = field(default_factory=Restarts)
    process_watch: ProcessWatch = field(default_factory=ProcessWatch)

    @property
    def going(self) -> bool:
        """Whether any replica works, or is about to."""
        if set(self.supervisor.running()) - self.hub.ask(_left) or self.restarts.due:
            return True
        if not self.elsewhere or not self.hub.alive:
            return False
        status = self.hub.cached_status()
        away = [row for row in status.replicas if row.state not in GONE and row.silent_s < PARTING_S]
        return status.stage not in OVER or bool(away)

    def look_after(self) -> Failure | None:
        """Report dead replicas to the hub, and start them again.

        Returns a failure by a replica's own error, or of one that never joined: the fleet would wait for it in vain.
        """
        now_s = time.monotonic()
        # Before the agents' ends are read: a killed worker shows a second or more before its agent ends.
        self._notice()
        left = self.hub.ask(_left)
        self.restarts.begun &= left
        for replica in left & set(self.supervisor.running()) - self.restarts.begun:
            self.supervisor.kill(replica)  # frozen, or cut off: whatever it still does, nobody takes it in
        for fallen in self.supervisor.fallen():
            if fallen.own and fallen.replica not in self.restarts.begun:
                return fallen
            if self.hub.ask(_gathers):
                return replace(fallen, came_up=False)
            self.hub.leave({fallen.replica: fallen.reason})
            if not (fallen.quarantined or fallen.replica in self.hub.ask(_quarantined)):
                self.restarts.fell(fallen.replica, now_s)
        if self.hub.ask(_takes_newcomers):
            for replica in self.restarts.ready(now_s):
                self.recorder.tell(Restarted(replica, self.restarts.times(replica)))
                self.supervisor.restart(replica)
        else:
            self.restarts.due.clear()
        return None

    def _notice(self) -> None:
        """Report killed workers to the hub, before their agents have ended."""
        at_work = self.hub.ask(_at_work)
        killed = {replica: why for replica, why in self.process_watch.killed().items() if replica in at_work}
        if killed:
            self.hub.leave(killed)
        for replica, pid in at_work.items():
            if replica not in killed and pid in self.supervisor.workers(replica):
                self.process_watch.watch(replica, pid)

    def turn(self, last: bool = False) -> None:
        """Start agents that are due, show events and status, and look after the checkpoints."""
        self.supervisor.turn()
        self.checkpoints.turn(lambda: self.hub.save(self.checkpoints.passed_over))
        for event in self.recorder.pending():
            self.sinks.event(event)
        self.sinks.status(self.hub.status() if last else self.hub.cached_status())


def watch(fleet: RunningFleet, signals: Signals) -> TsugiError | None:
    """Watch the fleet, turn by turn, until all agents have ended. Returns the failure that ended the run, if one did.

    Ctrl-C here and the owner's StopRun do the same: the fleet stops in good order, within `grace_s`.
    """
    told_s: float | None = None
    while fleet.going:
        fleet.turn()
        if not fleet.hub.alive:
            return TrainingError("the hub's thread has ended")
        own = fleet.look_after()
        if own is not None or fleet.hub.ask(_failed):
            # The one whose fault it was may still be writing down why.
            fleet.supervisor.wait(2.0)
            return _told(fleet, _failure(fleet, own))
        if (lacking := _without(fleet)) is not None:
            return _told(fleet, lacking)
        if signals.count and told_s is None:
            fleet.hub.interrupt()
            told_s = time.monotonic()
            fleet.console.message("stopping after the present steps; Ctrl-C again ends at once")
        elif told_s is None and fleet.hub.ask(_interrupted):
            told_s = time.monotonic()
            fleet.console.message("the run's owner stops it after the present steps")
        if told_s is not None and _give_up(fleet, signals, told_s):
            fleet.hub.abandon()
            return None
        fleet.process_watch.wait(STARTING_TURN_S if fleet.supervisor.starting else TURN_S)
    fleet.turn(last=True)
    return _told(fleet, _failure(fleet, fleet.look_after()))


def _without(fleet: RunningFleet) -> TsugiError | None:
    """Return the failure of a launch that lacks another machine; a run that has begun goes on without it."""
    lost = fleet.others.lost()
    if lost and fleet.hub.ask(_gathers):
        return lost_while_gathering(lost)
    for each in lost:
        fleet.console.message(f"{each.reason}; the others go on")
    return None


def _failure(fleet: RunningFleet, own: Failure | None) -> TsugiError | None:
    """Return the failure that has ended the run, if there is one. The death of a replica is none."""
    reason, quorum, replica = fleet.hub.ask(lambda hub: (hub.failure, hub.quorum_failed, hub.failed_replica))
    if quorum:
        return QuorumError(reason)
    if own is None and reason is None:
        return None
    return failure_of(own or fleet.supervisor.failure(replica), reason)


def _interrupted(hub: Hub) -> bool:
    return hub.interrupted and not hub.over and not hub.stopped_early


def _failed_replica(hub: Hub) -> int | None:
    return hub.failed_replica


def _failed(hub: Hub) -> bool:
    return hub.failure is not None


def _quarantined(hub: Hub) -> set[int]:
    return hub.quarantined


def _left(hub: Hub) -> set[int]:
    """Return the replicas that have left in the middle of the run and have not come back."""
    return {replica for replica, member in hub.members.items() if member.lost is not None}


def _at_work(hub: Hub) -> dict[int, int]:
    """Return the process ids of members that the others would miss: those that have not said good-bye."""
    if hub.stage not in (FleetStage.TRAINING, FleetStage.DRAINING):
        return {}
    return {each: hub.members[each].hello.pid for each in hub.present if not hub.members[each].gone}


def _gathers(hub: Hub) -> bool:
    return hub.stage is FleetStage.GATHERING


def _takes_newcomers(hub: Hub) -> bool:
    return hub.stage is FleetStage.TRAINING and not hub.interrupted


def _told(fleet: RunningFleet, failure: TsugiError | None) -> TsugiError | None:
    """Record the run's failure in the hub, so that status, journal and replicas on other machines have it; returns
    it."""
    if failure is not None:
        fallen = (
            None if isinstance(failure, QuorumError) else fleet.supervisor.failure(fleet.hub.ask(_failed_replica))
        )
        reason = f"{fallen.who}: {fallen.reason}" if fallen else str(failure).splitlines()[0]
        fleet.hub.give_up(reason, fallen.replica if fallen else None)
        if fleet.elsewhere and fleet.hub.alive:
            time.sleep(TELLING_S)
    return failure


def _give_up(fleet: RunningFleet, signals: Signals, told_s: float) -> bool:
    """Return whether an interrupted run has nothing left worth waiting for."""
    status = fleet.hub.status()
    nothing_yet = status.stage == FleetStage.GATHERING or status.tokens == 0
    return nothing_yet or signals.count > 1 or time.monotonic() - told_s > fleet.grace_s
