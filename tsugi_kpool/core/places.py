"""Which replica somebody who comes from another machine is to be."""

from __future__ import annotations

from dataclasses import dataclass, field

from .messages import Place, Refused

HELD_S = 30.0
"""A place is free when nobody has asked for it again, or its replica has not been heard, for this time."""


@dataclass
class Places:
    """The replicas that other machines bring: each is given to one asker at a time."""

    replicas: range
    run: str
    config: str
    config_hash: str
    _held: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Ticket -> its replica, and when it was last asked for."""

    def of(self, ticket: str) -> int | None:
        """The replica that this ticket has, if it has one."""
        return self._held[ticket][0] if ticket in self._held else None

    def free(self, joined: set[int], now_s: float, most: int) -> int | None:
        """The lowest replica that nobody is, or None.

        Args:
            joined: Replicas that have joined.
            now_s: The hub's clock.
            most: How many replicas there may be at present.
        """
        # A ticket whose replica has joined stays, so that its launcher is known until the run ends.
        self._held = {t: h for t, h in self._held.items() if h[0] in joined or now_s - h[1] <= HELD_S}
        taken = joined | {replica for replica, _ in self._held.values()}
        return next((replica for replica in self.replicas if replica < most and replica not in taken), None)

    def hold(self, ticket: str, replica: int, now_s: float) -> None:
        """This ticket has this replica, and has just asked for it."""
        self._held[ticket] = (replica, now_s)

    def release(self, replica: int) -> None:
        """Whoever was to be this replica is not to be it any more."""
        self._held = {ticket: held for ticket, held in self._held.items() if held[0] != replica}

    def answer(self, ticket: str) -> Place:
        """What a ticket that has a place is told."""
        return Place(ticket, self._held[ticket][0], self.run, self.config, self.config_hash)

    def refusal(self, joined: set[int]) -> Refused:
        """Why there is no place."""
        if not self.replicas:
            return Refused("this run starts all its replicas itself (topology.here)")
        here = f"{len(joined & set(self.replicas))} of {len(self.replicas)} have joined"
        return Refused(f"no replica is missing: {here}, the others are about to, or may when the run has begun")
