"""Which replica somebody who comes from another machine is to be."""

from __future__ import annotations

from dataclasses import dataclass, field

from .messages import Message, Place, PlaceRequest, Refused

HELD_S = 30.0
"""A place that nobody has asked for again, and whose replica has not joined, is free after this time."""


@dataclass
class Places:
    """The replicas that other machines bring: each is given to one asker at a time."""

    replicas: range
    run: str
    config: str
    config_hash: str
    _held: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Ticket -> its replica, and when it was last asked for."""

    def answer(self, request: PlaceRequest, joined: set[int], now_s: float) -> Message:
        """A place, the same for the same ticket; or why there is none.

        Args:
            request: From a member's key.
            joined: Replicas that have joined.
            now_s: The hub's clock.
        """
        replica = self._replica(request.ticket, joined, now_s)
        if replica is None:
            return Refused(self._none_left(joined))
        self._held[request.ticket] = (replica, now_s)
        return Place(request.ticket, replica, self.run, self.config, self.config_hash)

    def holds(self, ticket: str) -> bool:
        """Whether this ticket has a place."""
        return ticket in self._held

    def _replica(self, ticket: str, joined: set[int], now_s: float) -> int | None:
        if ticket in self._held:
            return self._held[ticket][0]
        # A ticket whose replica has joined stays, so that its launcher is known until the run ends.
        self._held = {t: h for t, h in self._held.items() if h[0] in joined or now_s - h[1] <= HELD_S}
        taken = joined | {replica for replica, _ in self._held.values()}
        return next((replica for replica in self.replicas if replica not in taken), None)

    def _none_left(self, joined: set[int]) -> str:
        if not self.replicas:
            return "this run starts all its replicas itself (topology.here)"
        here = f"{len(joined & set(self.replicas))} of {len(self.replicas)} have joined"
        return f"no replica is missing: {here}, the others are about to"
