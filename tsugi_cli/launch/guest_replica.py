"""The replica of `tsugi join`: it is looked after to its end, and started again when it was killed or cut off."""

from __future__ import annotations

import time
from pathlib import Path

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.console.console import Console
from tsugi_cli.signals import Signals
from tsugi_kpool.about import about
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.messages import Fell, FleetStatus, SlotRequest, StatusRequest, StopRequest
from tsugi_kpool.sideband.observer import Observer

from .giving import Giving
from .process_watch import ProcessWatch
from .restarts import Restarts
from .supervisor import Supervisor
from .watch import STARTING_TURN_S, TURN_S

ASK_S = 1.0
"""Period of asking the hub for the fleet's status."""
MOST_HEARD = 20
"""Messages taken in one turn: a hub that floods us cannot keep the user from ending this with Ctrl-C."""


class GuestReplica:
    """Looks after the replica until it has ended; shows the fleet as its hub sees it.

    Args:
        hub: How the fleet is, and the replica's place, are asked for.
        ticket: By which the hub knows us.
        replica: Which one it is.
        supervisor: Of its torchrun agent.
        console: What the user sees.
        signals: Ctrl-C takes the replica back.
        spec: The run's settings.
        checkpoints: The run's folder of them on this machine.
    """

    def __init__(
        self,
        hub: Observer,
        ticket: str,
        replica: int,
        supervisor: Supervisor,
        console: Console,
        signals: Signals,
        spec: RunSpec,
        checkpoints: Path,
    ) -> None:
        self._grace_s, self._patience_s = spec.train.grace_s, spec.sideband.hub_timeout_s
        self._hub, self._ticket, self._replica = hub, ticket, replica
        self._supervisor, self._console, self._signals = supervisor, console, signals
        self._status: FleetStatus | None = None
        self._asked_s = self._heard_s = self._fell_s = 0.0
        self._told_s: float | None = None
        self._restarts, self._process_watch = Restarts(spec.topology.max_restarts), ProcessWatch()
        self.gave_up = False
        self._giving = Giving(hub, ticket, replica, checkpoints)

    def watch(self) -> None:
        """Look after the replica, turn by turn, until it has ended for good or the user ends it."""
        while self._going and not self.gave_up:
            now_s = time.monotonic()
            if now_s - self._asked_s >= ASK_S:
                self._asked_s = now_s
                self._ask()
            self._giving.turn(now_s)
            self._listen()
            if self._signals.count and self._told_s is None:
                self._told_s = now_s
                self._console.message(
                    "it leaves when what it has is committed, the others go on; Ctrl-C again ends it at once"
                )
            if self._told_s is not None:
                late = now_s - self._told_s > self._grace_s
                self.gave_up = late or self._signals.count > 1 or self._has_nothing(self._told_s)
            self._process_watch.wait(STARTING_TURN_S if self._supervisor.starting else TURN_S)
        self._process_watch.close()
        self._listen()
        self._giving.finish(lambda: self._signals.count > 0)

    @property
    def adapter_wanted(self) -> bool:
        """Whether the hub's machine takes our adapter, by the newest status."""
        return self._status is not None and self._status.wants_adapter

    @property
    def _going(self) -> bool:
        """Whether the replica works, or is about to work again."""
        self._look_after(time.monotonic())
        return bool(self._supervisor.running() or self._restarts.due)

    def _look_after(self, now_s: float) -> None:
        """Tell the hub that it was killed, and start it again after a kill or after the fleet has gone on without
        it."""
        self._supervisor.turn()
        for pid, reason in self._process_watch.killed().items():
            self._hub.send(Fell(self._ticket, pid, reason))
        for pid in self._supervisor.workers(self._replica):
            self._process_watch.watch(pid, pid)
        for fallen in self._supervisor.fallen():
            # Its place may have been given back just before it asked to be let in: then a refusal is no failure.
            self.gave_up = self.gave_up or (self._told_s is not None and fallen.kind == "LaunchError")
            blind = fallen.quarantined or self._state() == "quarantined"
            if not fallen.own and not blind and not self._signals.count and self._trains:
                self._fell_s = now_s
                self._restarts.fell(fallen.replica, now_s)
                self._console.message(f"replica {fallen.replica} has ended: {fallen.reason}")
        if self._restarts.due and (self._signals.count or now_s - self._heard_s > self._patience_s):
            self._restarts.due.clear()  # nobody answers who would let it in
        if self._heard_s > self._fell_s and self._trains:
            for replica in self._restarts.ready(now_s):
                self._console.message(f"replica {replica} is started again")
                self._supervisor.restart(replica)

    @property
    def _trains(self) -> bool:
        """Whether the fleet trains, by the newest status."""
        return self._status is not None and self._status.stage == FleetStage.TRAINING

    def _ask(self) -> None:
        self._hub.send(StatusRequest())
        if self._signals.count:
            self._hub.send(StopRequest(self._ticket))
        elif not self._joined():
            self._hub.send(SlotRequest(self._ticket, about()))

    def _listen(self) -> None:
        for _ in range(MOST_HEARD):
            if (message := self._hub.receive(0.0)) is None:
                break
            if isinstance(message, FleetStatus):
                self._status, self._heard_s = message, time.monotonic()
                self._console.show(message)
            else:
                self._giving.hear(message)

    def _joined(self) -> bool:
        """Whether it has joined. After it has left it must ask again, or it loses its place."""
        return self._state() not in (None, "left")

    def _state(self) -> str | None:
        rows = self._status.replicas if self._status is not None else ()
        return next((row.state for row in rows if row.replica == self._replica), None)

    def _has_nothing(self, told_s: float) -> bool:
        """Return whether it has nothing to commit: it never joined, or the fleet had not begun.

        Only a status from after the request counts: before it the replica may have joined, or a round may have been
        in flight.
        """
        fresh = self._heard_s - told_s > ASK_S
        return fresh and self._status is not None and (self._status.tokens == 0 or self._state() is None)
